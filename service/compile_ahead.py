"""`python -m service.compile_ahead BUNDLE_DIRECTORY`: numba's cache with the kernel's machine code.

For images: built with NUMBA_CACHE_DIR set, the code is there when the service starts on such a
processor, and nothing need be written. Decodes what priming decodes. Says how many functions had to
be compiled: none where the cache has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from numba.core import event

from service.bundle import Bundle
from service.latency import LatencyModel
from service.priming import prime


def main(directory: str) -> None:
    with event.install_recorder("numba:compile") as compilations:
        prime(Bundle.load(Path(directory)), LatencyModel())
    names = {what.data["dispatcher"].__name__ for _, what in compilations.buffer if what.is_start}
    print(f"Compiled {len(names)} functions.")


if __name__ == "__main__":
    main(*sys.argv[1:])
