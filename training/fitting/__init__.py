"""Learning: the network's training loop, and the neighbour prior's counts.

Knows minibatches, optimisers and checkpoints; what a minibatch's loss is, the model family says.

Reading order: `training_loop`, `refit`, `neighbour_prior`, `speed` (of training).
"""

from training.fitting.neighbour_prior import chosen_of, fit_priors, recount, weigh_prior
from training.fitting.refit import refit
from training.fitting.speed import step_time
from training.fitting.training_loop import FitState, fit, load_best

__all__ = [
    "FitState",
    "chosen_of",
    "fit",
    "fit_priors",
    "load_best",
    "recount",
    "refit",
    "step_time",
    "weigh_prior",
]
