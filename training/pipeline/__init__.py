"""A run, stage by stage, and a night: a run that is held against the bundle in service.

Knows the order of things and the folders they are in. How anything is learnt, measured or written
belongs to the rooms below.

Reading order: `run` (the stages), `run_folder` (what is made from stages that are done),
`run_report` (all that for people) with `charts`, `warm_start` (a run that begins where another one
ended), `night` (run, gate, promotion, old
versions), `night_folders` (which there are, and which may go), `night_log` (what became of each
night), `device_check` (what the devices of a machine do).
"""

from training.pipeline.device_check import device_check
from training.pipeline.night import NightPlan, nightly
from training.pipeline.night_folders import night_to_do
from training.pipeline.run import dataset_key, run
from training.pipeline.run_folder import (
    catalogue_of,
    evaluate_again,
    family_of_run,
    parts_of,
    refit_network,
    ship,
)

__all__ = [
    "NightPlan",
    "catalogue_of",
    "dataset_key",
    "device_check",
    "evaluate_again",
    "family_of_run",
    "night_to_do",
    "nightly",
    "parts_of",
    "refit_network",
    "run",
    "ship",
]
