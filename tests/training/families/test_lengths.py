"""SIDs of 4, 5 and 8 codes: schedules of presets adapt, and every family is searched within it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from service.decoding import Catalogue, Decoder, Job, Schedule, SidTrie
from training.config import ModelConfig
from training.evaluation.decoding_grid import grid_of
from training.families import family_of
from training.preset import load_config, preset_names

FAMILIES: dict[str, dict[str, Any]] = {
    "ours": {"family": "mdgr"},
    "published": {"family": "mdgr", "options": {"encoder": "bidirectional"}},
    "maskgr": {"family": "maskgr"},
    "tiger": {"family": "tiger"},
}
each_length = pytest.mark.parametrize("num_subspaces", [4, 5, 8])


@each_length
@pytest.mark.parametrize("preset", preset_names())
def test_schedules_of_a_preset_fit_sids_of_any_length(preset: str, num_subspaces: int) -> None:
    config = load_config(preset, [f"codebook.num_subspaces={num_subspaces}"])
    positions = num_subspaces + (config.codebook.collisions == "digit")
    r_warm, m_par = config.fit.validation_schedule.params(positions)
    schedule = Schedule.from_params(num_subspaces=positions, r_warm=r_warm, m_par=m_par)
    assert schedule.num_subspaces == positions
    points = grid_of(
        config.evaluation,
        positions,
        12_000,
        config.fit.ranking,
        autoregressive=family_of(config.model.family).autoregressive,
    )
    assert points
    for point in points:
        made = Schedule.from_params(num_subspaces=positions, r_warm=point.r_warm, m_par=point.m_par)
        assert made.num_subspaces == positions


@each_length
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_searched_within_sids_of_any_length(name: str, num_subspaces: int) -> None:
    """An untrained network, every setting of a small grid: k distinct items, none excluded."""
    settings = FAMILIES[name]
    family = family_of(settings["family"])
    random = np.random.default_rng(0)
    codes = random.integers(0, 6, (80, num_subspaces)).astype(np.uint16)
    catalogue = Catalogue(tuple(map(str, range(80))), codes, 6, np.zeros(80, np.int64))
    model = ModelConfig(
        width=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        history_length=4,
        item_vectors=False,
        **settings,
    )
    torch.manual_seed(0)
    denoiser = family.denoiser(family.build(catalogue, model).eval())
    decoder = Decoder(SidTrie(catalogue), denoiser)
    config = load_config("tiny", ["evaluation.remasks=[0,2]"]).evaluation
    histories = [np.array(rows, np.int32) for rows in ([3], [5, 7, 9, 11, 13], [])]
    for point in grid_of(config, num_subspaces, 80, "rows", autoregressive=family.autoregressive):
        schedule = Schedule.from_params(
            num_subspaces=num_subspaces, r_warm=point.r_warm, m_par=point.m_par
        )
        jobs = [
            Job(
                history,
                10,
                schedule,
                point.beam_width,
                history,
                ranking=point.ranking,
                order=point.order,
                remask=point.remask,
            )
            for history in histories
        ]
        for job, answer in zip(jobs, decoder.decode(jobs)[0], strict=True):
            assert len(set(answer.rows.tolist()) - set(job.history.tolist())) == 10
            assert answer.nfe <= schedule.nfe + (point.remask > 0)
