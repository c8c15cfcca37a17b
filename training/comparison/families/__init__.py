"""Families of networks side by side: same data, vectors and users, and as much time to learn.

Reading order: `runs` (which rows there are, how their runs are made alike), `seeds` (differences
over users and seeds), `tables`, `plot`, `claims` (what the papers say, beside what was measured).
"""

from training.comparison.families.claims import claims_table, row_name, verdicts
from training.comparison.families.plot import plot_families
from training.comparison.families.runs import DROPPED, FIRST, FamilyTables, schedule_of_calls
from training.comparison.families.tables import (
    families_table,
    family_density_table,
    nfe_table,
    several_items_table,
)

__all__ = [
    "DROPPED",
    "FIRST",
    "FamilyTables",
    "claims_table",
    "families_table",
    "family_density_table",
    "nfe_table",
    "plot_families",
    "row_name",
    "schedule_of_calls",
    "several_items_table",
    "verdicts",
]
