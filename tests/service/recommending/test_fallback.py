"""What answers when something is missing, by UNMASK_FALLBACK; and each key's rate limit."""

from __future__ import annotations

from pathlib import Path

from ports import find_free_port
from running_service import service_process, wait_until
from tiny_bundle import POISON


def test_all_answers_popular_items_when_decoding_fails(
    bundles_dir: Path, redis_url: str, tmp_path: Path
) -> None:
    with service_process(
        tmp_path, bundles_dir=bundles_dir, bundle="tiny@1", redis_url=redis_url, fallback="all"
    ) as service:
        answer = service.recommend(user_id="f", history=["item-1", POISON], k=3)
        body = answer.json()
        assert (answer.status_code, body["served_by"]) == (200, "popular")
        assert body["degraded_reasons"] == ["decode_failed"]
        assert "out of data bounds" in service.stdout  # nobody sees an error: the log must tell
        assert answer.headers["X-Unmask-Degraded"] == "decode_failed"
        assert [item["item_id"] for item in body["items"]] == ["item-0", "item-2", "item-3"]


def test_off_answers_nothing_without_the_store_and_is_not_ready(
    bundles_dir: Path, tmp_path: Path
) -> None:
    with service_process(
        tmp_path,
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=f"redis://127.0.0.1:{find_free_port()}",
        fallback="off",
    ) as service:

        def is_down() -> bool:
            answer = service.recommend(user_id="f")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "history_unavailable"
            assert int(answer.headers["Retry-After"]) >= 1
            ready = service.client.get("/health/ready")
            return ready.status_code == 503 and ready.json()["reasons"] == ["history_unavailable"]

        wait_until(is_down)  # once the breaker has opened
        assert service.recommend(user_id="f", history=["item-1"]).status_code == 200
        assert service.client.get("/health/live").status_code == 200


def test_each_key_has_its_own_rate(bundles_dir: Path, redis_url: str, tmp_path: Path) -> None:
    with service_process(
        tmp_path,
        bundles_dir=bundles_dir,
        bundle="tiny@1",
        redis_url=redis_url,
        api_keys="the-first-key,the-second-key",
        rate_limit=1,
    ) as service:
        body = {"user_id": "f", "history": ["item-1"]}
        for key in ("the-first-key", "the-second-key"):
            headers = {"Authorization": f"Bearer {key}"}
            many = {"requests": [body] * 30}  # as many as half a minute allows
            answer = service.client.post("/recommend/batch", json=many, headers=headers)
            assert answer.status_code == 200, answer.text
            answer = service.client.post("/recommend", json=body, headers=headers)
            assert answer.status_code == 429
        samples = service.samples()
        limited = 'unmask_recommend_requests_total{bundle="none",outcome="limited",variant="none"}'
        assert samples['unmask_rejected_total{reason="rate_limit"}'] == samples[limited] > 0
        refused = [count for name, count in samples.items() if 'outcome="rejected"' in name]
        assert not any(refused)
