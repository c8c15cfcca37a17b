"""An answer of POST /explain, as the page may get it: two calls, and beams that died."""

from __future__ import annotations

from typing import Any

TITLE = "<i>Tea</i> pot"


def _item(n: int) -> dict[str, Any]:
    return {"item_id": f"item-{n}", "title": f"<u>Title</u> {n}"}


def _filled(position: int, code: int, probability: float) -> dict[str, Any]:
    return {
        "position": position,
        "code": code,
        "settled": position == 3,
        "probability": probability,
        "network_probability": None,
        "rank": 1 + position,
        "num_codes": 16,
    }


EXPLAINED: dict[str, Any] = {
    "user_id": "somebody",
    "item": {
        "item_id": "item-9",
        "title": TITLE,
        "sid": [4, 8, 15, 3],
        "categories": ["Kitchen"],
        "attributes": {},
        "popularity_rank": 10,
    },
    "sentences": ["Because of <u>Title</u> 1 and <u>Title</u> 2.", "It was sure from call 1."],
    "rank": 1,
    "score": -1.5,
    "in_answer_as": "found",
    "reason": None,
    "died_at_call": None,
    "steps": [
        {
            "call": 1,
            "kind": "fill",
            "filled": [_filled(1, 8, 0.75), _filled(0, 4, 0.05)],
            "survivors_before": 1200,
            "survivors": 31,
            "beams": 1,
            "candidates": 90,
            "kept": 10,
            "place": 2,
            "score": -0.4,
            "last_kept_score": -3.0,
            "lived": True,
            "dead_beams": [
                {
                    "sid": [4, 7, None, None],
                    "place": 11,
                    "score": -3.25,
                    "survivors": 12,
                    "example": _item(5),
                }
            ],
        },
        {
            "call": 2,
            "kind": "fill",
            "filled": [_filled(2, 15, 0.5), _filled(3, 3, 1.0)],
            "survivors_before": 31,
            "survivors": 1,
            "beams": 10,
            "candidates": 40,
            "kept": 10,
            "place": None,
            "score": -1.5,
            "last_kept_score": None,
            "lived": True,
            "dead_beams": [],
        },
    ],
    "codes": [
        {
            "position": position,
            "code": code,
            "num_items": 40,
            "items": [_item(n) for n in range(5)],
            "categories": [{"category": "<b>Kitchen</b>", "share": 0.6, "share_of_all": 0.02}],
            "history": [_item(1)] if position else [],
        }
        for position, code in enumerate([4, 8, 15, 3])
    ],
    "score_parts": {
        "network": -2.0,
        "neighbour_prior": 1.25,
        "repeat_bias": 0.0,
        "boost": 0.0,
        "dense": 0.0,
        "normalisation": -0.75,
    },
    "because": [{**_item(1), "share": 0.7}, {**_item(2), "share": 0.3}],
    "served_by": "model",
    "degraded": False,
    "degraded_reasons": [],
    "warnings": [],
    "bundle": "tiny@1",
    "experiment": None,
    "decoding": None,
    "history": {"source": "request", "length": 2, "unknown_items": 0},
    "timings_ms": {"total": 3.0},
}
