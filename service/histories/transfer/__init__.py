"""Histories and events between files and the store, in bulk: load, export.

A file that is written is whole or not there. What is read twice changes nothing. Memory is bounded,
however large a file is. Knows nothing of settings, HTTP or Redis commands.

Reading order: `bulk` (the three operations), `history_files` (from a training log or a file of
histories to the newest items of each user), `commands` (what an operator writes and reads).
"""

from service.histories.transfer.bulk import (
    Timestamps,
    export_events,
    export_histories,
    load_histories,
)
from service.histories.transfer.commands import command_parser, run_command
from service.histories.transfer.history_files import read_histories, time_of

__all__ = [
    "Timestamps",
    "command_parser",
    "export_events",
    "export_histories",
    "load_histories",
    "read_histories",
    "run_command",
    "time_of",
]
