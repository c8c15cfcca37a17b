"""The breaker, compared with a plain model of what it should do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.histories.calls import FAILURES, OPEN_S, Breaker, BreakerState


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_and_probes_with_one_call() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES - 1):
        assert breaker.admits()
        breaker.failed()
    assert breaker.admits()
    breaker.succeeded()
    for _ in range(FAILURES):
        assert breaker.state == BreakerState.CLOSED
        assert breaker.admits()
        breaker.failed()
    assert breaker.state == BreakerState.OPEN
    clock.now = OPEN_S - 0.01
    assert not breaker.admits()
    clock.now = OPEN_S
    assert breaker.state == BreakerState.HALF_OPEN
    assert breaker.admits()
    assert not breaker.admits()
    breaker.failed()
    assert breaker.state == BreakerState.OPEN
    clock.now += OPEN_S
    assert breaker.admits()
    breaker.gave_up()  # says nothing, so the next one probes
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.state == BreakerState.CLOSED
    assert breaker.admits()
    assert breaker.admits()


@given(st.lists(st.tuples(st.sampled_from(["succeeded", "failed", "gave_up"]), st.floats(0, 3))))
def test_calls_are_refused_only_while_it_is_not_closed(calls: list[tuple[str, float]]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    failures, opened = 0, None
    for outcome, passed in calls:
        clock.now += passed
        refused = opened is not None and clock.now < opened + OPEN_S
        assert breaker.admits() == (not refused)
        if refused:
            continue
        getattr(breaker, outcome)()
        if outcome == "succeeded":
            failures, opened = 0, None
        elif outcome == "failed":
            failures += 1
            opened = clock.now if failures >= FAILURES else None
