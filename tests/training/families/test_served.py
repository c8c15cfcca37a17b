"""For each family beside mdgr, and with dense heads: a world that can be learnt is learnt, and what
its bundle serves is what was measured offline.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from rich.console import Console
from running_service import service_process

from service.bundles import Bundle
from service.decoding import Job, Retrieval, Schedule
from service.decoding.network import Histories
from training.__main__ import main
from training.baselines import ranks_by_content
from training.data.interactions import Dataset, load_dataset
from training.data.splits import Windows
from training.data.synthetic import make_world, write_world
from training.errors import ConfigError, DataError
from training.evaluation import check_horizon, evaluate_bundle
from training.families.denoiser import TorchDenoiser
from training.fitting.training_loop import load_best
from training.pipeline import run
from training.preset import load_config

COMMON = [
    "codebook.num_subspaces=4",
    "codebook.num_codes=32",
    "codebook.opq_iterations=1",
    "embeddings.content_dims=16",
    "neighbours.weights=[0.0]",  # the network alone
    "fit.position_weight=1",
    "fit.epochs=12",
    "fit.minibatch=64",
    "fit.learning_rate=6e-3",
    "fit.validate_every_epochs=12",
    "evaluation.schedules=[{r_warm=0}, {r_warm=2, m_par=2}]",
    "evaluation.rankings=['rows']",
    "evaluation.schedule_users=100",
]
TIGER = [
    "model.family=tiger",
    *COMMON,
    "fit.catalogue_weight=0",
    "evaluation.beam_widths=[20]",
]
DENSE = ["model.options={dense=true}", "evaluation.retrievals=['generate', 'dense', 'fused']"]
SETTINGS = {
    "maskgr": ["model.family=maskgr", *COMMON, *DENSE],
    "liger": [*TIGER, *DENSE],  # TIGER, which answers with retrieval "generate"
}
# A setting of requests, four calls each.
NEXT_CODE: dict[str, Any] = {
    "r_warm": 4,
    "m_par": 1,
    "ranking": "path",
    "order": "left_to_right",
}
DECODING: dict[str, dict[str, Any]] = {
    "maskgr": {"r_warm": 2, "m_par": 1, "ranking": "rows", "order": "confidence"},
    "liger": NEXT_CODE,
}


class Made(NamedTuple):
    """A finished run of settings, in `folder`: its record, its bundle, its data and test users."""

    name: str
    folder: Path
    record: dict[str, Any]
    bundle: Bundle
    dataset: Dataset
    test: Windows

    @property
    def family(self) -> str:
        return "maskgr" if self.name == "maskgr" else "tiger"


@pytest.fixture(scope="module", params=SETTINGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    write_world(make_world(300, 120, 0.0, 1), folder / "world")
    config = load_config("tiny", SETTINGS[request.param])
    dataset = load_dataset(folder / "world", config=config.interactions)
    record = run(config, dataset, folder / "run", Console(quiet=True), until="evaluation")
    bundle = Bundle.load(folder / "run" / "trial")
    return Made(request.param, folder, record, bundle, dataset, dataset.split.test)


def test_a_structured_world_is_learnt(made: Made) -> None:
    recall, popular = (made.record[of]["recall@10"] for of in ("default", "popularity"))
    assert recall >= 2 * popular
    assert recall >= 0.5


def test_the_dense_head_learns_the_world_too(made: Made) -> None:
    report = json.loads((made.folder / "run" / "evaluation" / "report.json").read_text())
    found = {line.get("retrieval", "generate"): line for line in report["schedules"]}
    assert set(found) == set(get_args(Retrieval))
    assert {point.get("retrieval", "generate") for point in report["grid"]["points"]} == set(found)
    text = (made.folder / "run" / "evaluation" / "report.md").read_text()
    assert "| dense |  |" in text
    assert "fused |" in text
    assert found["dense"]["nfe"] == 0
    assert found["dense"]["steps"] == []
    for retrieval in ("dense", "fused"):
        recall = found[retrieval]["item"]["recall@10"]
        assert recall >= 2 * report["popularity"]["recall@10"]
        assert recall >= 0.45
    trials = made.bundle.manifest.facts["dense_trials"]
    assert isinstance(trials, list)
    assert made.bundle.manifest.dense is not None
    weight = made.bundle.manifest.dense.weight
    best = max(trial["recall@10"] for trial in trials)
    assert {"weight": weight, "recall@10": best} in trials


def test_a_beam_that_cannot_be_followed_is_refused(made: Made) -> None:
    misfit = made.bundle.manifest.misfit(
        made.bundle.manifest.decoding.model_copy(update={"m_par": 2, "r_warm": 0})
    )
    assert (misfit is not None) == made.bundle.manifest.autoregressive


def test_the_bundle_says_its_family_and_never_gives_an_invalid_sid(made: Made) -> None:
    assert made.bundle.manifest.family == made.family
    assert made.bundle.manifest.autoregressive == (made.family == "tiger")
    assert made.record["invalid_sid_share"] == 0 == made.record["repeated_items"]


def test_the_shipped_network_is_the_learnt_one(made: Made) -> None:
    """Short, full and empty histories, through the graphs and through torch."""
    bundle = made.bundle
    config = load_config("tiny", SETTINGS[made.name]).model
    torch_denoiser = TorchDenoiser(load_best(made.folder / "run" / "fit", bundle.catalogue, config))
    shipped = bundle.decoder.denoiser
    random = np.random.default_rng(0)
    histories = [
        random.integers(0, 100, length).astype(np.int32)
        for length in (1, config.history_length, 0, config.history_length + 5)
    ]
    arrays = Histories.of(histories, bundle.catalogue, config.history_length)
    sids = np.full((4, 1, 4), bundle.catalogue.num_codes, np.uint16)
    sids[1:, :, 2] = 5
    positions = np.broadcast_to([0, 1, 3], (4, 1, 3)).copy()
    found, expected = (
        denoiser.denoise(denoiser.encode(arrays), sids, positions)
        for denoiser in (shipped, torch_denoiser)
    )
    assert np.abs(found - expected).max() <= 1e-4
    head, model = bundle.decoder.dense, torch_denoiser.model
    assert head is not None
    with torch.inference_mode():
        asked = model.query(torch_denoiser.encode(arrays)).numpy()
    assert np.abs(head.queries(shipped.encode(arrays)) - asked).max() <= 1e-4
    nothing = Histories.of(histories[2:3], bundle.catalogue, config.history_length)
    alone = shipped.denoise(shipped.encode(nothing), sids[2:3], positions[:1])
    assert np.abs(alone[0] - expected[2]).max() <= 1e-4


def test_a_command_measures_how_independent_codes_are(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made.folder / "independence"
    arguments = [
        "--bundle",
        str(made.folder / "run" / "trial"),
        "--data",
        str(made.folder / "world"),
    ]
    arguments += ["--out", str(out), "--users", "40", "--draws", "4"]
    monkeypatch.setattr("sys.argv", ["training", "independence", *arguments])
    assert main() == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    known = {"maskgr": ["nothing", "others"], "tiger": ["earlier"]}[made.family]
    assert list(report["accuracy"]) == known
    assert all(len(found["right"]) == 4 for found in report["accuracy"].values())
    written = (out / "independence.md").read_text()
    if made.family == "maskgr":
        right = [sum(report["accuracy"][one]["bits"]) for one in known]
        assert right[1] < right[0]  # the other codes tell something
        bits = np.array(report["mutual_information"])
        assert bits.shape == (4, 4)
        assert bits.min() >= 0
        assert bits.trace() == 0
        assert [line["m_par"] for line in report["m_par"]] == [1, 2, 4] * 2
        assert "## Recall by positions filled a call" in written
    else:
        assert "fills one position a call" in written


def test_http_gives_what_the_decoder_gives_alone_or_in_a_batch(made: Made) -> None:
    bundle, decoding = made.bundle, DECODING[made.name]
    asked = {"k": 10, "beam_width": 20, "finish_rows": 0}
    ids, known = bundle.catalogue.item_ids, set(map(tuple, bundle.catalogue.codes.tolist()))
    histories = [made.test.history_of(user) for user in range(24)]
    schedule = Schedule((1, 1, 1, 1))
    ranking, order = decoding["ranking"], decoding["order"]
    retrievals: tuple[Retrieval, ...] = get_args(Retrieval)
    found_by = [retrievals[user % len(retrievals)] for user in range(24)]
    jobs = [
        Job(
            h,
            10,
            schedule,
            20,
            excluded=np.unique(h),
            ranking=ranking,
            order=order,
            retrieval=retrieval,
        )
        for h, retrieval in zip(histories, found_by, strict=True)
    ]
    together, _ = bundle.decoder.decode(jobs)
    requests = [
        {
            "user_id": f"u{user}",
            "history": [ids[row] for row in history],
            **asked,
            **decoding,
            "retrieval": found_by[user],
        }
        for user, history in enumerate(histories)
    ]
    run_folder = made.folder / "run"
    with service_process(made.folder / "service", bundle=run_folder / "trial") as service:
        assert service.client.get("/info").json()["bundle"]["family"] == made.family
        assert service.client.get("/models").json()["residents"][0]["family"] == made.family
        alone = [service.recommend(**request).json() for request in requests]
        body = {"requests": requests}
        results = service.client.post("/recommend/batch", json=body).json()["results"]
        again = [service.recommend(**request).json() for request in requests]  # from the cache
        pairs = [
            service.recommend(user_id="u", history=request["history"], horizon=2)
            for request in requests[:6]
        ]
    check_pairs(made, histories, pairs)
    batch = [result["response"] for result in results]
    for job, decoded, *answers in zip(jobs, together, alone, batch, again, strict=True):
        [one], _ = bundle.decoder.decode([job])
        assert decoded.nfe == one.nfe
        assert (one.nfe == 0) if job.retrieval == "dense" else (one.nfe > 1)
        assert len(decoded.rows) == 10
        for answer in answers:
            assert (answer["served_by"], answer["decoding"]["nfe"]) == ("model", one.nfe)
            assert all(tuple(item["sid"]) in known for item in answer["items"])
            assert [item["item_id"] for item in answer["items"]] == [ids[r] for r in decoded.rows]
            scores = [item["score"] for item in answer["items"]]
            assert scores == pytest.approx(decoded.scores.tolist(), abs=1e-3)
        assert one.rows.tolist() == decoded.rows.tolist()


def check_pairs(made: Made, histories: list[np.ndarray], answers: list[Any]) -> None:
    """Two items at once, over HTTP, are those of the decoder; or are refused with a sentence."""
    bundle = made.bundle
    if bundle.manifest.max_horizon == 1:
        assert {answer.status_code for answer in answers} == {422}
        assert "one item at a time" in answers[0].json()["error"]["message"]
        return
    default = bundle.manifest.decoding.for_several(2).wide_enough(10)
    ids = bundle.catalogue.item_ids
    for history, answer in zip(histories[: len(answers)], answers, strict=True):
        job = Job(
            history,
            10,
            Schedule((2, 2, 2, 2)),
            default.beam_width,
            np.unique(history),
            ranking="path",
            order=default.order,
            horizon=2,
        )
        [decoded], _ = bundle.decoder.decode([job])
        found = [[item["item_id"] for item in one["items"]] for one in answer.json()["sequences"]]
        assert found == [[ids[row] for row in rows] for rows in decoded.rows]
        assert len(found) == 10
        assert answer.json()["decoding"]["nfe"] == 4


def test_the_next_two_items_are_learnt_and_measured_together(made: Made, tmp_path: Path) -> None:
    """The network never had two masked items as its task: masks anywhere cover them."""
    if made.bundle.manifest.max_horizon == 1:
        check_horizon(made.bundle, made.dataset, 2)  # one after another
        return
    with pytest.raises(DataError, match="no user has 3 items that training has not learnt"):
        check_horizon(made.bundle, made.dataset, 3)
    with pytest.raises(ConfigError, match="at most 5"):
        check_horizon(made.bundle, made.dataset, 6)
    check_horizon(made.bundle, made.dataset, 2)
    config = load_config("tiny", SETTINGS[made.family]).evaluation
    grid = made.bundle.manifest.facts["grid"]
    assert isinstance(grid, dict)
    report = evaluate_bundle(
        made.bundle,
        made.dataset,
        config,
        tmp_path,
        Console(quiet=True),
        grid=grid,
        ranks_by_content=ranks_by_content,
        horizon=2,
    )
    found = report["several_items"]
    lines = {line["name"]: line for line in found["lines"]}
    [default] = [line for line in found["lines"] if line["is_default"]]
    assert (default["name"], default["nfe"]) == ("sequences, (0, 2)", 4)
    assert lines["sequences, (0, 1)"]["nfe"] == 8
    assert lines["sequences, (0, 8)"]["nfe"] == 1
    for name in ("sequences, (0, 1)", "sequences, (0, 2)"):
        for slot in range(2):
            recall, popular = (lines[of]["recall@10"][slot] for of in (name, "popularity"))
            assert recall["recall"] >= popular["recall"] + 3 * popular["error"]
        average = lines[name]["average recall@10"]["recall"]
        slots = [figure["recall"] for figure in lines[name]["recall@10"]]
        assert average == pytest.approx(np.mean(slots), abs=1e-4)
    assert "## 2 items at once" in (tmp_path / "report.md").read_text()
    assert report["users"] == found["users"] == len(made.test)
