"""The latency model, tested with costs that are known."""

from __future__ import annotations

import numpy as np
import pytest

from service.batching.latency_model import LatencyModel, Work
from service.decoding import Schedule

SCHEDULES = [Schedule(steps) for steps in [(8,), (1, 7), (4, 4), (1, 1, 1, 1, 2, 2), (1,) * 8]]


def cost(work: Work) -> float:
    return 0.0004 + 0.0005 * work.jobs + 0.0003 * work.calls + 0.00003 * work.rows


def batches(seed: int, number: int) -> list[Work]:
    random = np.random.default_rng(seed)
    return [
        Work.together(
            Work.of(SCHEDULES[random.integers(len(SCHEDULES))], int(random.integers(10, 200)))
            for _ in range(random.integers(1, 17))
        )
        for _ in range(number)
    ]


def test_the_work_of_a_job_and_of_a_batch() -> None:
    one_call, paper = Work.of(Schedule((8,)), 50), Work.of(Schedule((1, 1, 1, 1, 2, 2)), 50)
    assert one_call == Work(1, 1, 1)
    assert paper == Work(1, 6, 251)
    assert Work.together([one_call, paper, paper]) == Work(3, 6, 503)
    assert Work.together([]) == Work(0, 0, 0)


def test_it_forecasts_batches_never_seen_in_spite_of_noise() -> None:
    model, noise = LatencyModel(), np.random.default_rng(1)
    for work in batches(0, 300):
        model.observe(work, cost(work) * noise.uniform(0.9, 1.1))
    for work in [*batches(7, 50), Work.of(SCHEDULES[0], 50), Work.of(SCHEDULES[-1], 200)]:
        assert model.seconds(work) == pytest.approx(cost(work), rel=0.15)
    assert 0.01 < model.error < 0.15


def test_one_kind_of_traffic_is_learnt_exactly_and_does_not_forget_the_others() -> None:
    model = LatencyModel()
    for work in batches(0, 300):
        model.observe(work, cost(work))
    usual = Work.of(SCHEDULES[0], 50)
    for _ in range(1000):
        model.observe(usual, cost(usual))
    assert model.seconds(usual) == pytest.approx(cost(usual), rel=0.01)
    slow = Work.of(SCHEDULES[-1], 200)
    assert model.seconds(slow) == pytest.approx(cost(slow), rel=0.1)


def test_a_machine_that_slows_down_is_noticed_within_the_memory() -> None:
    model = LatencyModel()
    for work in batches(0, 100):
        model.observe(work, cost(work))
    for work in batches(1, 200):
        model.observe(work, 3 * cost(work))
    for work in batches(2, 20):
        assert model.seconds(work) == pytest.approx(3 * cost(work), rel=0.2)


def test_it_forecasts_0_before_the_first_batch_and_never_less() -> None:
    model, noise = LatencyModel(), np.random.default_rng(1)
    assert model.seconds(Work(3, 6, 500)) == 0
    for work in batches(3, 50):
        model.observe(work, noise.uniform(0, 0.1))
        assert min(model.seconds(other) for other in batches(4, 10)) >= 0
    assert 0 <= model.error <= 1
