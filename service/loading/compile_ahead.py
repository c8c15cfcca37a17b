"""`python -m service.loading.compile_ahead BUNDLE_DIRECTORY`: fills numba's cache for images.

Run it with NUMBA_CACHE_DIR set while an image is built. Then the kernel's machine code is there
when the service starts, and nothing has to be written. It decodes what priming decodes. What that
compiled is then compiled for the other levels of x86-64 too, which this processor may lack: such
code is not run. Prints how many functions had to be compiled for this processor: none if the cache
has them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from numba.core import event

from service.batching import LatencyModel
from service.bundles import Bundle
from service.decoding.loops import LEVELS, MADE_FOR, compiled_functions
from service.loading.priming import prime

Signatures = Mapping[str, Sequence[Any]]


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
    if MADE_FOR in LEVELS:
        signatures = {name: list(one.signatures) for name, one in compiled_functions.items()}
        others = [level for level in LEVELS if level != MADE_FOR]
        compile_for(others, signatures)
        print(f"Compiled them for {', '.join(others)} too.")


def compile_for(levels: Sequence[str], signatures: Signatures) -> None:
    """Put functions of the kernel into the cache as code for levels that need not be this one's.

    signatures: tuples of numba types, by module and name of the function
    """
    processes = []
    for level in levels:  # numba makes code for one processor only in a process
        os.environ.update(NUMBA_CPU_NAME=level, NUMBA_CPU_FEATURES="")
        processes.append(get_context("spawn").Process(target=_compile, args=(signatures,)))
        processes[-1].start()
    for process in processes:
        process.join()
        if process.exitcode:
            sys.exit("The functions could not be compiled for another level of x86-64: see above.")


def _compile(signatures: Signatures) -> None:
    for name, own in signatures.items():
        for types in own:
            compiled_functions[name].compile(types)


if __name__ == "__main__":
    main()
