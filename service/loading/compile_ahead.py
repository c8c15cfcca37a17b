"""`python -m service.loading.compile_ahead BUNDLE_DIRECTORY`: fills numba's cache for images.

Run it with NUMBA_CACHE_DIR set while an image is built. Then the kernel's machine code is there
when the service starts on such a processor, and nothing has to be written. It decodes what priming
decodes. It prints how many functions had to be compiled: none if the cache has them all.
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
