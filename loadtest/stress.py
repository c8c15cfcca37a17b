"""Does the service keep its SLO at three times its capacity?

`python -m loadtest.stress --bundle DIR` starts the service on half of the cores (or
`--service-cores`) and loads it from the others, in an open loop. Phases: one client alone; higher
and higher rates until the SLO breaks (the capacity); a multiple of the capacity; the quiet time
after it; on request a long soak at four fifths of the capacity. `--compare-auto` repeats all phases
with `schedule="auto"`. Timings are of this machine; if the generator was busy, a line says so. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from loadtest.clients import (
    ANSWER_TIMEOUT_S,
    KNOWN_TARGETS,
    HeldOutUser,
    Load,
    ServiceProcess,
    find_capacity,
    knows_targets,
    open_loop,
    read_held_out,
    run_service,
)

LONE_REQUESTS = 300
FIRST_RATE = 20.0
GROWTH = 1.6
BISECTIONS = 3
CALM_S = 4.0
OWN_SETTINGS = {"bundle", "port", "slo_ms"}  # settings of the service that this tool gives
SOAK_SHARE = 0.8


def lone_client(url: str, users: list[HeldOutUser], parameters: dict[str, Any]) -> dict[str, float]:
    """One request after the other over one connection: median latency, and how much is decoding.

    Raises SystemExit with a sentence if there is no answer.
    """
    waited, decoded = [], []
    connection = HTTPConnection(url.removeprefix("http://"), timeout=ANSWER_TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    for number in range(LONE_REQUESTS):
        user = users[number % len(users)]
        body = json.dumps(user.request(**parameters)).encode()
        started = time.perf_counter()
        try:
            connection.request("POST", "/recommend", body, headers)
            answer = connection.getresponse().read()
        except (OSError, HTTPException) as error:
            raise SystemExit(
                f"request {number + 1} of one client alone got no answer ({type(error).__name__}): "
                "see the log of the service"
            ) from error
        waited.append(1000 * (time.perf_counter() - started))
        stages = json.loads(answer)["timings_ms"]
        decoded.append(sum(stages.get(stage, 0) for stage in ("encode", "denoise", "search")))
    connection.close()
    over = np.array(waited) - np.array(decoded)
    return {
        "p50_ms": float(np.median(waited)),
        "decode_p50_ms": float(np.median(decoded)),
        "over_decode_p50_ms": float(np.median(over)),
    }


async def stress(
    service: ServiceProcess,
    users: list[HeldOutUser],
    parameters: dict[str, Any],
    *,
    slo_ms: float,
    seconds: float,
    probe_s: float,
    multiple: float,
    rate: float | None,
) -> dict[str, Any]:
    """All phases for one kind of request. rate: the capacity if it is known, else None."""
    lone = await asyncio.to_thread(lone_client, service.url, users, parameters)
    print(
        f"one client alone: p50 {lone['p50_ms']:.2f} ms, of which decoding takes "
        f"{lone['decode_p50_ms']:.2f} ms and all else {lone['over_decode_p50_ms']:.2f} ms"
    )
    found = rate
    if found is None:
        capacity = await find_capacity(
            partial(open_loop, service.url, users, parameters=parameters),
            slo_ms,
            guess=FIRST_RATE,
            growth=GROWTH,
            bisections=BISECTIONS,
            probe_s=probe_s,
            on_probe=show_probe,
        )
        if not (found := capacity.rate):
            raise SystemExit(
                f"at no rate is p99 within {slo_ms:.0f} ms: give a larger --slo-ms, or fewer beams"
            )
    print(f"capacity: {found:.0f}/s with p99 within {slo_ms:.0f} ms")
    before, cpu = await counters(service.url), service.cpu_s
    load = await open_loop(service.url, users, multiple * found, seconds, parameters)
    calm = await open_loop(service.url, users, 10.0, CALM_S, parameters, seed=1)
    after = await counters(service.url)
    show(f"{multiple:g} x capacity", load)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    busy_s = grown["unmask_batch_duration_seconds_sum"]
    num_jobs = grown["unmask_batch_requests_sum"]
    batches = grown["unmask_batch_requests_count"]
    settled = [one for one in calm.answered() if one.due >= 2]
    recovered_ms = 1000 * float(np.median([one.seconds for one in settled])) if settled else None
    recovered = "no answer" if recovered_ms is None else f"p50 {recovered_ms:.2f} ms"
    print(
        f"batches of {num_jobs / max(1, batches):.1f}; decode thread busy {busy_s / seconds:.0%}, "
        f"service {(service.cpu_s - cpu) / (seconds + CALM_S):.2f} cores; "
        f"2 s after the load {recovered}"
    )
    return {
        "parameters": parameters,
        "alone": lone,
        "capacity": found,
        "overload": load.as_json(),
        "batch_requests": num_jobs / max(1, batches),
        "decode_busy": busy_s / seconds,
        "recovered_p50_ms": recovered_ms,
        "rss_mb": service.rss_mb,
    }


async def soak(
    service: ServiceProcess,
    users: list[HeldOutUser],
    parameters: dict[str, Any],
    rate: float,
    seconds: float,
) -> dict[str, Any]:
    """A long load below the capacity: does memory grow, does any request fail?"""
    await open_loop(service.url, users, rate, min(60.0, seconds / 4), parameters, seed=2)
    before = service.rss_mb
    load = await open_loop(service.url, users, rate, seconds, parameters, seed=3)
    growth = service.rss_mb / before - 1
    show(f"soak of {seconds:.0f} s", load)
    print(f"memory {before:.0f} MB, then {growth:+.2%}")
    return load.as_json() | {"rss_mb": before, "growth": growth}


async def counters(url: str) -> dict[str, float]:
    """Every sample of /metrics, by name with labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def show(name: str, load: Load) -> None:
    warning = "  GENERATOR BUSY" if load.generator_busy else ""
    if load.unanswered:
        warning += f"  {load.unanswered} OF {len(load.sent)} UNANSWERED"
    print(
        f"{name}: {load.reached:.0f}/s answered, statuses {load.statuses}, "
        f"p50 {load.quantile_ms(0.5):.1f} p99 {load.quantile_ms(0.99):.1f} "
        f"max {load.quantile_ms(1):.1f} ms, 429 p50 {load.quantile_ms(0.5, 429):.1f} "
        f"p99 {load.quantile_ms(0.99, 429):.1f} ms, recall {load.recall():.4f}, "
        f"generator {load.cpu_share:.2f} cores{warning}",
        flush=True,
    )


