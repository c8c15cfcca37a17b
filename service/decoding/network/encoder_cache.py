"""Histories that were encoded before: for these, a request skips the encoder.

The key is the exact rows that the encoder sees. So a cache is valid for one network and one
numbering of rows, and every `Decoder` has its own. Memories stay where the denoiser keeps them, one
job each; the cache does not look inside. Several threads may use one cache. Knows nothing of users
or metrics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from service.decoding.arrays import Rows
from service.decoding.network.denoiser import Denoiser


class EncoderCache:
    """The memories of the `max_entries` different histories that were used last."""

    def __init__(self, max_entries: int) -> None:
        """max_entries: 1 or more."""
        self.max_entries = max_entries
        self._memories: OrderedDict[bytes, Any] = OrderedDict()  # used longest ago first
        self._lock = Lock()

    @property
    def num_entries(self) -> int:
        return len(self._memories)

    def memory_of(
        self,
        histories: Sequence[Rows],
        denoiser: Denoiser,
        encode: Callable[[Sequence[Rows]], Any],
    ) -> tuple[Any, int]:
        """The memory of a batch, and how many of its histories were encoded for it.

        histories: (n,) int32 rows each, all that the encoder sees
        encode: called at most once, with the histories that are not in the cache, each of them once
        """
        keys = [history.tobytes() for history in histories]
        memories = self._found(keys)
        missing = {
            key: history
            for key, history in zip(keys, histories, strict=True)
            if key not in memories
        }
        if missing:
            encoded = encode(list(missing.values()))  # without the lock, which others may need
            added = {
                key: denoiser.select(encoded, np.array([place]))
                for place, key in enumerate(missing)
            }
            self._add(added)
            if len(missing) == len(keys):
                return encoded, len(keys)
            memories |= added
        return denoiser.join([memories[key] for key in keys]), len(missing)

    def _found(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        with self._lock:
            found = {key: self._memories[key] for key in keys if key in self._memories}
            for key in found:
                self._memories.move_to_end(key)
        return found

    def _add(self, memories: dict[bytes, Any]) -> None:
        with self._lock:
            for key, memory in memories.items():
                self._memories[key] = memory
                self._memories.move_to_end(key)
            while len(self._memories) > self.max_entries:
                self._memories.popitem(last=False)
