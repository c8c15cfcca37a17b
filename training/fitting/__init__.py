"""Learning: the network's training loop, and the neighbour prior's counts.

Knows minibatches, optimisers and checkpoints; what a minibatch's loss is, the model family says.

Reading order: `training_loop`, `neighbour_prior`, `speed` (how fast training is on a machine).
"""

from training.fitting.neighbour_prior import fit_priors, weigh_prior
from training.fitting.speed import step_time
from training.fitting.training_loop import fit, load_best

__all__ = [
    "fit",
    "fit_priors",
    "load_best",
    "step_time",
    "weigh_prior",
]
