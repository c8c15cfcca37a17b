"""What /health says in rare states of a process, asked without a socket."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from running_service import PATIENCE_S
from started_lifecycle import tell
from structlog.testing import capture_logs
from tiny_bundle import ENCODER, write_tiny_bundle

from service.batching.latency_model import LatencyModel
from service.bundles.bundle import Bundle
from service.bundles.ladder import ladder_of
from service.decoding import Histories, Job, Ranking, Schedule
from service.errors import BundleInvalid, SettingsInvalid, StartError
from service.histories import embedded_valkey
from service.http.admission.gate import Gate
from service.lifecycle import Lifecycle
from service.loading.priming import SIZES, prime
from service.recommending import check_defaults
from service.recommending.experiment import Experiment, Variant
from service.recommending.recommender import Recommender
from service.schemas.recommend import RecommendRequest, RecommendResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics


def test_a_draining_service_is_live_and_not_ready(redis_url: str, bundles_dir: Path) -> None:
    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        lifecycle.draining = True
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
        assert (await client.get("/health/live")).status_code == 200
        answer = await client.post("/recommend", json={"user_id": "x", "history": ["item-1"]})
        assert answer.status_code == 200

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")


def test_without_a_decode_thread_it_is_neither(redis_url: str, bundles_dir: Path) -> None:
    class Death(BaseException):
        """Not an Exception: nothing in the thread catches it."""

    async def story(
        lifecycle: Lifecycle, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise Death

        assert lifecycle.bundle is not None
        monkeypatch.setattr(lifecycle.bundle.decoder.denoiser, "encode", die)
        body = {"user_id": "x", "history": ["item-1"]}
        with capture_logs() as logged:
            for _ in range(2):
                answer = await client.post("/recommend", json=body)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "not_ready"
        [cause] = [line["exc_info"] for line in logged if line["event"] == "decoding_ended"]
        assert isinstance(cause, Death)
        rejected = 'unmask_rejected_total{reason="not_ready"} 2.0'
        assert rejected in (await client.get("/metrics")).text
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["decode_thread_dead"])
        live = await client.get("/health/live")
        assert (live.status_code, live.json()["reasons"]) == (503, ["decode_thread_dead"])

    with pytest.MonkeyPatch.context() as monkeypatch:
        tell(
            lambda lifecycle, client: story(lifecycle, client, monkeypatch),
            redis_url=redis_url,
            bundle=bundles_dir / "tiny" / "1",
        )


def test_an_embedded_store_that_cannot_be_started_again_is_for_a_restart_to_cure(
    bundles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the restart popular items answer, and it is tried again and again."""
    for name in ("LOOK_EVERY_S", "FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(embedded_valkey, name, 0.02)
    folder, away = tmp_path / "here", tmp_path / "away"

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        assert (await client.get("/health/live")).json()["reasons"] == []
        folder.rename(away)
        assert lifecycle._embedded is not None
        assert lifecycle._embedded._process is not None
        lifecycle._embedded._process.kill()
        while (live := await client.get("/health/live")).status_code == 200:
            await asyncio.sleep(0.01)
        assert live.json() == {
            "status": "not_live",
            "reasons": ["embedded_store_keeps_failing"],
            "cure": "restart the process; its log says what went wrong",
        }
        ready = await client.get("/health/ready")
        assert ready.json()["reasons"] == ["embedded_store_keeps_failing"]
        answer = (await client.post("/recommend", json={"user_id": "x"})).json()
        assert answer["degraded_reasons"] == ["history_unavailable"]
        away.rename(folder)

    tell(story, redis_url=None, bundle=bundles_dir / "tiny" / "1", history_dir=folder)


def test_a_bug_in_a_route_is_a_500_with_our_body(redis_url: str, bundles_dir: Path) -> None:
    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch, capture_logs() as logged:
            monkeypatch.delattr(Lifecycle, "not_ready")
            broken = await client.get("/health/ready", headers={"X-Request-ID": "r1"})
        assert broken.status_code == 500
        assert broken.json()["error"]["code"] == "internal_error"
        assert broken.json()["error"]["request_id"] == broken.headers["X-Request-ID"] == "r1"
        assert [line["request_id"] for line in logged if line["event"] == "unexpected_error"] == [
            "r1"
        ]

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")


def test_a_bundle_that_cannot_decode_is_refused(tmp_path: Path) -> None:
    bundle = Bundle.load(write_tiny_bundle(tmp_path / "bundle"))
    prime(bundle, LatencyModel())
    poisoned = tuple(replace(user, history=("item-199",)) for user in bundle.held_out)
    with pytest.raises(BundleInvalid, match=r"bundle tiny@1 cannot decode: .*out of data bounds"):
        prime(replace(bundle, held_out=poisoned), LatencyModel())
    prime(replace(bundle, held_out=()), LatencyModel())


def test_priming_runs_the_encoder_for_every_batch(
    bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(bundles_dir / "tiny" / "1", encoder_cache=100)
    encode, sizes = bundle.decoder.denoiser.encode, []

    def counted(histories: Histories) -> Any:
        sizes.append(len(histories.codes))
        return encode(histories)

    monkeypatch.setattr(bundle.decoder.denoiser, "encode", counted)
    prime(bundle, LatencyModel())
    rare = 3 * (5 * len(get_args(Ranking)) + 1)  # filters, schedules, rankings, remasking
    rungs = len(ladder_of(bundle.manifest))
    assert rungs == 3
    batches = [size for size in SIZES for _ in range(rungs)]
    explained = len(get_args(Ranking))
    assert sizes == [1, rare, explained, *batches, *batches]
    user = bundle.held_out[0]
    job = Job(bundle.catalogue.rows_of(user.history), 5, Schedule((4,)), 5)
    assert bundle.decoder.decode([job])[1].cache_misses == 1
    assert bundle.decoder.decode([job])[1].cache_hits == 1


def test_a_bundle_whose_network_gives_no_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.load(write_tiny_bundle(tmp_path / "bundle"))
    denoise = bundle.decoder.denoiser.denoise
    monkeypatch.setattr(
        bundle.decoder.denoiser, "denoise", lambda *asked: denoise(*asked) * np.float32(np.nan)
    )
    with pytest.raises(BundleInvalid, match=r"too few items|no numbers"):
        prime(bundle, LatencyModel())


def test_a_bundle_that_cannot_take_full_histories_is_refused(tmp_path: Path) -> None:
    """The held-out histories have 5 items, but the manifest promises 8."""
    encoder = ENCODER.replace("uint16[jobs, length, 4]", "uint16[jobs, 5, 4]")
    bundle = Bundle.load(write_tiny_bundle(tmp_path / "bundle", encoder=encoder))
    with pytest.raises(BundleInvalid, match=r"bundle tiny@1 cannot decode: .*Got: 8 Expected: 5"):
        prime(bundle, LatencyModel())


def test_a_queue_too_small_for_one_request_is_refused(bundle: Bundle) -> None:
    check_defaults(10, None, bundle)
    with pytest.raises(SettingsInvalid, match=r"UNMASK_MAX_QUEUE_ROWS=9 is below 10, .*tiny@1"):
        check_defaults(9, None, bundle)


@pytest.mark.parametrize(
    ("asked", "ref", "message"),
    [
        ({"r_warm": 5}, None, r"variant b .* bundle tiny@1: r_warm must be at most 4"),
        ({"m_par": 5}, "tiny@1", r"variant b .* bundle tiny@1: m_par must be at most 4"),
        ({"beam_width": 11}, None, r"variant b .*UNMASK_MAX_QUEUE_ROWS=10 is below 11"),
        ({"r_warm": 5}, "another@1", None),
        ({"r_warm": 4}, None, None),
    ],
)
def test_a_variant_that_its_bundle_cannot_serve_is_refused(
    bundle: Bundle, asked: dict[str, int], ref: str | None, message: str | None
) -> None:
    variants = (Variant(name="a", weight=1), Variant(name="b", weight=1, bundle=ref, **asked))
    experiment = Experiment(name="e", salt="s", variants=variants)
    refused = pytest.raises(SettingsInvalid, match=message) if message else nullcontext()
    with refused:
        check_defaults(10, experiment, bundle)


@pytest.mark.parametrize("is_experiment", [False, True])
def test_an_experiment_keeps_its_schedule(
    redis_url: str,
    bundles_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_experiment: bool,
) -> None:
    """By the forecast nothing is in time, so without an experiment a schedule would change."""
    monkeypatch.setattr(LatencyModel, "seconds", lambda _, work: 100.0 * work.calls)
    settings: dict[str, Any] = {"adaptive_schedule": True}
    if is_experiment:
        variants = "".join(f'[[variants]]\nname = "{name}"\nweight = 1\n' for name in "ab")
        settings["experiment_file"] = tmp_path / "experiment.toml"
        settings["experiment_file"].write_text(f'name = "e"\nsalt = "s"\n{variants}')

    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        body = {"user_id": "x", "history": ["item-1"]}  # the first request finds nobody waiting
        answer = (await client.post("/recommend", json=body)).json()
        assert answer["decoding"]["adjusted"] is not is_experiment

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1", **settings)


def test_an_administrator_is_let_in_when_the_gate_is_shut(
    redis_url: str, bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "admits", lambda _: False)

    async def story(_: Lifecycle, client: httpx.AsyncClient) -> None:
        body = {"user_id": "x", "history": ["item-1"]}
        assert (await client.post("/recommend", json=body)).status_code == 429
        assert (await client.post("/admin/drain")).status_code == 401
        headers = {"Authorization": "Bearer an-admin-key"}
        drained = await client.post("/admin/drain", headers=headers)
        assert drained.json() == {"status": "draining"}

    bundle = bundles_dir / "tiny" / "1"
    tell(story, redis_url=redis_url, bundle=bundle, admin_keys=("an-admin-key",))


def test_what_a_restart_would_bring_is_looked_up_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in "12":
        write_tiny_bundle(tmp_path / "tiny" / version, version=version)
    (tmp_path / "tiny" / "current").write_text("1")
    monkeypatch.setattr("service.lifecycle.LOOK_EVERY_S", 0.01)

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        assert not lifecycle.has_drifted
        (tmp_path / "tiny" / "current").write_text("not yet there")  # as during a copy
        await asyncio.sleep(0.1)
        (tmp_path / "tiny" / "current").write_text("2")
        while not lifecycle.has_drifted:
            await asyncio.sleep(0.01)
        assert (await client.get("/models")).json()["configured"] == "tiny@2"

    tell(story, redis_url=redis_url, bundle="tiny", bundles_dir=tmp_path)


def test_a_bundle_that_is_followed_comes_by_itself_and_a_rollback_stays(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in "13":
        write_tiny_bundle(tmp_path / "tiny" / version, version=version)
    current = tmp_path / "tiny" / "current"
    current.write_text("1")
    monkeypatch.setattr("service.lifecycle.LOOK_EVERY_S", 0.01)

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        async def serves(ref: str) -> None:
            while lifecycle.loaded_bundles.active.ref != ref:
                await asyncio.sleep(0.01)

        failed = lifecycle.metrics.bundle_operations.labels("reload", "failed")._value
        write_tiny_bundle(tmp_path / "tiny" / "2", version="2")
        (tmp_path / "tiny" / "2" / "codes.npy").rename(tmp_path / "late")
        current.write_text("2")
        while failed.get() < 2:  # it is tried again
            await asyncio.sleep(0.01)
        assert lifecycle.loaded_bundles.active.ref == "tiny@1"
        (tmp_path / "late").rename(tmp_path / "tiny" / "2" / "codes.npy")
        await serves("tiny@2")
        await lifecycle.loaded_bundles.rollback()
        looks = 0

        def look() -> tuple[Path, str]:
            nonlocal looks
            looks += 1
            return look_before()

        look_before = lifecycle._look
        monkeypatch.setattr(lifecycle, "_look", look)
        while looks < 5:
            await asyncio.sleep(0.01)
        assert lifecycle.loaded_bundles.active.ref == "tiny@1"
        await lifecycle.in_all.load("tiny@2")
        with capture_logs() as logged:
            current.write_text("3")
            await serves("tiny@3")
        replaced = [line for line in logged if line["event"] == "candidate_replaced"]
        assert [(line["was"], line["now"]) for line in replaced] == [("tiny@2", "tiny@3")]

    tell(story, redis_url=redis_url, bundle="tiny", bundles_dir=tmp_path, follow_bundle=True)


def test_a_bug_in_one_request_of_several_fails_that_one(
    redis_url: str, bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommend = Recommender.recommend

    async def buggy(
        self: Recommender, request: RecommendRequest, *args: Any, **kwargs: Any
    ) -> RecommendResponse:
        if request.user_id == "bug":
            raise ZeroDivisionError
        return await recommend(self, request, *args, **kwargs)

    monkeypatch.setattr(Recommender, "recommend", buggy)

    async def story(lifecycle: Lifecycle, client: httpx.AsyncClient) -> None:
        requests = [{"user_id": user, "history": ["item-1"]} for user in ("bug", "x")]
        with capture_logs() as logged:
            answer = await client.post("/recommend/batch", json={"requests": requests})
        results = answer.json()["results"]
        assert [result["status"] for result in results] == [500, 200]
        assert results[0]["error"]["code"] == "internal_error"
        assert "unexpected_error" in [line["event"] for line in logged]
        sample = lifecycle.metrics.registry.get_sample_value
        for outcome in ("error", "ok"):
            labels = {"bundle": "tiny@1", "variant": "default", "outcome": outcome}
            assert sample("unmask_recommend_requests_total", labels) == 1

    tell(story, redis_url=redis_url, bundle=bundles_dir / "tiny" / "1")


def test_a_bug_in_the_last_step_of_the_start_ends_the_process(
    redis_url: str, bundles_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async def run() -> StartError | None:
        settings = Settings(bundle=str(bundles_dir / "tiny" / "1"), redis_url=redis_url)
        lifecycle = Lifecycle(settings, Metrics())
        failed = asyncio.Event()
        lifecycle.on_failure = failed.set
        async with lifecycle.running():
            await failed.wait()
        return lifecycle.failure

    monkeypatch.setattr("service.lifecycle.Recommender", broken)
    with capture_logs() as logged:
        failure = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert str(failure) == "the start failed with ZeroDivisionError; see the log"
    assert [line["event"] for line in logged] == ["bundle_activated", "start_failed"]
