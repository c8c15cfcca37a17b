"""Who may ask: bearer keys of clients and of administrators, and how often each key may ask.

Every check compares all keys, each in constant time. Without client keys everybody may ask. Without
administrator keys there are no administrators. Knows nothing of HTTP.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Sequence

from pydantic import SecretStr

from service.errors import Forbidden, Overloaded, Unauthenticated


class Keys:
    """The keys of one process.

    rate_limit: requests per second and key; bursts may have as many as one second allows; None = no
        limit
    clock: seconds, never going back
    """

    def __init__(
        self,
        api_keys: Sequence[SecretStr],
        admin_keys: Sequence[SecretStr],
        rate_limit: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api_keys = [key.get_secret_value().encode() for key in api_keys]
        self._admin_keys = [key.get_secret_value().encode() for key in admin_keys]
        self._interval_s = 1 / rate_limit if rate_limit else 0.0
        self._clock = clock
        self._free_at = [0.0] * max(1, len(self._api_keys))  # when a key's bucket is empty again

    def is_client(self, key: str | None) -> bool:
        """Whether a key belongs to a client or an administrator. Without client keys, everybody is
        a client.
        """
        return not self._api_keys or bool(_places([*self._api_keys, *self._admin_keys], key))

    def is_admin(self, key: str | None) -> bool:
        """Whether a key belongs to an administrator."""
        return bool(_places(self._admin_keys, key))

    def check_client(self, key: str | None) -> None:
        """Raise Unauthenticated for a wrong key, and Overloaded for a key that asks too often."""
        place = 0
        if self._api_keys:
            found = _places(self._api_keys, key)
            if not found:
                if _places(self._admin_keys, key):
                    return
                raise Unauthenticated("send a valid key: Authorization: Bearer <key>")
            place = found[0]
        if self._interval_s:
            now = self._clock()
            free_at = max(self._free_at[place], now) + self._interval_s
            early_s = free_at - self._interval_s / 2 - 1 - now
            if early_s > 0:
                message = "this key asks too often; try again later"
                raise Overloaded(message, reason="rate_limit", retry_after_s=math.ceil(early_s))
            self._free_at[place] = free_at

    def charge(self, key: str | None, requests: int) -> None:
        """Count `requests` more requests for a key that was let in. Later requests of it wait for
        them.
        """
        places = _places(self._api_keys, key) if self._api_keys else [0]
        for place in places[:1]:  # administrators have no limit
            self._free_at[place] = max(self._free_at[place], self._clock())
            self._free_at[place] += requests * self._interval_s

    def check_admin(self, key: str | None) -> None:
        """Raise Unauthenticated for a wrong key, and Forbidden for a client's key."""
        if self.is_admin(key):
            return
        if _places(self._api_keys, key):
            raise Forbidden("this needs an administrator's key")
        raise Unauthenticated("send an administrator's key: Authorization: Bearer <key>")


def _places(keys: Sequence[bytes], key: str | None) -> list[int]:
    """The indices at which a key is found. All comparisons are made, each in constant time."""
    sent = (key or "").encode()
    return [place for place, own in enumerate(keys) if hmac.compare_digest(own, sent)]
