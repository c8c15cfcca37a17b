"""Command line of the training package: `python -m training --help`.

Progress and tables go to standard error; the last line on standard output is one JSON document.
Exit status: 0 done, 1 failed (with a sentence), 2 wrong arguments; of `nightly` also 3 and 4. A
command imports the rooms that it needs when it runs: torch alone takes seconds, and `--help` needs
none of them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.errors import StartError
from training.config import ComparisonTable, RunConfig, StageName
from training.errors import (
    ConfigError,
    DataError,
    TrainingError,
    check_folder,
    check_runtime,
    sentence_of,
)
from training.preset import config_of, load_config, preset_names
from training.printing import data_console

if TYPE_CHECKING:
    from training.data import Dataset

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with markup, help and errors lose what stands in brackets
    help="Train a bundle for the Unmask service from items and interactions.",
)
# service.bundles.bundle.Precision and training.data.DATASETS: both take seconds to import.
PrecisionName = Literal["fp32", "int8"]
EngineName = Literal["local", "ray"]
PUBLIC_DATASETS = (
    *("amazon2014-beauty", "amazon2014-sports", "amazon2014-toys"),
    *("ml-1m", "ml-latest-small"),
)
EXIT_STATUS = {"refused": 3, "undecided": 4}  # of a night
console = data_console()

DataOption = Annotated[
    Path | None, typer.Option("--data", help="folder with interactions, items, embeddings")
]
InteractionsOption = Annotated[
    Path | None,
    typer.Option(
        help="parquet, CSV, TSV, JSON lines, RecBole's .inter, or a folder of parts: user_id, "
        "item_id, position or timestamp"
    ),
]
ItemsOption = Annotated[
    Path | None, typer.Option(help="likewise, or RecBole's .item: item_id, title, categories")
]
EmbeddingsOption = Annotated[
    Path | None, typer.Option(help=".npy of (items, d) floats, in the order of the items file")
]
PresetOption = Annotated[
    str, typer.Option(help=f"{', '.join(preset_names())}, or a path to a TOML file")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, wins over the preset; may be repeated"),
]


@app.command("run")
def run_command(
    out: Annotated[Path, typer.Option(help="folder of the run; run again to resume")],
    data: DataOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    embeddings: EmbeddingsOption = None,
    preset: PresetOption = "default",
    overrides: SetOption = None,
    until: Annotated[StageName, typer.Option(help="last stage")] = "bundle",
) -> dict[str, Any]:
    """From interactions to a bundle in <out>/bundle. Finished stages are skipped.

    <out>/trial is the same before it learnt what validation and test held out: what was measured.
    """
    check_folder("--out", out)
    check_runtime()
    from training.pipeline import run

    config = load_config(preset, overrides)
    dataset = _read(config, data, interactions, items, embeddings)
    return {"out": str(out), **run(config, dataset, out, console, until=until)}


@app.command("nightly")
def nightly_command(
    out: Annotated[Path, typer.Option(help="folder of all nights; each has a run in it, by date")],
    store: Annotated[Path, typer.Option(help="store the service reads")] = Path("models_store"),
    data: DataOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    embeddings: EmbeddingsOption = None,
    preset: PresetOption = "default",
    overrides: SetOption = None,
    night: Annotated[
        str | None,
        typer.Option(
            help="its date  [default: of the newest night, if it was cut off; else today, in UTC]",
            show_default=False,
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="largest loss that is accepted, as a share")
    ] = 0.05,
    keep: Annotated[int, typer.Option(min=2, help="newest versions and nights that stay")] = 7,
    warm_start: Annotated[
        float,
        typer.Option(min=0, max=1, help="share of a fit, from what is in service; 0 = fit anew"),
    ] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="promote what is undecided")] = False,
) -> dict[str, Any]:
    """Train, compare with the bundle in service, and promote what is as good. Run again to resume.

    Exit status: 0 promoted, now or before; 3 refused; 4 undecided.
    """
    check_folder("--out", out)
    check_folder("--store", store)
    check_runtime()
    from training.pipeline import NightPlan, night_to_do, nightly

    config = load_config(preset, overrides)
    night = night or night_to_do(out, store, config.bundle.name)
    key = os.environ.get("UNMASK_BUNDLE_KEY")
    plan = NightPlan(night, out, store, margin, keep, warm_start, force, key)
    dataset = _read(config, data, interactions, items, embeddings)
    return asdict(nightly(config, dataset, plan, console))


@app.command("evaluate")
def evaluate_command(
    bundle: Annotated[Path, typer.Option(help="folder of the bundle")],
    out: Annotated[Path, typer.Option(help="folder for report.json, report.md, ranks.jsonl")],
    data: DataOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    embeddings: EmbeddingsOption = None,
    overrides: SetOption = None,
    precision: Annotated[PrecisionName, typer.Option(help="of the bundle's graphs")] = "fp32",
    set_default: Annotated[
        bool, typer.Option("--set-default", help="write the setting chosen into the manifest")
    ] = False,
    horizon: Annotated[
        int, typer.Option(min=1, help="above 1: also hold out so many items, predicted together")
    ] = 1,
) -> dict[str, Any]:
    """Measure the decoding settings of a bundle on validation users, and it on test users.

    And what becomes of new items. With the configuration it records. Only --set-default changes
    the bundle.
    """
    check_folder("--out", out)
    check_runtime()
    from service.bundles import Bundle
    from training.bundling import check_not_promoted
    from training.pipeline import evaluate_again

    loaded = Bundle.load(bundle, precision=precision)
    if set_default:
        check_not_promoted(bundle, loaded.manifest)
    config = config_of(loaded.manifest.facts, bundle, overrides)
    dataset = _read(config, data, interactions, items, embeddings)
    change = bundle if set_default else None
    return evaluate_again(loaded, dataset, config, out, console, horizon=horizon, change=change)


@app.command("independence")
def independence_command(
    bundle: Annotated[Path, typer.Option(help="folder of the bundle")],
    out: Annotated[Path, typer.Option(help="folder for independence.json, independence.md")],
    data: DataOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    embeddings: EmbeddingsOption = None,
    users: Annotated[int, typer.Option(min=1, help="test users, a fixed random draw")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="codes drawn for each user and position")] = 16,
) -> dict[str, Any]:
    """Measure how wrong it is to take the codes of an item for independent, as a call does.

    Accuracy of each position, mutual information of pairs of positions, recall against m_par.
    """
    check_folder("--out", out)
    check_runtime()
    from service.bundles import Bundle
    from training.evaluation import report_independence

    loaded = Bundle.load(bundle)
    config = config_of(loaded.manifest.facts, bundle)
    dataset = _read(config, data, interactions, items, embeddings)
    return report_independence(
        loaded, dataset, config.evaluation, out, console, users=users, draws=draws
    )


@app.command("inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="interactions, or a folder as of --data")],
    items: ItemsOption = None,
    preset: PresetOption = "default",
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document instead")] = False,
) -> None:
    """Say what training understands of a log of interactions, and what may be wrong with it.

    Nothing is trained. The exit status is 1 if training would refuse the files.
    """
    from training.data import inspect, said

    config = load_config(preset, overrides)
    told = inspect(file, items, config.interactions, config.items)
    print(*([json.dumps(asdict(told))] if as_json else said(told)), sep="\n")
    if told.refused is not None:
        raise DataError(told.refused)


@app.command("step-time")
def step_time_command(
    run: Annotated[Path, typer.Option(help="folder of a run whose codebook is there")],
    data: DataOption = None,
    preset: PresetOption = "default",
    overrides: SetOption = None,
) -> dict[str, Any]:
    """Time training steps on this machine, beside the matrix products it could do."""
    check_runtime()
    from service.decoding import SidTrie
    from training.fitting import step_time
    from training.pipeline import catalogue_of

    if not (run / "codebook.json").is_file():
        raise ConfigError(f"{run} is no run with a codebook: train --until codebook first")
    config = load_config(preset, overrides)
    dataset = _read(config, data)
    return step_time(dataset.split, SidTrie(catalogue_of(dataset, config, run)), config)


@app.command("device-check")
def device_check_command(
    out: Annotated[Path, typer.Option(help="folder for device-check.json and what it is made of")],
    preset: PresetOption = "default",
    overrides: SetOption = None,
) -> dict[str, Any]:
    """Try training and decoding on every device of this machine, beside its processor."""
    check_folder("--out", out)
    check_runtime()
    from training.pipeline import device_check

    return device_check(load_config(preset, overrides), out, console)


@app.command("compare")
def compare_command(
    out: Annotated[Path, typer.Option(help="folder of the comparison; run again to resume")],
    data: DataOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    embeddings: EmbeddingsOption = None,
    preset: PresetOption = "default",
    overrides: SetOption = None,
    tables: Annotated[
        list[ComparisonTable] | None,
        typer.Option(
            "--table",
            help="what the document holds; may be repeated  [default: systems, schedules, lengths]",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs with other seeds; see --table")] = 1,
    systems: Annotated[
        list[str] | None,
        typer.Option(
            "--system",
            help="a model of your own, module:Class, in the table of systems; may be repeated",
        ),
    ] = None,
    families: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help="a preset beside the first in the tables of families; --set is for all; may be "
            "repeated  [default: maskgr, tiger]",
        ),
    ] = None,
) -> dict[str, Any]:
    """The run, its schedules and the baselines on one split: comparison.md, .csv, .png, .svg."""
    check_folder("--out", out)
    check_runtime()
    from training.comparison import Origin, Plan, compare

    config = load_config(preset, overrides)
    plan = Plan.of(
        config, preset, tables or (), seeds, systems or (), families or (), overrides or ()
    )
    dataset = _read(config, data, interactions, items, embeddings)
    source = interactions or data or Path()  # without both _read has raised
    command = shlex.join(["python", "-m", "training", *sys.argv[1:]])
    name = source.stem if source.is_file() else source.resolve().name
    return compare(config, dataset, out, console, plan=plan, origin=Origin(name, preset, command))


@app.command("recommend")
def recommend_command(
    bundle: Annotated[Path, typer.Option(help="folder of the bundle")],
    users: Annotated[Path, typer.Option(help="histories: a file as of --interactions of run")],
    out: Annotated[Path, typer.Option(help="parquet file to write; it is replaced")],
    engine: Annotated[EngineName, typer.Option(help="threads here, or actors of Ray")] = "local",
    k: Annotated[int, typer.Option(min=1, max=1000, help="items for each user")] = 10,
    exclude_seen: Annotated[bool, typer.Option(help="leave out items of the history")] = True,
    workers: Annotated[int, typer.Option(min=0, help="threads or actors; 0 = all cores")] = 0,
    overrides: SetOption = None,
) -> dict[str, Any]:
    """Recommend items to all users of a file, as the service would.

    The file has user_id, rank, item_id, score and served_by. A run that was stopped goes on.
    """
    check_runtime()
    from service.bundles import Bundle
    from training.data import read_interactions
    from training.evaluation import Asked, recommend_to_file

    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out} must end in .parquet")
    check_folder("--out", out.parent)
    loaded = Bundle.load(bundle)
    config = config_of(loaded.manifest.facts, bundle, overrides)
    said: list[str] = []
    log = read_interactions(users, config.interactions, said, said)
    console.print(*said, sep="\n")
    how = {"asked": Asked(k, exclude_seen), "engine": engine, "workers": workers}
    return recommend_to_file(bundle, loaded, log, out, console, **how)


@app.command("promote")
def promote_command(
    bundle: Annotated[Path, typer.Argument(help="folder of the bundle")],
    store: Annotated[Path, typer.Option(help="store the service reads")] = Path("models_store"),
) -> dict[str, Any]:
    """Verify a bundle and copy it to <store>/<name>/<version>.

    Signed with the key in UNMASK_BUNDLE_KEY, if that is set.
    """
    from training.bundling import promote

    check_folder("--store", store)
    manifest, target = promote(bundle, store, os.environ.get("UNMASK_BUNDLE_KEY"))
    said = {"digest": manifest.digest, "signed": manifest.signature is not None}
    return {"bundle": manifest.ref, "path": str(target), **said}


@app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(PUBLIC_DATASETS)}")],
    out: Annotated[Path, typer.Option(help="folder to download and prepare")],
    checksum: Annotated[
        list[str] | None,
        typer.Option(help="file=sha256:HEX or file=md5:HEX, wins over a published checksum"),
    ] = None,
) -> dict[str, Any]:
    """Download a public data set, check it, and prepare a folder for --data."""
    from training.data import checksums_of, fetch

    check_folder("--out", out)
    fetched = fetch(name, out, checksums=checksums_of(checksum or []), console=console)
    console.print(f"terms of use: {fetched.terms}")
    told = {"sha256": fetched.sha256, "unchecked": list(fetched.unchecked)}
    return {**vars(fetched.prepared), **told}


@app.command("synthesize")
def synthesize_command(
    out: Annotated[Path, typer.Option(help="folder to write interactions and items to")],
    users: Annotated[int, typer.Option(min=1)] = 4000,
    items: Annotated[int, typer.Option(min=1)] = 1200,
    noise: Annotated[float, typer.Option(min=0, max=1, help="1 = nothing to learn")] = 0.1,
    seed: int = 7,
) -> dict[str, Any]:
    """Make a synthetic catalogue and users whose next item is partly predictable."""
    from training.data import synthesize

    check_folder("--out", out)
    return synthesize(out, users, items, noise, seed)


def _read(
    config: RunConfig,
    data: Path | None,
    interactions: Path | None = None,
    items: Path | None = None,
    embeddings: Path | None = None,
) -> Dataset:
    """Read the data, and say how it was read and what may not be as meant."""
    from training.data import load_dataset

    dataset = load_dataset(data, interactions, items, embeddings, config.interactions, config.items)
    for note in dataset.notes:
        console.print(note)
    for warning in dataset.warnings:
        console.print(warning, style="yellow")
    return dataset


def main() -> int:
    """Run a command; print its result as one JSON line."""
    try:
        result = app(standalone_mode=False)
    except typer.TyperException as error:
        error.show()
        return 2
    except ConfigError as error:
        console.print(f"error: {error}")
        return 2
    except (TrainingError, StartError) as error:
        console.print(f"error: {error}")
        return 1
    except OSError as error:
        console.print(f"error: {sentence_of(error)}")
        return 1
    except (KeyboardInterrupt, typer.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # which typer takes for the end of the input
            console.print(f"error: a file ends too early: {stop.__cause__}")
            return 1
        console.print("stopped; run the same command again to go on")
        return 130
    if isinstance(result, dict):
        print(json.dumps(result))
        return EXIT_STATUS.get(str(result.get("verdict")), 0)
    return 0


if __name__ == "__main__":
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun has started several of us
        from training.fitting import learn_together

        sys.exit(learn_together(main))
    sys.exit(main())
