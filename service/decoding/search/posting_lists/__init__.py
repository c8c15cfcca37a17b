"""Beams that have filled one position: each owns the posting list of its code.

Knows the second step and the last one; every later step works on rows that were copied (`rows`).

Reading order: `first_step` (makes these beams from the fully masked SID), `scoring` (the last step,
from posting lists), `second_step`.
"""
