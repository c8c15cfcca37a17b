"""Keys: who may ask, and how often."""

from __future__ import annotations

import contextlib

import pytest
from pydantic import SecretStr

from service.errors import Forbidden, Overloaded, Unauthenticated
from service.http.admission.keys import Keys

CLIENT, OTHER, ADMIN = (SecretStr(key) for key in ("client-key", "other-key!", "admin-key!"))


def test_clients_and_administrators() -> None:
    keys = Keys([CLIENT, OTHER], [ADMIN], None)
    for key in ("client-key", "other-key!", "admin-key!"):
        keys.check_client(key)
    for key in (None, "", "client-ke", "client-key2", "clïent"):
        with pytest.raises(Unauthenticated):
            keys.check_client(key)
        with pytest.raises(Unauthenticated):
            keys.check_admin(key)
    with pytest.raises(Forbidden):
        keys.check_admin("client-key")
    keys.check_admin("admin-key!")


def test_without_client_keys_everybody_may_ask_and_nobody_administers() -> None:
    keys = Keys([], [], None)
    keys.check_client(None)
    keys.check_client("anything")
    with pytest.raises(Unauthenticated):
        keys.check_admin("anything")


def test_each_key_has_its_own_rate_with_a_second_of_burst() -> None:
    now = 100.0
    keys = Keys([CLIENT, OTHER], [ADMIN], 10, clock=lambda: now)

    def allowed(key: str, tries: int) -> int:
        done = 0
        for _ in range(tries):
            with contextlib.suppress(Overloaded):
                keys.check_client(key)
                done += 1
        return done

    assert allowed("client-key", 30) == 10
    with pytest.raises(Overloaded) as refused:
        keys.check_client("client-key")
    assert refused.value.reason == "rate_limit"
    assert allowed("other-key!", 30) == 10
    assert allowed("admin-key!", 30) == 30
    now += 0.5
    assert allowed("client-key", 30) == 5
    now += 60
    assert allowed("client-key", 30) == 10  # no more is saved up


def test_a_call_that_asks_for_more_uses_up_what_comes_later() -> None:
    now = 100.0
    keys = Keys([CLIENT, OTHER], [ADMIN], 10, clock=lambda: now)
    for key in ("client-key", "admin-key!"):
        keys.check_client(key)
        keys.charge(key, 31)  # 32 in all: 3.2 seconds' worth
    keys.check_client("admin-key!")
    keys.check_client("other-key!")
    with pytest.raises(Overloaded) as refused:
        keys.check_client("client-key")
    assert refused.value.retry_after_s == 3  # 2.25 seconds
    now += 2
    with pytest.raises(Overloaded):
        keys.check_client("client-key")
    now += 0.4
    keys.check_client("client-key")
    Keys([], [], None).charge(None, 31)
