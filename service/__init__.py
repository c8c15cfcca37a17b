"""Unmask's online service. It reads bundles and never imports the training package, torch or faiss.

Reading order:

1. `recommender` and `events`, the stories of the two requests that matter; `planning`, how a
   request is decoded, `jobs` and `answering`, from item ids to rows and back;
2. `decoding`, the search itself; `batching`, which runs it for many requests at once, with `lanes`,
   who waits, and `latency`, how long that takes;
3. `history`, what is kept of users, `redis_history`, where, behind a `breaker`; `attribution`,
   which writes the answers; `store_connection` and `store_url`, which server to ask;
   `embedded_valkey`, a store of our own;
4. `bundle` and its `manifest`, the contract with training, and `items`, their attributes;
   `bundle_store`, where bundles are, `priming`, before they answer, `residents`, those in memory;
5. `experiment`, `shadow`, `item_changes`: what may differ from request to request and day to day;
6. `lifecycle`, the wiring; `app`, `admin`, `http_errors`, `middleware`, `gate`, `keys`,
   `http_protocol`, `http_parser` and the `schemas`, the HTTP side; `port`; `traces`, `pauses`;
7. `settings`, `metrics`, `errors`: the lists; `__main__`: the process;
8. `demo`, which starts that process and talks to it as a client does.
"""

import os

# ONNX Runtime's own builds report to Microsoft from 1.29.0 on; it looks here as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
