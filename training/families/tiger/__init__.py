"""TIGER (arXiv 2305.05065): an autoregressive decoder over the SID of the next item, a rival.

It fills positions from left to right, one a call: the answer for a position means something only
when all positions before it are filled. Reading order: `model` (the network), `objective` (a
minibatch's loss).
"""

from training.families.denoiser import TorchDenoiser
from training.families.export import export_graphs
from training.families.family import Family
from training.families.tiger.model import Options, build
from training.families.tiger.objective import TigerObjective, check_loss

__all__ = ["FAMILY"]

FAMILY = Family(
    build=build,
    objective=TigerObjective,
    denoiser=TorchDenoiser,
    export=export_graphs,
    options=Options,
    autoregressive=True,
    unused=(
        "model.difficulty_embedding",
        "masking.curriculum",
        "masking.noise",
        "masking.gamma",
        "masking.history_aware",
        "masking.epsilon",
        "masking.full_share",
        "masking.partial_share",
        "fit.validation_schedule",
        "evaluation.schedules",
        "evaluation.rankings",
        "evaluation.finish_rows",
        "evaluation.orders",
        "evaluation.remasks",
    ),
    refuse=lambda config: check_loss(config.fit),
)
