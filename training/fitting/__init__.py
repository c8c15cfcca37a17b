"""Learning: the network's training loop, and the neighbour prior's counts.

Knows minibatches, optimisers and checkpoints; what a minibatch's loss is, the model family says.

Reading order: `training_loop`, `checkpoint`, `team` (several processes), `refit`,
`neighbour_prior`, `speed` (of training).
"""

from training.fitting.neighbour_prior import (
    Settings,
    best_settings,
    count_again,
    fit_priors,
    prior_at,
    weigh_prior,
)
from training.fitting.refit import refit
from training.fitting.speed import first_losses, step_time
from training.fitting.training_loop import Continuation, fit, learn_together, load_best

__all__ = [
    "Continuation",
    "Settings",
    "best_settings",
    "count_again",
    "first_losses",
    "fit",
    "fit_priors",
    "learn_together",
    "load_best",
    "prior_at",
    "refit",
    "step_time",
    "weigh_prior",
]
