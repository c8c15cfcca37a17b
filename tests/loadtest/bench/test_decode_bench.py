"""decode_bench runs as a command on both kinds of catalogue, and its figures add up."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from loadtest.bench.decode_bench import main
from loadtest.bench.flops import FlopCounter
from loadtest.bench.memory import index_bytes
from loadtest.bench.report import Timed, case_figures
from loadtest.bench.synthetic import catalogue_of
from service.bundles.store import configured_path
from service.decoding import SidTrie

ROOT = Path(__file__).resolve().parents[3]
STAGES = ("encode", "denoise", "search")
NAMES = ("search", "ranking", "r_warm", "m_par", "beam_width", "batch")
SYNTHETIC = ["--num-codes", "40", "--num-subspaces", "4", "--users", "3", "--rounds", "2"]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.bench.decode_bench", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def figures(*arguments: str) -> dict[str, Any]:
    done = bench(*arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def names_of(catalogue: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(case[name] for name in NAMES) for case in catalogue["cases"]]


def test_synthetic_catalogues() -> None:
    found = figures(
        *SYNTHETIC,
        *("--items", "500", "2000", "--schedules", "0,4", "4,2", "--beam-widths", "3", "50"),
        *("--batch", "2", "--left-to-right"),
    )
    assert [catalogue["num_items"] for catalogue in found["catalogues"]] == [500, 2000]
    schedules = [(0, 4), (4, 2), (4, 1)]
    expected = [
        ("any-order", ranking, *schedule, beam_width, batch)
        for ranking, schedule, beam_width, batch in product(
            ["rows", "best", "path"], schedules, [3, 50], [1, 2]
        )
    ]
    expected += [("left-to-right", "path", 4, 1, beam_width, 1) for beam_width in (3, 50)]
    for catalogue in found["catalogues"]:
        assert sorted(names_of(catalogue)) == sorted(expected)
        assert catalogue["index_bytes_per_item"] >= 8
        assert catalogue["prefix_trie_bytes_per_item"] >= 4
        assert min(catalogue["build_s"], catalogue["prefix_trie_build_s"]) > 0
        for case in catalogue["cases"]:
            check_times(case)
            assert case["speed_against_paper"] > 0
            assert (case["speed_against_left_to_right"] is None) == (case["batch"] == 2)
            assert case["gemm_share"] is None


def test_filters_are_held_against_none() -> None:
    found = figures(
        *(*SYNTHETIC, "--items", "500", "--schedules", "0,4", "1,3", "--ranking", "rows"),
        *("--beam-widths", "3", "--batch", "1", "--filter-shares", "0.001", "0.7"),
    )
    cases = found["catalogues"][0]["cases"]
    assert [case["filter_share"] for case in cases] == 2 * [None, 0.001, 0.7]
    for case in cases:
        check_times(case)
        ratio = case["search_against_unfiltered"]
        assert ratio is None if case["filter_share"] is None else ratio > 0


def check_times(case: dict[str, Any]) -> None:
    for stage in (*STAGES, "total"):
        times = case[f"{stage}_ms"]
        assert 0 < times["q1"] <= times["median"] <= times["q3"]
    assert math.isfinite(case["search_to_network"])
    assert case["search_to_network"] > 0


def test_the_demo_bundle() -> None:
    found = figures(
        *(
            "--bundle",
            str(configured_path(Path("models_store"), "demo")),
            "--users",
            "3",
            "--rounds",
            "2",
        ),
        *("--schedules", "0,8", "4,2", "--beam-widths", "10", "--batch", "1", "--left-to-right"),
    )
    [catalogue] = found["catalogues"]
    assert catalogue["network"].startswith("demo@")
    assert catalogue["precision"] == "fp32"
    assert catalogue["gemm_flops_per_s"] > 1e8
    assert len(catalogue["cases"]) == 3 * 3 + 1
    for case in catalogue["cases"]:
        check_times(case)
        assert case["speed_against_left_to_right"] > 0
        if case["search"] == "any-order":
            assert 0 < case["gemm_share"] < 1.5
    paper = [case for case in catalogue["cases"] if (case["r_warm"], case["m_par"]) == (4, 2)]
    assert [case["speed_against_paper"] for case in paper] == [1, 1, 1]


def test_several_threads_give_no_share_of_the_peak() -> None:
    many = {name: "2" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    arguments = ("--schedules", "0,8", "--beam-widths", "10", "--batch", "1", "--users", "1")
    bundle = str(configured_path(Path("models_store"), "demo"))
    done = bench("--bundle", bundle, *arguments, "--rounds", "1", **many)
    assert "set OMP_NUM_THREADS=1" in done.stderr
    [catalogue] = json.loads(done.stdout.splitlines()[-1])["catalogues"]
    assert [case["gemm_share"] for case in catalogue["cases"]] == [None] * 3


DEMO = str(configured_path(Path("models_store"), "demo"))


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--bundle", "models_store/none"], 1, "name the folder of a bundle"),
        (["--bundle", DEMO, "--precision", "int8"], 1, "has no int8 graphs"),
        (["--items", "50", *SYNTHETIC, "--schedules", "5,1"], 1, "r_warm must be between 0 and 4"),
        (["--items", "50", "--schedules", "5"], 2, "'5' is not two numbers, as 4,2"),
        (["--items", "50", "--filter-shares", "0"], 2, "'0' is not a share above 0"),
        (["--items", "0"], 2, "'0' is not a number of at least 1"),
        ([], 2, "one of the arguments --bundle --items is required"),
    ],
)
def test_what_cannot_run_is_said(
    arguments: list[str],
    status: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert ended.value.code == status
    assert sentence in capsys.readouterr().err


def timed(seconds: list[tuple[float, float, float]], **names: Any) -> Timed:
    usual = {"search": "any-order", "ranking": "path", "r_warm": 4, "m_par": 2, "nfe": 6}
    usual |= {"beam_width": 50, "batch": 1, "filter_share": None}
    return Timed(usual | names, np.array(seconds))


def test_figures_by_hand() -> None:
    """A ratio is the median of the rounds' ratios: the third round was slow for all."""
    one_call, paper, rival, other = case_figures(
        [
            timed([(1, 1, 2), (1, 1, 2), (10, 10, 20)], r_warm=0, m_par=8),
            timed([(2, 4, 2), (2, 4, 2), (20, 40, 20)]),
            timed([(1, 1, 1), (1, 1, 1), (10, 10, 10)], search="left-to-right", r_warm=8, m_par=1),
            timed([(1, 1, 1)] * 3, r_warm=0, m_par=8, ranking="rows", batch=8),
        ]
    )
    assert one_call["search_ms"] == {"q1": 2000, "median": 2000, "q3": 11000}
    assert one_call["total_ms"]["median"] == 4000
    assert one_call["search_to_network"] == 1
    assert one_call["speed_against_paper"] == 2
    assert one_call["speed_against_left_to_right"] == 0.75
    assert one_call["search_speed_against_left_to_right"] == 0.5
    assert paper["speed_against_paper"] == 1
    assert rival["speed_against_paper"] == pytest.approx(8 / 3, rel=1e-4)
    assert other["speed_against_paper"] is None
    assert other["speed_against_left_to_right"] is None


