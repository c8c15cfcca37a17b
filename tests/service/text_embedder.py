"""A server that behaves like Text Embeddings Inference, in a thread: its limits, its errors.

Texts are embedded by their words. So equal texts have equal embeddings, and similar texts similar
ones.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
from tiny_bundle import EMBEDDING_DIMS

MAX_BATCH = 32
TOO_LONG = 2000  # characters; a real one counts tokens


def embedding_of(text: str, dims: int = EMBEDDING_DIMS) -> list[float]:
    """The sum of random directions of its words, of norm 1."""
    words = text.split() or [""]
    seeds = [zlib.crc32(word.encode()) for word in words]
    total = sum(np.random.default_rng(seed).normal(size=dims) for seed in seeds)
    found: list[float] = (total / np.linalg.norm(total)).astype(np.float32).tolist()
    return found


@dataclass
class TextEmbedder:
    """What it was asked, and what it should do instead of what a good server does.

    answers: raw bodies that are sent instead of embeddings, with their statuses, in this order
    """

    url: str = ""
    dims: int = EMBEDDING_DIMS
    max_batch: int = MAX_BATCH
    has_info: bool = True
    model: str = "a-model"
    batches: list[list[str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    answers: list[tuple[int, bytes]] = field(default_factory=list)

    def answer_to(self, inputs: Sequence[str]) -> tuple[int, Any]:
        if self.answers:
            return self.answers.pop(0)
        if len(inputs) > self.max_batch:
            message = f"batch size {len(inputs)} > maximum allowed batch size {self.max_batch}"
            return 422, {"error": message, "error_type": "Validation"}
        if "" in inputs:
            return 422, {"error": "`inputs` cannot be empty", "error_type": "Validation"}
        if max(map(len, inputs)) > TOO_LONG:
            return 413, {"error": "payload too large", "error_type": "Validation"}
        self.batches.append(list(inputs))
        return 200, [embedding_of(text, self.dims) for text in inputs]


@contextlib.contextmanager
def text_embedder(**fields: Any) -> Iterator[TextEmbedder]:
    """On a free port of 127.0.0.1."""
    embedder = TextEmbedder(**fields)

    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, body: Any) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client may have read enough
                self.wfile.write(data)

        def do_GET(self) -> None:
            embedder.paths.append(self.path)
            info = {"model_id": embedder.model, "max_client_batch_size": embedder.max_batch}
            known = self.path == "/info" and embedder.has_info
            self._send(200 if known else 404, info if known else b"not found")

        def do_POST(self) -> None:
            embedder.paths.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path == "/embed"
            self._send(*(embedder.answer_to(body["inputs"]) if known else (404, b"not found")))

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    embedder.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield embedder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
