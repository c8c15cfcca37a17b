"""What a sweep writes: its results, the report, the picture.

Reading order: `results`, `report`, `plot`.
"""

from loadtest.sweeping.report import write_report
from loadtest.sweeping.results import Case, Results, Setting, SweepError

__all__ = [
    "Case",
    "Results",
    "Setting",
    "SweepError",
    "write_report",
]
