"""What is kept of users: histories, marks of events, and the answers they were given.

Events go in, histories come out, and an event that is sent twice is stored once. Only `redis_store`
knows keys, only `connections` knows which server to ask. Nothing here knows bundles,
models or HTTP.

Reading order: `store` (the protocol), `events` (the story of POST /events), `redis_store` with
`scripts`, `connections` with `store_url` and `breaker`, `trouble` (a store's own reason, in words),
`attribution` (answers are remembered), and `embedded_valkey` (a store of our own).
"""

from service.histories.attribution import Remembering
from service.histories.embedded_valkey import EmbeddedValkey
from service.histories.events import store_events
from service.histories.redis_store import RedisHistoryStore
from service.histories.store import HistoryStore, Shown
from service.histories.store_url import parse_store_url

__all__ = [
    "EmbeddedValkey",
    "HistoryStore",
    "RedisHistoryStore",
    "Remembering",
    "Shown",
    "parse_store_url",
    "store_events",
]
