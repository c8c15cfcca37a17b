"""MaskGR (arXiv 2511.23021): masked diffusion over the codes of a whole history and the next item.

Reading order: `model` (the network and its two kinds of attention), `masking` (which codes are
masked), `objective` (a minibatch's loss).
"""

from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.family import Family
from training.families.maskgr.model import Options, build, check_width
from training.families.maskgr.objective import MaskGRObjective

__all__ = ["FAMILY"]

FAMILY = Family(
    build=build,
    objective=MaskGRObjective,
    denoiser=TorchDenoiser,
    export=export_graphs,
    options=Options,
    unused=(
        "model.decoder_layers",
        "model.difficulty_embedding",
        "masking.curriculum",
        "masking.gamma",
        "masking.history_aware",
        "masking.epsilon",
    ),
    refuse=lambda config: check_width(config.model),
)
