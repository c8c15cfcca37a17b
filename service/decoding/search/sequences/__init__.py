"""Several items at once: one search over the positions of all of them.

Reading order: `slots` (the place of an item, and the rows it owns), `expansion` (a step),
`combinations` (what a step fills in several slots).
"""
