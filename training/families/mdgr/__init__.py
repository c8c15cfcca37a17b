"""MDGR (arXiv 2601.19501): a masked-diffusion decoder over the SID of one item.

Reading order: `model` (the network), `masking` (which positions are masked), `objective` (a
minibatch's loss).
"""

from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.family import Family
from training.families.mdgr.model import build
from training.families.mdgr.objective import MDGRObjective

__all__ = ["FAMILY"]

FAMILY = Family(build=build, objective=MDGRObjective, denoiser=TorchDenoiser, export=export_graphs)
