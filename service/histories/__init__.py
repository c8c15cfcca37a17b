"""What is kept of users: histories, the event log, marks, and the answers that users got.

Events go in, histories come out. An event that is sent twice is stored once. Only `redis_store`,
its `scripts` and `event_log` know keys and commands. Only `connections` knows which server to ask.
Nothing here knows bundles, models or HTTP.

Reading order: `store` (the protocol), `events` (the story of POST /events), `redis_store` and
`scripts`, `event_log` (accepted events are kept for training), `connections` with `store_url`,
`calls` (a breaker, a limit of time, several reads in one call), `trouble` (a store's own reason for
a failure, in words), `embedded_valkey` (a store that the service runs itself), and the folders
`background` (answers are remembered, users of items are counted) and `transfer` (histories and
events from and to files).
"""

from service.histories.background import AnswerMemory, Counted, Trending
from service.histories.embedded_valkey import EmbeddedValkey, reached_store, url_at
from service.histories.events import store_events
from service.histories.redis_store import RedisHistoryStore
from service.histories.store import HistoryStore, RememberedAnswer
from service.histories.store_url import parse_store_url
from service.histories.transfer import (
    command_parser,
    export_events,
    export_histories,
    load_histories,
    read_histories,
    run_command,
)

__all__ = [
    "AnswerMemory",
    "Counted",
    "EmbeddedValkey",
    "HistoryStore",
    "RedisHistoryStore",
    "RememberedAnswer",
    "Trending",
    "command_parser",
    "export_events",
    "export_histories",
    "load_histories",
    "parse_store_url",
    "reached_store",
    "read_histories",
    "run_command",
    "store_events",
    "url_at",
]
