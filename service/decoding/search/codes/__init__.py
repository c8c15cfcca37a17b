"""Beams that have filled one position and own the posting list of its code.

Reading order: `beams`, `first_step` (from the fully masked SID), `expansion` (the step after it).
"""
