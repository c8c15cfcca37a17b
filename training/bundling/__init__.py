"""A run's two bundles, and what happens to them: 8-bit graphs, a new default, the way to the store.

Reading order: `making` (the trial, and what ships), `catalogue_map` (items in two dimensions),
`int8` with `quantise`, `gate` (is it as good as what is in service?), then `promotion`. Knows no
folder of a run and no file of users.
"""

from training.bundling.catalogue_map import lay_out
from training.bundling.gate import PairedRecall, Verdict, found_by, paired_recall
from training.bundling.making import Parts, choose_default, make_refitted, make_trial
from training.bundling.promotion import (
    check_not_promoted,
    in_service,
    promote,
    prune,
    put_in_service,
    set_default,
)

__all__ = [
    "PairedRecall",
    "Parts",
    "Verdict",
    "check_not_promoted",
    "choose_default",
    "found_by",
    "in_service",
    "lay_out",
    "make_refitted",
    "make_trial",
    "paired_recall",
    "promote",
    "prune",
    "put_in_service",
    "set_default",
]
