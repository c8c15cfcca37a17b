"""Items that are taken out and put back: the draw, the ranks by item ids, figures by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from tiny_bundle import EMBEDDING_DIMS, NUM_ITEMS, tiny_codebook, write_tiny_bundle

from service.bundles.bundle import Bundle, Item
from service.decoding import Decoder, Job, RandomCodebook
from training.config import EvaluationConfig, ScheduleConfig
from training.data.interactions import Dataset
from training.data.splits import Interactions, Windows, leave_last_out
from training.evaluation.cold_items import (
    AS_TRAINED,
    PUT_BACK,
    ColdItems,
    taken_out_and_put_back,
)
from training.evaluation.cold_tables import FAR, Measured, cold_figures, cold_markdown
from training.evaluation.evaluation import NOT_FOUND, schedule_of
from training.evaluation.figures import paired_share
from training.evaluation.ranks_store import SystemRanks
from training.evaluation.report import evaluate_bundle

QUIET = Console(quiet=True)
CONFIG = EvaluationConfig(batch=16)
LENGTHS = (4, 9)


def dataset_of(num_users: int = 300, seed: int = 3) -> Dataset:
    """Users who go through the catalogue row by row, as the tiny prior expects it."""
    random = np.random.default_rng(seed)
    lengths = random.integers(*LENGTHS, num_users)
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    starts = np.repeat(random.integers(0, NUM_ITEMS - 1, num_users) - indptr[:-1], lengths)
    rows = starts + np.arange(len(starts)) + random.integers(0, 2, len(starts))
    rows %= NUM_ITEMS - 1  # the last item is POISON
    log = Interactions(
        tuple(f"user-{user}" for user in range(num_users)),
        tuple(f"item-{row}" for row in range(NUM_ITEMS)),
        indptr,
        rows.astype(np.int32),
    )
    embeddings = random.normal(size=(NUM_ITEMS, EMBEDDING_DIMS)).astype(np.float32)
    embeddings[::7] = 0
    items = tuple(Item(item_id, f"Title of {item_id}", ()) for item_id in log.item_ids)
    return Dataset(leave_last_out(log), items, embeddings, ())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("cold") / "bundle"))


def by_content(
    windows: Windows, embeddings: NDArray[np.floating], *, k: int, exclude_seen: bool
) -> NDArray[np.int32]:
    """Finds every second target, at rank 1."""
    assert (embeddings.shape, k, exclude_seen) == ((NUM_ITEMS, EMBEDDING_DIMS), FAR, True)
    return np.where(np.arange(len(windows)) % 2, NOT_FOUND, 1).astype(np.int32)


def test_a_tenth_is_drawn_of_items_that_can_be_measured_and_always_the_same() -> None:
    dataset = dataset_of()
    cold = ColdItems.of(dataset, CONFIG, QUIET)
    split, embeddings = dataset.split, dataset.embeddings
    assert embeddings is not None
    eligible = {
        row
        for row in split.test.targets.tolist()
        if row in split.train.rows and embeddings[row].any()
    }
    assert cold.num_eligible == len(eligible)
    assert set(cold.drawn.tolist()) < eligible
    assert len(set(cold.drawn.tolist())) == len(cold.drawn) == round(len(eligible) / 10)
    assert cold.drawn.tolist() == ColdItems.of(dataset, CONFIG, QUIET).drawn.tolist()
    assert cold.is_new.tolist() == [row in cold.drawn for row in split.test.targets]
    fewer = ColdItems.of(dataset, CONFIG.model_copy(update={"users": 250}), QUIET)
    assert fewer.drawn.tolist() == cold.drawn.tolist()
    assert len(fewer.windows) == 250


def test_what_cannot_be_measured_is_said_in_a_sentence(bundle: Bundle) -> None:
    def said(bundle: Bundle, dataset: Dataset) -> str:
        found = taken_out_and_put_back(bundle, dataset, CONFIG, by_content, QUIET)
        (sentence,) = found.values()
        assert list(found) == ["not_measured"]
        return str(sentence)

    dataset = dataset_of()
    assert "it has none; give --embeddings" in said(bundle, replace(dataset, embeddings=None))
    nothing = np.zeros((NUM_ITEMS, EMBEDDING_DIMS), np.float32)
    assert "give more data" in said(bundle, replace(dataset, embeddings=nothing))
    other = np.ones((NUM_ITEMS, 5), np.float32)
    assert "12 numbers and those of the data have 5" in said(
        bundle, replace(dataset, embeddings=other)
    )
    of_titles = replace(bundle, codebook=replace(tiny_codebook(), content=None))
    assert "from titles by TF-IDF; train with --embeddings" in said(of_titles, dataset)
    of_chance = replace(bundle, codebook=RandomCodebook((4, 16, 64)))
    assert said(of_chance, dataset).endswith("no embeddings: its codes were drawn at random")


def test_new_items_are_those_of_the_service_behind_all_others(bundle: Bundle) -> None:
    dataset = dataset_of()
    cold = ColdItems.of(dataset, CONFIG, QUIET)
    ids = [f"item-{row}" for row in cold.drawn]
    grown = cold.added_to(bundle)
    assert list(grown.catalogue.item_ids[-len(ids) :]) == ids
    assert grown.catalogue.num_items == NUM_ITEMS
    assert not grown.catalogue.popularity[-len(ids) :].any()
    assert dataset.embeddings is not None
    known = bundle.catalogue.vectors[bundle.catalogue.popularity > 0]
    vectors, _ = bundle.codebook.vectors_of(dataset.embeddings[cold.drawn], known)
    without = bundle.without_items(ids)
    expected = without.with_items([dataset.items[row] for row in cold.drawn],
                                  dataset.embeddings[cold.drawn])  # fmt: skip
    np.testing.assert_array_equal(grown.catalogue.codes, expected.catalogue.codes)
    assert len(vectors) == len(ids)
    again = cold.added_to(without)  # as a bundle that was trained without them
    assert list(again.catalogue.item_ids) == list(grown.catalogue.item_ids)
    assert bundle.catalogue.item_ids[0] == "item-0"


def rank_by_ids(
    bundle: Bundle, decoder: Decoder, dataset: Dataset, windows: Windows, window: int, k: int
) -> int:
    """One user alone, by item ids only."""
    ids = dataset.split.train.item_ids
    history = bundle.catalogue.rows_of(ids[row] for row in windows.history_of(window))
    decoding = bundle.manifest.decoding.wide_enough(k)
    schedule = schedule_of(decoding, bundle.catalogue.num_subspaces)
    job = Job(history, 2 * k, schedule, decoding.beam_width, history, 0, decoding.ranking)
    [answer], _ = decoder.decode([job])
    answered = [bundle.catalogue.item_ids[row] for row in answer.rows[:k]]
    target = ids[windows.targets[window]]
    return answered.index(target) + 1 if target in answered else int(NOT_FOUND)


@pytest.mark.parametrize("state", [AS_TRAINED, PUT_BACK])
def test_ranks_are_those_of_item_ids_whatever_the_rows(bundle: Bundle, state: str) -> None:
    dataset = dataset_of()
    cold = ColdItems.of(dataset, CONFIG, QUIET)
    asked = bundle if state == AS_TRAINED else cold.added_to(bundle)
    full, bare = cold.ask(state, asked)
    assert (full.system, bare.system) == (f"Unmask, {state}", f"Unmask, prior off, {state}")
    assert bare.others is None
    assert full.others is not None
    assert full.new.far is not None
    assert bare.new.far is not None
    windows, new = cold.windows, np.flatnonzero(cold.is_new)
    assert (len(full.new.item), len(full.others.item)) == (len(new), len(windows) - len(new))
    without_prior = replace(asked.decoder, prior=None)
    for place, window in enumerate(new.tolist()):
        for one, decoder in ((full, asked.decoder), (bare, without_prior)):
            assert one.new.far is not None
            for k, found in ((10, one.new.item), (FAR, one.new.far)):
                expected = rank_by_ids(asked, decoder, dataset, windows, window, k)
                assert found[place] == expected
    old = np.flatnonzero(~cold.is_new)
    for place in range(0, len(old), 20):
        expected = rank_by_ids(asked, asked.decoder, dataset, windows, int(old[place]), 10)
        assert full.others.item[place] == expected
    assert (full.others.item <= 10).sum() > 5
    assert (full.new.far <= FAR).any()


def test_the_figures_of_a_bundle_count_its_users(bundle: Bundle) -> None:
    dataset = dataset_of()
    cold = ColdItems.of(dataset, CONFIG, QUIET)
    found = taken_out_and_put_back(bundle, dataset, CONFIG, by_content, QUIET)
    assert (found["items"], found["of_items"]) == (len(cold.drawn), cold.num_eligible)
    assert found["exclude_seen"] is True
    states = [
        f"{prior}{state}" for state in (AS_TRAINED, PUT_BACK) for prior in ("", "prior off, ")
    ]
    assert [line["system"] for line in found["systems"]] == [
        *(f"Unmask, {state}" for state in states),
        "text kNN",
    ]
    num_new = int(cold.is_new.sum())
    assert {line["users"] for line in found["systems"]} == {num_new}
    assert found["systems"][-1]["recall@10"] == round(math.ceil(num_new / 2) / num_new, 5)
    (others,) = found["others"]
    assert others["users"] == len(dataset.split.test) - num_new
    full, _ = cold.ask(AS_TRAINED, bundle)
    assert full.others is not None
    assert others["before"] == round(float((full.others.item <= 10).mean()), 5)


def test_the_report_holds_them(bundle: Bundle, tmp_path: Path) -> None:
    decoding = bundle.manifest.decoding
    point = {**decoding.model_dump(), "nfe": 3, "recall@10": 0.1, "ndcg@10": 0.1}
    point |= {"behind": 0, "error": 0, "milliseconds": 1}
    grid = {"users": 1, "timing_users": 1, "chosen": 0, "points": [point]}
    one_call = {"schedules": (ScheduleConfig(r_warm=0),), "invalid_sid_users": 3}
    config = CONFIG.model_copy(update=one_call)
    dataset = dataset_of()
    for data, sentence in (
        (dataset, "| Unmask, put back |"),
        (
            replace(dataset, embeddings=None),
            "New items cannot be measured on this data, because items are added with content "
            "embeddings and it has none; give --embeddings.",
        ),
    ):
        said = evaluate_bundle(
            bundle, data, config, tmp_path, QUIET, grid=grid, ranks_by_content=by_content
        )
        expected = taken_out_and_put_back(bundle, data, config, by_content, QUIET)
        assert said["new_items"] == expected
        assert json.loads((tmp_path / "report.json").read_text())["new_items"] == expected
        text = (tmp_path / "report.md").read_text()
        assert text.count("## New items") == 1
        assert sentence in text


def of(item: list[int], far: list[int] | None = None) -> SystemRanks:
    return SystemRanks(
        np.array(item, np.int32), far=None if far is None else np.array(far, np.int32)
    )


def test_figures_by_hand() -> None:
    none = int(NOT_FOUND)
    systems = [
        Measured("as trained", of([1, 10, 3, none], [1, 10, 3, 99]), of([1, 2, 3, 4, none])),
        Measured("put back", of([2, none, 4, none], [2, 40, 4, none]), of([1, 11, 3, 4, none])),
        Measured("text kNN", of([none, none, 10, none], [50, 100, 10, none])),
    ]
    found: dict[str, Any] = cold_figures(systems)
    first, second, third = found["systems"]
    assert [line["users"] for line in found["systems"]] == [4, 4, 4]
    assert (first["recall@10"], first["recall@100"]) == (0.75, 1.0)
    assert first["recall@10_error"] == round(math.sqrt(0.75 * 0.25 / 4), 5)
    assert (first["share"], first["share_error"]) == (1.0, 0.0)
    assert (second["recall@10"], second["recall@100"]) == (0.5, 0.75)
    assert second["ndcg@10"] == round((1 / math.log2(3) + 1 / math.log2(5)) / 4, 5)
    # hits 1 0 1 0, of the reference 1 1 1 0: share 2/3; hits - 2/3 reference: 1/3 -2/3 1/3 0
    assert second["share"] == round(2 / 3, 4)
    assert second["share_error"] == round(math.sqrt(6 / 9 / 4) / 0.75 / 2, 4)
    assert second["to_text_knn"] == 0.25  # differences 1 0 0 0
    assert second["to_text_knn_error"] == round(math.sqrt(1 / 4 - 1 / 16) / 2, 5)
    assert second["verdict"] == "tie"
    assert (third["recall@10"], third["recall@100"]) == (0.25, 0.75)
    assert "verdict" not in third
    (others,) = found["others"]
    assert (others["system"], others["users"]) == ("put back", 5)
    assert (others["before"], others["after"], others["change"]) == (0.8, 0.6, -0.2)
    assert others["change_error"] == round(math.sqrt(1 / 5 - 1 / 25) / math.sqrt(5), 5)
    assert others["verdict"] == "tie"

    new, rest = cold_markdown(found).split("\n\n")
    assert new.splitlines()[3] == (
        "| put back | 4 | 0.5000 ± 0.2500 | 0.7500 | 0.2654 | 0.67 ± 0.27 "
        "| +0.2500 ± 0.2165 | tie |"
    )
    assert new.splitlines()[4].endswith("| 0.33 ± 0.27 | - | - |")
    assert rest.splitlines()[2] == (
        "| put back | 5 | 0.8000 | 0.6000 | -0.2000 ± 0.1789 | -25.0 ± 22.4 % | tie |"
    )


def test_a_share_of_nothing_is_no_figure() -> None:
    nothing, some = np.array([NOT_FOUND] * 3, np.int32), np.array([1, 2, NOT_FOUND], np.int32)
    assert paired_share(some, nothing) is None
    assert paired_share(nothing, some) == (0.0, 0.0)
    lost = [Measured("a", of([99], [99])), Measured("b", of([99], [99]), of([1]))]
    found = cold_figures(lost)
    assert [line["share"] for line in found["systems"]] == [None, None]
    assert found["others"] == []
    assert "| b | 1 | 0.0000 ± 0.0000 | 1.0000 | 0.0000 | - | - | - |" in cold_markdown(found)
