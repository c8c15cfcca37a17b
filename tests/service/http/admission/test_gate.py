"""The gate lets in as many as leave within the SLO, in all circumstances."""

from __future__ import annotations

from service.http.admission.gate import BURST, WINDOW_S, Gate, PlaceInGate


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def steady(gate: Gate, clock: Clock, rate: float, seconds: float = 2.0) -> None:
    """Requests that leave at a steady rate."""
    for _ in range(int(rate * seconds)):
        gate.enter()
        clock.now += 1 / rate
        gate.leave(served=True)


def test_the_limit_follows_the_rate_at_which_requests_leave() -> None:
    clock = Clock()
    gate = Gate(0.2, 1000, clock)
    assert gate.limit == BURST
    steady(gate, clock, 2000)
    assert abs(gate.limit - 200) <= 1
    steady(gate, clock, 500)
    assert abs(gate.limit - 50) <= 1
    steady(gate, clock, 20)
    assert gate.limit == BURST
    steady(gate, clock, 50_000)
    assert gate.limit == 1000


def test_a_full_gate_admits_again_when_one_leaves() -> None:
    gate = Gate(0.1, 3, Clock())
    for _ in range(3):
        assert gate.admits()
        gate.enter()
    assert not gate.admits()
    gate.leave(served=True)
    assert gate.admits()
    assert gate.inside == 2


def test_a_pause_does_not_count_as_a_rate_of_nothing_before_anything_left() -> None:
    clock = Clock()
    gate = Gate(0.2, 1000, clock)
    steady(gate, clock, 2000)
    before = gate.limit
    clock.now += WINDOW_S / 2
    assert gate.limit == before


def test_refusals_inside_do_not_raise_the_limit() -> None:
    clock = Clock()
    gate = Gate(0.2, 1000, clock)
    steady(gate, clock, 500)
    for _ in range(5000):
        gate.enter()
        clock.now += 0.0002
        gate.leave(served=False)
    assert gate.limit == BURST


def test_a_place_is_taken_once_and_given_back_once() -> None:
    gate = Gate(1, 256)
    place = PlaceInGate(gate)
    assert place.take()
    assert place.take()
    assert gate.inside == 1
    place.give_back(served=True)
    place.give_back(served=True)
    assert gate.inside == 0
