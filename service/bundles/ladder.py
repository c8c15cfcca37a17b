"""A bundle's ladder: its default decoding first, then ever faster settings that its grid measured.

The grid is in the manifest's `facts`, which may hold anything. What cannot be read is left out.
"""

from __future__ import annotations

from math import isfinite

from pydantic import ValidationError

from service.bundles.decoding_defaults import DecodingDefaults
from service.bundles.manifest import Manifest

MAX_RUNGS = 32  # each rung is checked for every request
FASTER = 0.9  # share of the time of the rung above; less difference would be noise


def ladder_of(manifest: Manifest) -> tuple[DecodingDefaults, ...]:
    """The default decoding, then the settings that are ever faster by the grid in `facts`.

    Of two rungs, the upper has the higher recall. A bundle without a grid has one rung. Points that
    do not fit the bundle are left out, because facts are not part of its contract.
    """
    ladder = [manifest.decoding]
    grid = manifest.facts.get("grid")
    points = grid.get("points") if isinstance(grid, dict) else None
    measured = [_measured(point) for point in points] if isinstance(points, list) else []
    known = [entry for entry in measured if entry and manifest.misfit(entry[0]) is None]
    ms_of = {decoding: ms for decoding, ms, _ in known}
    fastest = ms_of.get(manifest.decoding)
    if fastest is None:
        return tuple(ladder)
    for decoding, ms, _ in sorted(known, key=lambda entry: (-entry[2], entry[1])):
        if ms < FASTER * fastest and len(ladder) < MAX_RUNGS:
            ladder.append(decoding)
            fastest = ms
    return tuple(ladder)


def _measured(point: object) -> tuple[DecodingDefaults, float, float] | None:
    """A point of the grid: its decoding, milliseconds, and recall@10; None if it is unreadable."""
    if not isinstance(point, dict):
        return None
    names = DecodingDefaults.model_fields
    try:
        # Bundles are older than some settings: what was not measured had its default.
        asked = {name: point[name] for name in names if name in point}
        decoding = DecodingDefaults.model_validate(asked)
        ms, recall = float(point["milliseconds"]), float(point["recall@10"])
    except (ValidationError, KeyError, TypeError, ValueError, OverflowError):
        return None
    return (decoding, ms, recall) if ms > 0 and isfinite(ms) and isfinite(recall) else None
