"""The search for the highest rate within the SLO, for a service whose limit is known."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import pytest

from loadtest.clients.capacity import Capacity, find_capacity, within
from loadtest.clients.open_loop import Load, Sent

SLO_MS = 100.0


def load(
    rate: float, milliseconds: float, requests: int = 1000, refused: int = 0, cpu: float = 0.1
) -> Load:
    answered = [Sent(0.0, milliseconds / 1000, 200) for _ in range(requests - refused)]
    return Load(rate, 1.0, cpu, answered + [Sent(0.0, 0.001, 429) for _ in range(refused)])


@dataclass
class Service:
    """Fast up to `limit` requests a second, too slow above."""

    limit: float
    tried: list[tuple[float, float, float]] = field(default_factory=list)

    async def probe(self, rate: float, seconds: float, *, discard_s: float) -> Load:
        self.tried.append((rate, seconds, discard_s))
        return load(rate, 20 if rate <= self.limit else 300)

    def capacity(self, guess: float, min_answers: int = 0) -> Capacity:
        return asyncio.run(
            find_capacity(
                self.probe,
                SLO_MS,
                guess=guess,
                growth=1.3,
                bisections=2,
                probe_s=8,
                min_answers=min_answers,
            )
        )


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.clients.capacity.PAUSE_S", 0.0)


@pytest.mark.parametrize("limit", [3.0, 99.0, 100.0, 517.0])
@pytest.mark.parametrize("guess", [20.0, 100.0, 2000.0])
def test_what_is_found_is_just_below_the_limit(limit: float, guess: float) -> None:
    found = Service(limit).capacity(guess)
    assert limit / 1.3**0.25 <= found.rate <= limit
    assert found.load is not None
    assert found.load.rate == found.rate


def test_no_rate_is_tried_twice() -> None:
    service = Service(limit=200)
    service.capacity(guess=100)
    rates = [rate for rate, _, _ in service.tried]
    assert len(set(rates)) == len(rates)


def test_a_service_that_holds_nothing_has_no_capacity() -> None:
    assert Service(limit=0.0).capacity(guess=4) == Capacity(0.0, None)


def test_slow_services_are_asked_longer() -> None:
    service = Service(limit=12)
    service.capacity(guess=10, min_answers=500)
    for rate, seconds, discard_s in service.tried:
        assert (seconds - discard_s) * rate >= 500 * (1 - 1e-9)
        assert math.isclose(discard_s, 0.2 * (seconds - discard_s))


def test_a_rate_is_held_in_time_and_without_refusals() -> None:
    assert within(load(10, 99), SLO_MS)
    assert not within(load(10, 101), SLO_MS)
    assert within(load(10, 20, refused=1), SLO_MS)
    assert not within(load(10, 20, refused=2), SLO_MS)
    assert not within(load(10, 20, refused=1000), SLO_MS)


def test_a_busy_generator_is_told() -> None:
    assert Capacity(10, load(10, 20, cpu=0.95)).generator_busy
    assert not Capacity(10, load(10, 20, cpu=0.5)).generator_busy
    assert not Capacity(0.0, None).generator_busy