def test_flops_by_hand(tmp_path: Path) -> None:
    """(jobs * beams * 2, 32) by (32, 5), and (3, jobs) transposed by (3, 7)."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["y"]),
        helper.make_node("Gemm", ["z", "small"], ["w"], transA=1),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["jobs", "beams", "asked", 32]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, "jobs"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yw"]
    weights = {
        "weight": np.zeros((32, 5), np.float32),
        "small": np.zeros((3, 7), np.float32),
        "shape": np.array([-1, 32]),
    }
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, constants)
    onnx.save(helper.make_model(graph), tmp_path / "decoder.onnx")
    counter = FlopCounter(tmp_path / "decoder.onnx")
    for jobs, beams, asked in [(1, 1, 2), (4, 50, 3)]:
        expected = 2 * jobs * beams * asked * 32 * 5 + 2 * jobs * 3 * 7
        assert counter.of_call((jobs, beams, asked)) == expected


def test_index_bytes_are_those_of_the_arrays_held() -> None:
    trie = SidTrie(catalogue_of(np.zeros((100, 8), np.uint16), 3))
    held = index_bytes(trie)
    assert held >= trie.catalogue.codes.nbytes
    assert trie.pairs is not None  # 24 ** 2 bytes of 100 items pay
    parts = (trie.codes, trie.indptr, trie.rows, trie.num_legal, trie.pairs)
    assert held == sum(part.nbytes for part in parts)
    trie.reference_to_shared_memory = trie.catalogue.codes[10:]  # type: ignore[attr-defined]
    assert index_bytes(trie) == held
    trie.more = np.zeros(1000, np.uint8)  # type: ignore[attr-defined]
    assert index_bytes(trie) == held + 1000
