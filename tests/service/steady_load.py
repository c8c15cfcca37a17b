"""Clients in threads that ask again and again, while a test does something else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx

Ask = Callable[[httpx.Client, int], None]


@dataclass
class Load:
    """How often each client has asked. `stop` ends each client after its present request.

    has_failed: whether a client got a wrong answer; the end of the load raises it
    """

    counts: list[int]
    has_failed: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def total(self) -> int:
        return sum(self.counts)

    def stop(self) -> None:
        self.stopped.set()


@contextlib.contextmanager
def steady_load(url: httpx.URL, asks: Sequence[Ask], *, pause_s: float = 0) -> Iterator[Load]:
    """One thread and one keep-alive client for each of `asks`, called again and again.

    Each call gets the client and the number of the call, and `pause_s` lies between two. An
    exception in a call ends its thread, and is raised at the end.
    """
    load = Load([0] * len(asks))

    def run(place: int) -> None:
        with httpx.Client(base_url=url, timeout=300) as client:
            while not load.stopped.is_set():
                try:
                    asks[place](client, load.counts[place])
                except BaseException:
                    load.has_failed = True
                    raise
                load.counts[place] += 1
                load.stopped.wait(pause_s)

    with ThreadPoolExecutor(len(asks)) as pool:
        threads = [pool.submit(run, place) for place in range(len(asks))]
        try:
            yield load
        finally:
            load.stop()
        for thread in threads:
            thread.result()
