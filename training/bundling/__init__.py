"""A run's two bundles, and what happens to them: 8-bit graphs, a new default, the way to the store.

Reading order: `making` (the trial, and what ships), `int8` with `quantise`, then `promotion`. Knows
no folder of a run and no file of users.
"""

from training.bundling.making import Parts, choose_default, make_refitted, make_trial
from training.bundling.promotion import check_not_promoted, promote, set_default

__all__ = [
    "Parts",
    "check_not_promoted",
    "choose_default",
    "make_refitted",
    "make_trial",
    "promote",
    "set_default",
]
