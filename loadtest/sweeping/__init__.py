"""What a sweep writes: its results, the report and the picture.

Reading order: `results`, `report`, `plot` with `labels`. `python -m loadtest.sweeping FOLDER` draws
the picture of a finished sweep again. Does not know how anything was measured.
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
