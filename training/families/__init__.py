"""Model families: one folder each. All folders have the same file names, so one is the checklist.

`fit`, `export` and validation use a `Family` and know none by name; `model.family` in the
configuration names the folder. To add one, add a folder that exports `FAMILY`.

Reading order: `family` (what a family provides), `network` (what a network answers), `denoiser`,
`tracing` and `export` (for any network), `device` (where one learns), `segment_objective` and
`losses`, `cross_attention` (for decoders that read a whole history), then `mdgr`, `maskgr` and
`tiger`.
"""

from training.families.device import (
    HOST,
    device_of,
    devices,
    random_state,
    set_random_state,
    synchronise,
)
from training.families.family import Family, Objective, family_of

__all__ = [
    "HOST",
    "Family",
    "Objective",
    "device_of",
    "devices",
    "family_of",
    "random_state",
    "set_random_state",
    "synchronise",
]
