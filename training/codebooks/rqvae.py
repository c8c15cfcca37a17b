"""Fits an RQ-VAE: residual levels of a latent that is learnt together with them (TIGER).

A small network makes the latent of a vector, levels of centroids quantise it, another one rebuilds
the vector from what they say (arXiv 2305.05065 sec. 3.1, after arXiv 2107.03312). torch trains;
what comes out is the kernel's `RQVAECodebook`, and its codes are those that count: training has no
encoder of its own. Knows nothing of items or files.

vectors: (num_vectors, d) float32
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.decoding import RQVAECodebook
from training.config import CodebookConfig
from training.errors import FitDiverged

LATENT_DIMS, HIDDEN = 32, 256
COMMITMENT = 0.25  # weight of what pulls latents to their centroids
MINIBATCH, LEARNING_RATE = 1024, 1e-3
SETTLED_FROM = 0.9  # share of the epochs after which unused codes stay as they are

Floats = NDArray[np.float32]


class RQVAE(nn.Module):
    """The two networks and the levels: (num_subspaces, num_codes, LATENT_DIMS)."""

    def __init__(self, d: int, num_subspaces: int, num_codes: int) -> None:
        super().__init__()
        self.to_latent = _network(d, LATENT_DIMS)
        self.from_latent = _network(LATENT_DIMS, d)
        self.levels = nn.Parameter(torch.zeros(num_subspaces, num_codes, LATENT_DIMS))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, codes (n, num_subspaces), and what each level saw (num_subspaces, n, latent).

        The loss of a vector is the squared error of its rebuilt one and, level by level, of the
        centroid to the residual, and COMMITMENT times that of the residual to the centroid. The
        gradient of the rebuilt vector passes the levels straight through to the latent.
        """
        latent = left = self.to_latent(vectors)
        losses = torch.zeros(len(vectors))
        codes, seen = [], []
        for centroids in self.levels:
            seen.append(left.detach())
            nearest = torch.cdist(seen[-1], centroids.detach()).argmin(dim=1)
            chosen = centroids[nearest]
            losses = losses + (chosen - left.detach()).square().sum(dim=1)
            losses = losses + COMMITMENT * (left - chosen.detach()).square().sum(dim=1)
            left = left - chosen.detach()
            codes.append(nearest)
        quantised = latent - left.detach()  # its value is the sum of the centroids
        losses = losses + (self.from_latent(quantised) - vectors).square().sum(dim=1)
        return losses.mean(), torch.stack(codes, dim=1), torch.stack(seen)


def fit_rqvae(
    vectors: Floats,
    num_codes: int,
    config: CodebookConfig,
    centroids_of: Callable[[Floats], Floats],
) -> RQVAECodebook:
    """Train for `config.rqvae_epochs` passes on one thread, so that a seed gives one codebook.

    centroids_of: (n, latent_dims) -> (num_subspaces, num_codes, latent_dims), where the levels
        begin: k-means of the latents of the untrained network
    A code that no vector had in an epoch begins again at the residual of one drawn at random; in
    the last tenth of the epochs it stays.
    Raises FitDiverged when the loss is not finite any more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return _trained(torch.from_numpy(vectors), num_codes, config, centroids_of)
    finally:
        torch.set_num_threads(threads)


def _trained(
    vectors: Tensor,
    num_codes: int,
    config: CodebookConfig,
    centroids_of: Callable[[Floats], Floats],
) -> RQVAECodebook:
    model = RQVAE(vectors.shape[1], config.num_subspaces, num_codes)
    with torch.no_grad():
        latents = model.to_latent(vectors).numpy()
        model.levels.copy_(torch.from_numpy(centroids_of(latents)))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for epoch in range(config.rqvae_epochs):
        unused = torch.ones(model.levels.shape[:2], dtype=torch.bool)
        kept = torch.empty(0, 0)
        for rows in torch.randperm(len(vectors)).split(MINIBATCH):
            loss, codes, seen = model(vectors[rows])
            kept = seen if seen.shape[1] >= kept.shape[1] else kept  # the last one may be small
            if not loss.isfinite():
                raise FitDiverged(f"the loss of the RQ-VAE is {loss.item()} in epoch {epoch + 1}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            unused[torch.arange(config.num_subspaces), codes] = False
        if epoch + 1 < SETTLED_FROM * config.rqvae_epochs:
            _revive(model, unused, kept)
    return RQVAECodebook(
        model.levels.detach().numpy().copy(),
        _layers_of(model.to_latent),
        _layers_of(model.from_latent),
    )


@torch.no_grad()
def _revive(model: RQVAE, unused: Tensor, seen: Tensor) -> None:
    """Move unused codes to residuals of their level, which a whole minibatch had."""
    levels, codes = unused.nonzero(as_tuple=True)
    model.levels[levels, codes] = seen[levels, torch.randint(seen.shape[1], (len(levels),))]


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, outputs),
    )


def _layers_of(network: nn.Sequential) -> tuple[Any, Any, Any]:
    """Of each linear layer the weights with the bias below: (inputs + 1, outputs) float32."""
    first, second, third = (
        torch.cat((layer.weight.T, layer.bias[None])).detach().contiguous().numpy()
        for layer in network
        if isinstance(layer, nn.Linear)
    )
    return first, second, third
