"""`python -m service.loading.compile_ahead BUNDLE_DIRECTORY`: numba's cache with the kernel's
machine code.

For images: built with NUMBA_CACHE_DIR set, the code is there when the service starts on such a
processor, and nothing need be written. Decodes what priming decodes. Says how many functions had to
be compiled: none where the cache has them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from numba.core import event

from service.batching import LatencyModel
from service.bundles import Bundle
from service.loading.priming import prime


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m service.loading.compile_ahead", description=__doc__
    )
    parser.add_argument("directory", type=Path, help="a bundle")
    directory = parser.parse_args().directory
    with event.install_recorder("numba:compile") as compilations:
        prime(Bundle.load(directory), LatencyModel())
    names = {what.data["dispatcher"].__name__ for _, what in compilations.buffer if what.is_start}
    print(f"Compiled {len(names)} functions.")


if __name__ == "__main__":
    main()
