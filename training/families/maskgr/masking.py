"""Which codes of a sequence become MASK, and what a masked code then weighs in the loss.

Pure functions of sizes and a random generator; knows nothing of the network. Codes anywhere in the
sequence, as published; whole items, for a dense head; codes of one item only, as in serving.
Source: arXiv 2511.23021; its forward process masks each code with probability t, t ~ U(0, 1), and
weighs it by 1 / t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from training.config import Noise

LEAST_RATE = 0.01  # so no code weighs more than 100


def draw_rates(
    n: int, generator: torch.Generator, noise: Noise = "uniform"
) -> tuple[Tensor, Tensor]:
    """The rates t of n sequences, in [LEAST_RATE, 1], and what a masked code of each weighs.

    uniform: one in each n-th part, shuffled; the weight is 1 / t, as published. cosine: the cosine
    of such a number (MaskGIT, arXiv 2202.04200), so many masks are more frequent; divided by how
    frequent, the weight gives the same loss on average.
    """
    within = torch.rand(n, generator=generator)
    drawn = (torch.randperm(n, generator=generator) + within) / n
    if noise == "uniform":
        rates = drawn.clamp(min=LEAST_RATE)
        return rates, 1 / rates
    rates = torch.cos(drawn * math.pi / 2).clamp(min=LEAST_RATE)
    return rates, (1 - rates.square()).clamp(min=0).sqrt() * (math.pi / 2) / rates


def mask_anywhere(
    n: int, items: int, num_subspaces: int, generator: torch.Generator, noise: Noise = "uniform"
) -> tuple[Tensor, Tensor]:
    """Each code becomes MASK with its sequence's probability t, independently of all others.

    Returns (n, items, L) bool and the weights of `draw_rates`, (n,). A sequence may be without a
    MASK: one at least, together with 1 / t, would be the loss of another process.
    """
    rates, weights = draw_rates(n, generator, noise)
    drawn = torch.rand(n, items, num_subspaces, generator=generator)
    return drawn < rates[:, None, None], weights


def mask_items(
    n: int, items: int, num_subspaces: int, generator: torch.Generator, noise: Noise = "uniform"
) -> tuple[Tensor, Tensor]:
    """As `mask_anywhere`, but an item's codes become MASK together: what the dense head is asked.

    For one code, the chance and the weight are the same.
    """
    rates, weights = draw_rates(n, generator, noise)
    drawn = torch.rand(n, items, 1, generator=generator).expand(-1, -1, num_subspaces)
    return drawn < rates[:, None, None], weights


def mask_one_item(
    n: int, num_subspaces: int, full_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A share of n items has all codes masked, the others k of them, k uniform in 1 .. L.

    Returns (n, L) bool and the weights L / k, (n,). For the k of the others that is exactly the
    expected loss of `mask_anywhere` for one item: there k codes are masked with probability
    1 / (L + 1) for every k, and their weight is on average (L + 1) / k.
    """
    count = torch.randint(1, num_subspaces + 1, (n,), generator=generator)
    is_full = torch.rand(n, generator=generator) < full_share
    count = torch.where(is_full, num_subspaces, count)
    order = torch.rand(n, num_subspaces, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < count[:, None], num_subspaces / count
