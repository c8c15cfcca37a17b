"""Beams that own a list of rows: how they choose positions, and their best children.

Reading order: `order`, `grouping`, `expansion`; `whole_catalogue` scores every row in one
step.
"""
