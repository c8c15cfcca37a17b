"""What is kept of users: histories, marks of events, and the answers that users got.

Events go in, histories come out. An event that is sent twice is stored once. Only `redis_store` and
its `scripts` know keys and commands. Only `connections` knows which server to ask. Nothing here
knows bundles, models or HTTP.

Reading order: `store` (the protocol), `events` (the story of POST /events), `redis_store` and
`scripts`, `connections` with `store_url` and `breaker`, `trouble` (a store's own reason for a
failure, in words), `attribution` (answers are remembered), and `embedded_valkey` (a store that the
service runs itself).
"""

from service.histories.attribution import AnswerMemory
from service.histories.embedded_valkey import EmbeddedValkey
from service.histories.events import store_events
from service.histories.redis_store import RedisHistoryStore
from service.histories.store import HistoryStore, RememberedAnswer
from service.histories.store_url import parse_store_url

__all__ = [
    "AnswerMemory",
    "EmbeddedValkey",
    "HistoryStore",
    "RedisHistoryStore",
    "RememberedAnswer",
    "parse_store_url",
    "store_events",
]
