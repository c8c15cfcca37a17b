"""MaskGR (arXiv 2511.23021): masked diffusion over the codes of a whole history and the next item.

Reading order: `model` (the network and its three kinds of attention), `layer`, `masking` (which
codes are masked), `objective` (a minibatch's loss), `causal_objective` (that of causal attention).
"""

from typing import Any

from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.family import Family, Objective
from training.families.maskgr.causal_objective import CausalObjective
from training.families.maskgr.model import MaskGR, Options, build, check_width
from training.families.maskgr.objective import MaskGRObjective

__all__ = ["FAMILY"]


def objective_of(model: MaskGR, *data: Any, **settings: Any) -> Objective:
    """The one of its attention."""
    made = CausalObjective if model.is_causal else MaskGRObjective
    return made(model, *data, **settings)


FAMILY = Family(
    build=build,
    objective=objective_of,
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
