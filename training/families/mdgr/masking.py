"""Which positions of a target SID become MASK: how many (curriculum, or noise) and which.

Which is history-aware. Pure functions of progress, codes and a random generator; knows nothing of
the network. Source: arXiv 2601.19501, section 4.3, Eq. 8-13. The prose there on gamma contradicts
Eq. 8; this is the formula: a larger gamma makes training hard sooner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.config import MaskingConfig
from training.errors import ConfigError


def ease(progress: float, gamma: float) -> float:
    """Weight delta of the few-masks distribution, 1 at the start, 0 at the end (Eq. 8)."""
    return math.cos(math.pi / 2 * min(1.0, progress)) ** gamma


def mask_count_probabilities(progress: float, num_subspaces: int, gamma: float) -> Tensor:
    """P(j masks), j = 1..num_subspaces, at a progress in [0, 1] (Eq. 9-10): (L,) float64."""
    j = torch.arange(1, num_subspaces + 1, dtype=torch.float64)
    delta = ease(progress, gamma)
    weights = (1 - delta) * j + delta * (num_subspaces + 1 - j)
    return weights / weights.sum()


def cosine_count_probabilities(num_subspaces: int) -> Tensor:
    """P(j masks) if the share of masks is cos(pi t / 2), t uniform, rounded up: (L,) float64.

    The noise schedule of MaskGIT (arXiv 2202.04200).
    """
    share = torch.arange(num_subspaces + 1, dtype=torch.float64) / num_subspaces
    return -torch.diff(torch.arccos(share)) * 2 / math.pi


def position_log_weights(
    history_codes: Tensor, history_mask: Tensor, target_codes: Tensor, epsilon: float
) -> Tensor:
    """Log of w = 1 / (q + epsilon), q = history items with the target's code there (Eq. 11-12).

    history_codes: (n, length, L), history_mask: (n, length), target_codes: (n, L). Returns (n, L).
    """
    same = (history_codes == target_codes[:, None, :]) & history_mask[:, :, None]
    return -torch.log(same.sum(dim=1) + epsilon)


def draw_positions(counts: Tensor, log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw `counts` distinct positions by weight: the largest of log-weight + Gumbel noise.

    counts: (n,) int64; log_weights: (n, L). Returns (n, L) bool, true = MASK.
    """
    uniform = torch.rand(log_weights.shape, generator=generator).clamp(min=1e-12)
    order = (log_weights - torch.log(-torch.log(uniform))).argsort(dim=1, descending=True)
    masked = torch.zeros(log_weights.shape, dtype=torch.bool)
    taken = torch.arange(log_weights.shape[1]) < counts[:, None]
    return masked.scatter(1, order, taken)


def draw_mask(
    history_codes: Tensor,
    history_mask: Tensor,
    target_codes: Tensor,
    *,
    progress: float,
    config: MaskingConfig,
    generator: torch.Generator,
) -> Tensor:
    """Positions of each sample that become MASK: (n, L) bool, at least one each."""
    n, num_subspaces = target_codes.shape
    if config.curriculum:
        probabilities = mask_count_probabilities(progress, num_subspaces, config.gamma)
    elif config.noise == "cosine":
        probabilities = cosine_count_probabilities(num_subspaces)
    else:
        probabilities = torch.full((num_subspaces,), 1 / num_subspaces, dtype=torch.float64)
    counts = 1 + torch.multinomial(probabilities, n, replacement=True, generator=generator)
    if config.history_aware:
        log_weights = position_log_weights(
            history_codes, history_mask, target_codes, config.epsilon
        )
    else:
        log_weights = torch.zeros(n, num_subspaces)
    return draw_positions(counts, log_weights, generator)


def check_noise(config: MaskingConfig) -> None:
    """Raise ConfigError for a noise that the curriculum would hide."""
    if config.curriculum and config.noise != "uniform":
        raise ConfigError(
            f"masking.noise={config.noise}: the curriculum draws the mask counts; set "
            "masking.curriculum=false too"
        )
