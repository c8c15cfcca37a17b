"""Model families: one folder each. All folders have the same file names, so one is the checklist.

`fit`, `export` and validation use a `Family` and know none by name; `model.family` in the
configuration names the folder. To add one, add a folder that exports `FAMILY`.

Reading order: `family` (what a family provides), `network` (what a network answers), `denoiser`,
`tracing` and `export` (for any network), `segment_objective` and `losses`, `cross_attention` (for
decoders that read a whole history), then `mdgr`, `maskgr` and `tiger`.
"""

from training.families.family import Family, Objective, family_of

__all__ = [
    "Family",
    "Objective",
    "family_of",
]
