"""A small exported network through `decode`: ONNX Runtime finds what torch finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from worlds import catalogue_of, job_of

from service.decoding.decoder import Decoder
from service.decoding.denoiser import Denoiser
from service.decoding.job import Decoded, Job
from service.decoding.onnx_denoiser import OnnxDenoiser
from service.decoding.schedule import Schedule
from service.decoding.trie import SidTrie
from training.config import ModelConfig
from training.export import export_graphs
from training.model import MaskedDiffusionModel
from training.torch_denoiser import TorchDenoiser

NUM_SUBSPACES, NUM_CODES, HISTORY_LENGTH, VECTOR_DIMS = 4, 12, 6, 5
RANDOM = np.random.default_rng(0)
TRIE = SidTrie(
    catalogue_of(
        RANDOM.integers(0, NUM_CODES, (300, NUM_SUBSPACES)),
        NUM_CODES,
        RANDOM.standard_normal((300, VECTOR_DIMS)).astype(np.float16),
    )
)
# Different schedules, widths and history lengths in one batch, an empty and a long one among them.
BATCH = [
    job_of(schedule=Schedule((1, 1, 2)), history=[5, 9, 200], k=10, beam_width=10),
    job_of(schedule=Schedule((4,)), history=[], k=20, beam_width=20),
    job_of(schedule=Schedule((1, 1, 1, 1)), history=range(9), k=5, beam_width=12, excluded=[3, 4]),
    job_of(schedule=Schedule((2, 2)), history=[7], k=10, beam_width=30),
    job_of(schedule=Schedule((1, 3)), history=[7, 8, 299, 1], k=3, beam_width=5),
]


@pytest.fixture(scope="module")
def denoisers() -> tuple[TorchDenoiser, OnnxDenoiser]:
    """The same network, its weights spread so that its log-probs differ by whole nats."""
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, num_heads=2, encoder_layers=1, decoder_layers=1, history_length=HISTORY_LENGTH
    )
    model = MaskedDiffusionModel(
        config, num_subspaces=NUM_SUBSPACES, num_codes=NUM_CODES, vector_dims=VECTOR_DIMS
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    encoder, decoder, _ = export_graphs(model)
    return TorchDenoiser(model), OnnxDenoiser(
        encoder,
        decoder,
        num_subspaces=NUM_SUBSPACES,
        num_codes=NUM_CODES,
        history_length=HISTORY_LENGTH,
        repeat_bias=model.repeat_bias.item(),
    )


def decode_all(batch: list[Job], denoiser: Denoiser) -> list[Decoded]:
    return Decoder(TRIE, denoiser).decode(batch)[0]


def test_onnx_runtime_recommends_what_torch_recommends(
    denoisers: tuple[TorchDenoiser, OnnxDenoiser],
) -> None:
    given, exported = (decode_all(BATCH, denoiser) for denoiser in denoisers)
    for job, ours, theirs in zip(BATCH, exported, given, strict=True):
        assert len(ours.rows) == job.k
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert np.allclose(ours.scores, theirs.scores, atol=1e-3)
    assert len({float(answer.scores[0]) for answer in exported}) == len(BATCH)


def test_a_batch_equals_its_jobs_alone(denoisers: tuple[TorchDenoiser, OnnxDenoiser]) -> None:
    _, exported = denoisers
    for job, answer in zip(BATCH, decode_all(BATCH, exported), strict=True):
        (alone,) = decode_all([job], exported)
        assert answer.rows.tolist() == alone.rows.tolist()
        assert np.allclose(answer.scores, alone.scores, atol=1e-3)
