"""Beams that own their surviving rows: which positions they fill, and their best children.

Reading order: `confidence`, `grouping`, `expansion`; `whole_catalogue` scores every row in one
step.
"""
