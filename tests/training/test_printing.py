"""Text is printed as it is: text in brackets survives every command."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from training.__main__ import main
from training.printing import data_console, progress_bar

ROOT = Path(__file__).resolve().parents[2]
MADE_WITH = {
    "Console": {"markup", "emoji", "highlight"},
    "TextColumn": {"markup"},
}

MARKUP = re.compile(r"\[/?(?:bold|dim|italic|red|green|yellow|cyan|progress)\b")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    return main()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--data", "no[text]:cat:", "--out", "out"),
        ("run", "--preset", "no[text]:cat:", "--out", "out"),
        ("run", "--set", "fit.no[text]:cat:=1", "--out", "out"),
        ("run", "--set", "interactions.time_format=no[text]:cat:", "--data", "log", "--out", "o"),
        ("evaluate", "--bundle", "no[text]:cat:", "--out", "out"),
        ("step-time", "--run", "no[text]:cat:"),
        ("compare", "--data", "no[text]:cat:", "--out", "out"),
        ("promote", "no[text]:cat:"),
        ("fetch", "no[text]:cat:", "--out", "out"),
        ("fetch", "ml-1m", "--out", "out", "--checksum", "no[text]:cat:"),
        ("synthesize", "--out", "out", "--no[text]:cat:", "1"),
        ("no[text]:cat:",),
    ],
)
def test_what_stands_in_brackets_survives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log").mkdir()
    Path("log/interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1 May 2014\n")
    assert run(monkeypatch, *arguments) in (1, 2)
    said = capsys.readouterr().err
    assert "no[text]:cat:" in said
    assert "Traceback" not in said


def test_the_hint_of_a_run_without_a_text_model_keeps_its_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    world, out = str(tmp_path / "[b]world"), str(tmp_path / "run")
    assert run(monkeypatch, "synthesize", "--out", world, "--users", "60", "--items", "200") == 0
    options = ["--preset", "tiny", "--set", "codebook.num_codes=8", "--until", "codebook"]
    assert run(monkeypatch, "run", "--data", world, "--out", out, *options) == 0
    said = capsys.readouterr()
    assert "(pip install 'unmask[text]', or in a checkout -e '.[text]')" in said.err
    assert "[b]world" in said.out


def test_help_keeps_its_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "compare", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "[default: systems, schedules, lengths]" in said


def test_consoles_and_bars_print_data_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    data_console().print("[bold]a[/bold] :cat: [link=x]")
    assert capsys.readouterr().err == "[bold]a[/bold] :cat: [link=x]\n"
    screen = Console(width=80, force_terminal=False, record=True, markup=False, emoji=False)
    with progress_bar(console=screen) as bar:
        bar.add_task("reviews[2014].json", total=1)
        bar.refresh()
    assert "reviews[2014].json" in capsys.readouterr().out


def misprints(source: str) -> list[str]:
    """Consoles and columns made with markup, and text that relies on markup."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="Console" | "TextColumn" as name), keywords=keywords):
                off = {
                    keyword.arg
                    for keyword in keywords
                    if isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                }
                found += [f"{name} without {lacks}=False" for lacks in MADE_WITH[name] - off]
            case ast.Constant(value=str() as text) if MARKUP.search(text):
                found.append(text)
    return found


@pytest.mark.parametrize("package", ["training", "loadtest", "service"])
def test_no_console_reads_markup(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(file): what for file in files if (what := misprints(file.read_text()))}
    assert not found


def test_the_rule_finds_what_it_forbids() -> None:
    assert misprints('Console(stderr=True)\nTextColumn("x")\nprint("[bold]x")')
    assert not misprints("Console(markup=False, emoji=False, highlight=False)")
