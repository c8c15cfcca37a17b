"""Unmask's online service. It reads bundles and never imports the training package, torch or faiss.

Rooms, from the top floor down (docs/structure.md has the picture): `http` knows HTTP. `lifecycle`
starts and stops all parts. `recommending` is the story of a request. `loading` keeps bundles in
memory. `batching` queues jobs for the decode thread. `histories` keeps what users did. `bundles` is
the format that training writes. `decoding` is the search. `schemas` and `telemetry` are what
clients and operators see. `page` is what a browser gets. `settings`, `errors` and `tasks` are two
lists and a small tool. `__main__` is the process. `demo` and `seed` talk to it as clients do.

Reading order: `recommending`, `decoding`, `batching`, `histories`, `bundles`, `loading`,
`lifecycle`, `http`.
"""

import os

# ONNX Runtime's own builds report to Microsoft from 1.29.0 on. ONNX Runtime reads this variable
# when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
