"""Every setting of the service: default, unit, one sentence. Flag beats variable beats default.

`--redis-url` and `UNMASK_REDIS_URL` are the same setting. Units are in the names. A variable that
starts with UNMASK_ but is no setting stops the start, so that a typing error does not silently mean
a default. A value that cannot work stops the start too: each setting has its bounds here. Knows
nothing of what the settings are used for.
"""

from __future__ import annotations

import difflib
import os
import re
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict

from service.bundles import HISTORY_CAP
from service.errors import SettingsInvalid
from service.schemas import UNDO, Fallback

PREFIX = "UNMASK_"
NOT_OURS = {"UNMASK_DATA_DIR"}  # where the tests find the real data sets
LEAST_KEY_CHARS, MOST_KEY_CHARS = 8, 512
LEAST_BUNDLE_KEY_CHARS = 32
MOST_TYPE_CHARS = 64  # of an event's type, as in service.schemas.events
DAY_S = 24 * 60 * 60
HOUR_S = 60 * 60
KEY = re.compile(r"[!-~]*", re.ASCII)  # what every client can put into a header
LISTS = {  # may be empty
    "history_event_types",
    "counted_event_types",
    "negative_event_types",
    "trending_event_types",
    "api_keys",
    "admin_keys",
}


def available_cpus(
    cgroup_root: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")
) -> int:
    """Cores that this process may use: the minimum of its affinity and its cgroups' `cpu.max` (v2).

    ONNX Runtime counts the cores of the host instead, and gets slow inside a limited container.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        own = own_cgroup.read_text().rpartition("0::/")[2].strip("/\n")
    except OSError:
        own = ""
    folder = cgroup_root / own
    for candidate in (folder, *folder.parents):
        try:
            quota, period = (candidate / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def _random_salt() -> SecretStr:
    return SecretStr(secrets.token_hex(16))


def _split_commas(value: Any) -> Any:
    """Split at commas. Empty text is an empty list."""
    if not isinstance(value, str):
        return value
    parts = tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    if "" in parts:
        raise ValueError("one of its commas has nothing before or after it")
    return parts


def _check_host(host: str) -> str:
    try:
        host.encode("idna")  # as the socket will do
    except UnicodeError:
        raise ValueError("it must be an address or the name of a host") from None
    return host


def _check_embedder_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if not text.startswith(("http://", "https://")):
        raise ValueError("it must start with http:// or https://")
    try:
        parts = urlsplit(text)
        is_whole = parts.hostname and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        is_whole = False
    if not is_whole or not KEY.fullmatch(text):
        raise ValueError("it must be http(s)://host:port, and a path if it has one; no ? and no #")
    return url


def _check_bundle_key(key: SecretStr) -> SecretStr:
    if len(key.get_secret_value()) < LEAST_BUNDLE_KEY_CHARS:
        raise ValueError(f"it must have at least {LEAST_BUNDLE_KEY_CHARS} characters")
    return key


def _check_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not LEAST_KEY_CHARS <= len(text) <= MOST_KEY_CHARS:
        raise ValueError(
            f"each key must have at least {LEAST_KEY_CHARS} characters, {MOST_KEY_CHARS} at most"
        )
    if not KEY.fullmatch(text):
        raise ValueError(
            "keys may have letters, digits and signs of ASCII only, no spaces: "
            "a header carries nothing else"
        )
    return key


def _check_event_type(event_type: str) -> str:
    if len(event_type) > MOST_TYPE_CHARS:
        raise ValueError(f"an event type has at most {MOST_TYPE_CHARS} characters")
    if event_type.startswith(UNDO):
        raise ValueError(
            f"an event type must not begin with {UNDO}: that takes back what a type of "
            "UNMASK_NEGATIVE_EVENT_TYPES refuses, and each of these has it without being named"
        )
    return event_type


def _check_salt(salt: SecretStr) -> SecretStr:
    if not 1 <= len(salt.get_secret_value().encode()) <= blake2b.MAX_KEY_SIZE:
        raise ValueError(f"it must have 1 to {blake2b.MAX_KEY_SIZE} bytes")
    return salt


EventTypes = Annotated[
    tuple[Annotated[str, AfterValidator(_check_event_type)], ...],
    NoDecode,
    BeforeValidator(_split_commas),
]
SecretList = Annotated[
    tuple[Annotated[SecretStr, AfterValidator(_check_key)], ...],
    NoDecode,
    BeforeValidator(_split_commas),
]
Host = Annotated[str, AfterValidator(_check_host)]

BundleKey = Annotated[SecretStr, AfterValidator(_check_bundle_key)]
EmbedderUrl = Annotated[SecretStr, AfterValidator(_check_embedder_url)]
Salt = Annotated[SecretStr, AfterValidator(_check_salt)]


class Settings(BaseSettings):
    """Serve recommendations over HTTP until SIGTERM or Ctrl-C; see GET /health/ready.

    Other commands: `python -m service histories --help` and `python -m service events --help`.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_show_env_vars=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty variable is mostly one whose value was lost on the way, so it is refused."""
        if isinstance(value, str):
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise ValueError("it must be text in UTF-8")
            if not value.strip() and info.field_name not in LISTS:
                raise ValueError("it is empty; to have the default, do not set it")
        return value

    @field_validator("trending_event_types", mode="after")
    @classmethod
    def _are_accepted(cls, types: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        names = ("history_event_types", "counted_event_types")
        accepted = [one for name in names for one in info.data.get(name, types)]
        if not set(types) <= set(accepted):
            raise ValueError(
                "each must be among UNMASK_HISTORY_EVENT_TYPES or UNMASK_COUNTED_EVENT_TYPES: "
                "events of other types are not accepted"
            )
        return types

    host: Host = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="Processes on the port; limits hold for each.")
    bundles_dir: Path = Field(
        Path("models_store"), description="Folder of bundles, laid out as <name>/<version>/."
    )
    bundle: str = Field(
        "demo",
        description="Bundle to serve: name@version, a name (its newest version), "
        "or the path of a bundle directory.",
    )
    follow_bundle: bool = Field(
        False,
        description="Load and activate another bundle as soon as `UNMASK_BUNDLE` names one, looked "
        "up every ten seconds; without it on SIGHUP only.",
    )
    bundle_key: BundleKey | None = Field(
        None,
        description="Key that bundles must be signed with, by `python -m training promote` with "
        "the same variable; without it signatures are not looked at.",
    )
    load_timeout_s: int = Field(
        600,
        ge=1,
        le=DAY_S,
        description="Longest wait for a bundle to be read, verified and primed; then it is given "
        "up, and another one may be loaded.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis or Valkey that keeps the histories, e.g. redis://127.0.0.1:6379/0, "
        "redis+cluster://user:password@host:port,host:port or "
        "redis+sentinel://host:port,host:port/service-name/0 (rediss for TLS); "
        "without it an embedded Valkey is started.",
    )
    redis_replica_url: SecretStr | None = Field(
        None,
        description="Where histories are read when UNMASK_REDIS_URL names one server, e.g. the "
        "reader endpoint of a managed store; it may lag behind, and when it fails the "
        "primary is read.",
    )
    redis_replica_reads: bool = Field(
        False,
        description="Read histories from the replicas that the cluster or the sentinels name; "
        "they may lag behind, and when one fails the primary is read.",
    )
    history_dir: Path = Field(
        Path(".unmask/history"),
        description="Folder of the embedded Valkey; histories there survive restarts.",
    )
    redis_timeout_ms: int = Field(
        50,
        ge=1,
        le=60_000,
        description="Longest wait for one Redis call; then the answer is popular items.",
    )
    redis_pool_size: int = Field(32, ge=1, le=10_000, description="Most connections to Redis.")
    history_cap: int = Field(
        HISTORY_CAP, ge=1, le=100_000, description="Most items kept per user; older ones go."
    )
    history_ttl_s: int = Field(
        90 * DAY_S,
        ge=1,
        le=36_500 * DAY_S,
        description="A history is erased this long after its last event.",
    )
    event_log_days: int = Field(
        30,
        ge=0,
        le=3650,
        description="How long events that enter histories, and refusals, also stay in the event "
        "log, for `python -m service events export`; about 80 bytes each; 0 = no event log.",
    )
    history_event_types: EventTypes = Field(
        ("click", "add_to_cart", "purchase", "rating"),
        description="Event types that are appended to histories, with commas between; "
        "others are counted or rejected.",
    )
    counted_event_types: EventTypes = Field(
        ("impression", "view"),
        description="Event types that are attributed to answers and counted, and do not enter a "
        "history; others are rejected.",
    )
    negative_event_types: EventTypes = Field(
        ("not_interested",),
        description="Event types by which a user refuses an item: it is not recommended to this "
        "user any more, and enters no history; with undo_ before it, e.g. undo_not_interested, "
        "it is again. `events export` leaves these out unless it is asked for --refusals.",
    )
    trending_event_types: EventTypes = Field(
        default_factory=lambda known: known.get("history_event_types", ()),
        description="Event types that count for `POST /trending`; default: those of "
        "UNMASK_HISTORY_EVENT_TYPES; empty = nothing is counted.",
    )
    trending_half_life_hours: float = Field(
        24,
        ge=0.1,
        le=8760,
        description="After so many hours an event counts half as much for `POST /trending`; all "
        "replicas need the same.",
    )
    fallback: Fallback = Field(
        "history",
        description="When popular items answer, flagged: history = the history store is down, "
        "all = decoding fails or is late as well, off = never.",
    )
    slo_ms: int = Field(
        100,
        ge=1,
        le=600_000,
        description="Latency to hold: schedule=auto aims at it, and a request gets 429 if the "
        "forecast says that it would wait longer than this for others.",
    )
    adaptive_schedule: bool = Field(
        False, description="Whether requests that say nothing of decoding get schedule=auto."
    )
    max_inflight: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Most requests answered at a time, fewer where slo_ms could not be held; "
        "more get 429 unread.",
    )
    default_timeout_ms: int = Field(
        1000, ge=1, le=10_000, description="Deadline of a request that names no timeout_ms."
    )
    max_queue_rows: int = Field(
        3200,
        ge=1,
        le=10_000_000,
        description="Most beams waiting or being decoded, of each lane (a bundle, a class of beam "
        "widths, in a batch or not); more requests get 429.",
    )
    max_batch_requests: int = Field(
        16, ge=1, le=10_000, description="Most requests decoded together."
    )
    max_batch_rows: int = Field(
        1024, ge=1, le=1_000_000, description="Most beams decoded together."
    )
    encoder_cache: int = Field(
        10_000,
        ge=0,
        le=10_000_000,
        description="Most encoded histories kept in memory, about 1.5 kB each with a network of "
        "family mdgr, hundreds of kB with others; a request whose history has not changed "
        "skips the encoder; 0 = off.",
    )
    encoder_cache_mb: int = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Most memory of these, in MiB, for each bundle: where they are large, fewer "
        "are kept.",
    )
    provider: Literal["cpu", "cuda", "tensorrt"] = Field(
        "cpu",
        description="What ONNX Runtime runs the network with; "
        "cuda and tensorrt need the extra gpu and have not been tried on a GPU yet.",
    )
    precision: Literal["fp32", "int8"] = Field(
        "fp32",
        description="Numbers that the network multiplies: fp32, or int8, which is faster on "
        "processors with VNNI and needs a bundle with int8 graphs; another one stops the start.",
    )
    ort_threads: int = Field(
        default_factory=lambda known: max(1, available_cpus() // known.get("workers", 1)),
        ge=1,
        le=1024,
        description="ONNX Runtime threads of one batch; default: the cores that a worker may use.",
    )
    experiment_file: Path | None = Field(
        None, description="TOML file of an A/B experiment; see docs/how-to/operate.md."
    )
    embedder_url: EmbedderUrl | None = Field(
        None,
        description="Server that embeds titles of new items: POST /embed as Text Embeddings "
        "Inference has it, with the model the bundle was trained with.",
    )
    api_keys: SecretList = Field(
        (), description="Bearer keys of clients, with commas between; without any, all may ask."
    )
    admin_keys: SecretList = Field(
        (),
        description="Bearer keys of administrators, with commas between; without any, "
        "there are no routes under /admin.",
    )
    rate_limit: float | None = Field(
        None,
        ge=0.001,
        le=1_000_000,
        description="Most requests a second of each client key, those of a batch each for "
        "itself; more get 429.",
    )
    page: bool = Field(
        True,
        description="Whether `/` is a page where people see recommendations made, and "
        "`/held-out-users` names the bundle's test users for it; see docs/page.md.",
    )
    drain_delay_s: float = Field(
        5.0,
        ge=0,
        le=HOUR_S,
        description="After SIGTERM, how long requests are still taken while GET /health/ready "
        "answers 503.",
    )
    shutdown_timeout_s: int = Field(
        20, ge=0, le=HOUR_S, description="Longest wait after SIGTERM for the requests in flight."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level logged; each request is one line at info."
    )
    log_salt: Salt = Field(
        default_factory=_random_salt,
        description="Key of the user hash in the log; default: another one at every start.",
    )


def load_settings(arguments: Sequence[str] = ()) -> Settings:
    """The settings from command-line arguments and UNMASK_ variables.

    Raises SettingsInvalid with one sentence. `--help` and unknown flags end the process (0, 2).
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_OURS
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and variable.upper() not in known:
            close = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else " (see python -m service --help)."
            raise SettingsInvalid(f"{variable} is not a setting{hint}")
    try:
        return CliApp.run(Settings, cli_args=list(arguments))
    except ValidationError as error:
        raise SettingsInvalid(sentence_of(error)) from None


def sentence_of(error: ValidationError) -> str:
    """Which setting is wrong, and why. It never repeats the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    return wrong(name, first["msg"].removeprefix("Value error, "))


def wrong(name: str, why: str) -> str:
    """The sentence for a setting that cannot work."""
    return f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}) is wrong: {why}."