def show_probe(load: Load, is_held: bool) -> None:
    show(f"  {load.rate:7.0f}/s  {'held' if is_held else 'broken'}", load)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 1 after a sentence if the bundle has no users."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.stress", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--slo-ms", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="of the overload")
    parser.add_argument("--probe-seconds", type=float, default=6, help="of each rate tried")
    parser.add_argument("--multiple", type=float, default=3, help="of the capacity")
    parser.add_argument("--soak-seconds", type=float, default=0, help="0 = no soak")
    parser.add_argument("--rate", type=float, help="the capacity, if it is known")
    parser.add_argument(
        "--service-cores", type=_positive, help="default: half; if all, the generator shares them"
    )
    parser.add_argument(
        "--setting",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="of the service, e.g. ort_threads=1; may be repeated",
    )
    parser.add_argument(
        "--parameters", type=json.loads, default={}, help='of a request, e.g. {"r_warm": 4}'
    )
    parser.add_argument(
        "--compare-auto", action="store_true", help='then the same with schedule="auto"'
    )
    asked = parser.parse_args(arguments)
    try:
        users = read_held_out(asked.bundle / "held_out.jsonl")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    kinds = [asked.parameters, *([{"schedule": "auto"}] if asked.compare_auto else [])]
    results = []
    settings = {"slo_ms": asked.slo_ms, "encoder_cache": 0, **dict(asked.setting)}
    with run_service(asked.bundle, num_cores=asked.service_cores, **settings) as service:
        named = ", ".join(f"{name}={value}" for name, value in settings.items())
        print(f"service on cores {service.cores} with {named}; {len(users)} users")
        if knows_targets(service.url):
            print(KNOWN_TARGETS)
        for parameters in kinds:
            print(f"\nrequests with {parameters or 'nothing else'}")
            phases = stress(
                service,
                users,
                parameters,
                slo_ms=asked.slo_ms,
                seconds=asked.seconds,
                probe_s=asked.probe_seconds,
                multiple=asked.multiple,
                rate=asked.rate,
            )
            found = asyncio.run(phases)
            if asked.soak_seconds:
                rate = SOAK_SHARE * found["capacity"]
                found["soak"] = asyncio.run(
                    soak(service, users, parameters, rate, asked.soak_seconds)
                )
            results.append(found)
    print(json.dumps(results))
    return 0


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    if (name := name.lower()) in OWN_SETTINGS:
        raise argparse.ArgumentTypeError(f"{name} cannot be given here: this tool sets it")
    return name, value


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
