"""MDGR (arXiv 2601.19501): a masked-diffusion decoder over the SID of one item.

Reading order: `model` (our network), `published` (the paper's), `options` (which of the two),
`masking` (which positions are masked), `objective` (a minibatch's loss).
"""

from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.family import Family
from training.families.mdgr.masking import check_noise
from training.families.mdgr.objective import MDGRObjective
from training.families.mdgr.options import Options, build

__all__ = ["FAMILY"]

FAMILY = Family(
    build=build,
    objective=MDGRObjective,
    denoiser=TorchDenoiser,
    export=export_graphs,
    options=Options,
    refuse=lambda config: check_noise(config.masking),
)
