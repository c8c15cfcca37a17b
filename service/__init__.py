"""Unmask's online service. It reads bundles and never imports the training package, torch or faiss.

Reading order:

1. `recommender` and `events`, the stories of the two requests that matter;
2. `decoding`, the search itself, and `batching`, which runs it for many requests at once;
3. `history`, where users' items and the answers they got are kept, behind a `breaker`;
   `attribution`, which writes the answers; `store_connection` and `store_url`, which server to
   ask; `embedded_valkey`, a store of our own;
4. `bundle` and its `manifest`, the contract with training, and `items`, their attributes;
5. `lifecycle`, the wiring, and `app`, `middleware`, `http_protocol`, `schemas`, the HTTP side;
6. `settings`, `metrics`, `errors`: the lists; `__main__`: the process;
7. `demo`, which starts that process and talks to it as a client does.
"""
