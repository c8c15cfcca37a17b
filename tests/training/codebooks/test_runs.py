"""Runs with every kind of codebook: trained, exported, evaluated, served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from running_service import service_process

from service.bundles import Bundle, Item
from service.decoding import Job, Schedule
from training.bundling import make_trial
from training.data import Dataset
from training.data.interactions import load_dataset
from training.data.synthetic import make_world, write_world
from training.pipeline import parts_of, run
from training.preset import load_config

QUICK = ["fit.epochs=2", "fit.validation_users=20", "evaluation.invalid_sid_users=20"]
QUICK += [
    "codebook.rqvae_epochs=5",
    "refit.share=0",
    "codebook.num_codes=16",
    "embeddings.collaborative_dims=0",
]
QUICK += ["embeddings.content_dims=16", "evaluation.schedule_users=20", "evaluation.users=40"]
QUICK += ["evaluation.beam_widths=[20]", "evaluation.rankings=['rows']"]
QUICK += ["evaluation.schedules=[{r_warm = 1, m_par = 2}]", "evaluation.timing_users=1"]
ADMIN = {"Authorization": "Bearer an-admin-key"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 items, ten of which have the content of another one."""
    folder = tmp_path_factory.mktemp("world")
    write_world(make_world(120, 60, 0.1, 7), folder)
    assert len(pl.read_parquet(folder / "items.parquet")) == 60
    embeddings = np.random.default_rng(2).normal(0.3, 1, (60, 24)).astype(np.float32)
    embeddings[50:] = embeddings[:10]
    np.save(folder / "item_embeddings.npy", embeddings)
    return load_dataset(folder)


def settings(kind: str, collisions: str) -> list[str]:
    """SIDs of four positions."""
    num_subspaces = 3 if collisions == "digit" else 4
    return [
        *QUICK,
        f"codebook.kind={kind}",
        f"codebook.collisions={collisions}",
        f"codebook.num_subspaces={num_subspaces}",
    ]


@pytest.fixture(scope="module")
def out(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("run")
    run(load_config("tiny", settings("residual", "digit")), dataset, folder, Console(quiet=True))
    return folder


def record_of(out: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{stage}.json").read_text())
    return found


def assert_batch_equals_single(bundle: Bundle) -> None:
    catalogue, random = bundle.catalogue, np.random.default_rng(0)
    schedules = [
        Schedule((1,) * catalogue.num_subspaces),
        Schedule((1, catalogue.num_subspaces - 1)),
    ]
    jobs = [
        Job(
            random.integers(0, catalogue.num_items, 5).astype(np.int32),
            k=10,
            schedule=schedules[number % 2],
            beam_width=20,
        )
        for number in range(8)
    ]
    together, _ = bundle.decoder.decode(jobs)
    for job, found in zip(jobs, together, strict=True):
        [alone], _ = bundle.decoder.decode([job])
        assert found.rows.tolist() == alone.rows.tolist()
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
        assert len(set(found.rows.tolist())) == 10


def test_residual_codes_with_a_digit_from_data_to_answers(
    dataset: Dataset, out: Path, tmp_path: Path
) -> None:
    report = record_of(out, "codebook")["collisions"]
    assert (report["num_items"], report["unique_sids"], report["num_codes"]) == (60, 60, 16)
    assert len(report["codes_used"]) == 4
    assert 2 <= report["codes_used"][-1] < 16, "few items need a digit above 0"
    evaluation = record_of(out, "evaluation")
    assert evaluation["invalid_sid_share"] == 0 == evaluation["repeated_items"]
    assert "not_measured" not in evaluation["new_items"]

    trial, bundle = Bundle.load(out / "trial"), Bundle.load(out / "bundle")
    codes = np.load(out / "codebook" / "codes.npy")
    expected = {"kind": "residual", "collisions": "digit", "normalised": True}
    for one in (trial, bundle):  # rows of the second are in another order
        assert one.manifest.codebook.model_dump() == expected
        rows = one.catalogue.rows_of(dataset.split.train.item_ids)
        np.testing.assert_array_equal(one.catalogue.codes[rows], codes)
    assert_batch_equals_single(trial)

    ids = dataset.split.train.item_ids
    assert dataset.embeddings is not None
    with service_process(
        tmp_path / "service", bundle=out / "bundle", admin_keys="an-admin-key"
    ) as s:
        answer = s.recommend(user_id="u", history=[ids[3], ids[8]], k=10).json()
        assert (answer["served_by"], len({item["item_id"] for item in answer["items"]})) == (
            "model",
            10,
        )
        add = [
            {"item_id": f"new-{n}", "title": "New", "embedding": dataset.embeddings[3].tolist()}
            for n in range(3)
        ]
        for request in ({"add": add}, {"remove": ["new-1"]}, {"add": add[1:2]}):
            assert s.client.post("/admin/items", json=request, headers=ADMIN).status_code == 200
        everything = s.recommend(user_id="u", history=[ids[5]], k=62, beam_width=62).json()
        found = {item["item_id"] for item in everything["items"]}
        assert found == {*ids, "new-0", "new-1", "new-2"} - {ids[5]}


@pytest.mark.parametrize(
    ("kind", "collisions"),
    [
        ("random", "reassign"),
        ("opq", "digit"),
        ("opq", "reassign"),
        ("residual", "keep"),
        ("rqvae", "digit"),
    ],
)
def test_other_kinds_make_bundles_that_answer(
    kind: str, collisions: str, dataset: Dataset, out: Path, tmp_path: Path
) -> None:
    """With the network of the run above, because an export takes long: it sees codes alone."""
    config, quiet = load_config("tiny", settings(kind, collisions)), Console(quiet=True)
    run(config, dataset, tmp_path, quiet, until="codebook")
    report = record_of(tmp_path, "codebook")["collisions"]
    is_unique = report["unique_sids"] == 60
    assert is_unique == (collisions != "keep")
    parts = parts_of(dataset, config, tmp_path, out / "export", repeat_bias=0.0)
    named = {"version": "1", "created_at": "2026-11-30"}
    make_trial(tmp_path / "trial", dataset, parts, config, quiet, facts={}, **named)
    bundle = Bundle.load(tmp_path / "trial")
    assert (bundle.codebook.kind, bundle.codebook.collisions) == (kind, collisions)
    assert (bundle.manifest.content is None) == (kind == "random")
    assert_batch_equals_single(bundle)
    if kind == "rqvae":
        assert dataset.embeddings is not None
        new = bundle.with_items([Item("new", "New", ())], dataset.embeddings[3:4])
        own = bundle.catalogue.rows_of([dataset.split.train.item_ids[3]])
        sid = new.catalogue.codes[new.catalogue.rows_of(["new"])]
        assert sid[0, :-1].tolist() == bundle.catalogue.codes[own][0, :-1].tolist()
        assert len(np.unique(new.catalogue.codes, axis=0)) == 61
