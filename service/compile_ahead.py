"""`python -m service.compile_ahead BUNDLE`: fill numba's cache with the kernel's machine code.

For images whose file system cannot be written: built with NUMBA_CACHE_DIR set, the code is there
when the service starts, and no replica compiles. Decodes what priming decodes, which is all that
a bundle needs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from service.bundle import Bundle
from service.bundle_store import configured_path
from service.latency import LatencyModel
from service.priming import prime


def main(folder: str) -> None:
    bundle = Bundle.load(configured_path(Path(folder).parent, Path(folder).name))
    prime(bundle, LatencyModel())
    print(f"Compiled the kernel for {bundle.manifest.ref}.")


if __name__ == "__main__":
    main(*sys.argv[1:])
