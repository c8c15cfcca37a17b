"""A night: train, hold the result against what is in service, promote it if it is as good, tidy up.

Each night is a run in a folder of its own, `<out>/<night>`. It can be cut off anywhere: the same
command goes on. The trial of the night is compared with the trial of the bundle in service, because
bundles that ship have learnt what is held out (docs/decisions/057). Knows no option of the command
line, and no service: replicas look at the store by themselves.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from joblib import cpu_count
from rich.console import Console

from service.bundles import Bundle, Manifest, reference_at, verify
from service.errors import BundleInvalid
from training.bundling import (
    PairedRecall,
    found_by,
    in_service,
    paired_recall,
    promote,
    prune,
    put_in_service,
)
from training.config import InteractionsConfig, RunConfig
from training.data import Dataset
from training.errors import ConfigError, DataError
from training.evaluation import draw_windows
from training.pipeline.night_log import FILE, Entry, NightLog
from training.pipeline.run import run
from training.pipeline.warm_start import WarmStart, warm_start
from training.stages import remove

NIGHT = r"\d{4}-\d{2}-\d{2}[\w.-]*"


@dataclass(frozen=True)
class NightPlan:
    """What a night is to do.

    night: its name, a date and perhaps more; names are in the order of the nights
    margin: largest loss of recall@10 that is accepted, as a share
    keep: how many versions, and how many folders of nights
    warm_share: of a fit's steps, from the weights of the run in service; 0 = fit anew
    force: promote what is undecided
    key: that bundles are signed with
    Raises ConfigError for a night that has no date.
    """

    night: str
    out: Path
    store: Path
    margin: float
    keep: int
    warm_share: float = 0.0
    force: bool = False
    key: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(NIGHT, self.night):
            raise ConfigError(f"--night {self.night}: write a date, such as 2026-11-30")

    @property
    def folder(self) -> Path:
        return self.out / self.night

    @property
    def bundle(self) -> Path:
        """What would ship."""
        return self.folder / "bundle"


def nightly(config: RunConfig, dataset: Dataset, plan: NightPlan, console: Console) -> Entry:
    """Do a night, or what is left of it; what became of it.

    dataset: as loaded with `config.interactions`
    Raises DataError when another night is at work in the same folder.
    """
    name = config.bundle.name
    log = NightLog(plan.store / name / FILE)
    with _alone(plan.out):
        for entry in log.read():
            if (entry.night, entry.verdict) == (plan.night, "promoted"):
                console.print(f"nothing to do: night {plan.night} has promoted {entry.candidate}")
                return entry
        if (promoted := _promoted_before(plan, name)) is not None:  # and then it was cut off
            return _promoted(plan, promoted, log, console, "it was promoted before a stop")
        serving = in_service(plan.store, name)
        run_of_serving = _run_of(serving, plan.out) if serving else None
        _tidy_up(plan, name, log, run_of_serving, console)
        after = _warm_start(config, dataset, plan, run_of_serving, console)
        run(config, dataset, plan.folder, console, after=after)
        candidate = verify(plan.bundle)
        if serving is None:
            why = "there is no bundle of this name in the store, so there is nothing to compare"
            return _promoted(plan, candidate, log, console, why)
        return _judged(config, dataset, plan, candidate, serving, run_of_serving, log, console)


def _judged(
    config: RunConfig,
    dataset: Dataset,
    plan: NightPlan,
    candidate: Manifest,
    serving: Path,
    run_of_serving: Path | None,
    log: NightLog,
    console: Console,
) -> Entry:
    """Compare, unless this was done before; then promote or not.

    What could not be compared is tried again, and said again only for another reason.
    """
    in_service_ref = reference_at(serving)
    fields = {
        "night": plan.night,
        "candidate": candidate.ref,
        "digest": candidate.digest,
        "in_service": in_service_ref,
        "margin": plan.margin,
    }
    before = next(
        (one for one in reversed(log.read()) if fields.items() <= asdict(one).items()), None
    )
    if before is not None and before.compared is not None:
        console.print("compared before")
        entry = before
    else:
        entry = _compared(config, dataset, plan, serving, run_of_serving, fields)
        is_news = before is None or before.why != entry.why
        if entry.verdict != "promoted" and is_news:
            log.append(entry)
    console.print(f"{entry.verdict}: {entry.why}", markup=False)
    if entry.verdict == "promoted" or (entry.verdict == "undecided" and plan.force):
        return _promoted(plan, candidate, log, console, entry.why, entry)
    if entry.verdict == "undecided":
        console.print("--force promotes it all the same")
    return entry


def _compared(
    config: RunConfig,
    dataset: Dataset,
    plan: NightPlan,
    serving: Path,
    run_of_serving: Path | None,
    fields: dict[str, Any],
) -> Entry:
    """The verdict on tonight's bundle."""

    def undecided(why: str) -> Entry:
        return Entry.now(verdict="undecided", why=why, **fields)

    try:
        other = Bundle.load(run_of_serving / "trial" if run_of_serving else serving)
    except (BundleInvalid, OSError) as error:
        return undecided(f"what is in service cannot be compared: {error}")
    if other.manifest.knows_held_out:
        return undecided(
            f"{fields['in_service']} has learnt what is held out, and the folder of its run, which "
            f"has its trial, is not in {plan.out}"
        )
    if not _held_out_alike(other.manifest, config):
        return undecided(
            f"{other.manifest.ref} was made with other settings of interactions, so it may have "
            "learnt what is held out tonight"
        )
    windows = draw_windows(dataset.split.test, config.evaluation.users, seed=0)
    if not len(windows):
        return undecided("of no user an item is held out, so there is nobody to compare for")
    item_ids = tuple(dataset.split.train.item_ids)

    def found(bundle: Bundle) -> Any:
        exclude_seen = config.evaluation.exclude_seen
        return found_by(bundle, windows, item_ids, exclude_seen=exclude_seen, workers=cpu_count())

    by_trial = found(Bundle.load(plan.folder / "trial"))
    compared = paired_recall(by_trial, found(other))
    verdict, why = compared.verdict(plan.margin), _why(compared, plan.margin, other.manifest.ref)
    shipped = Bundle.load(plan.bundle)
    if verdict != "refused" and shipped.manifest.knows_held_out:
        beside_trial = paired_recall(found(shipped), by_trial)
        if beside_trial.verdict(plan.margin) == "refused":
            verdict = "refused"
            why = f"the bundle that would ship finds less than its own trial: {beside_trial}"
    return Entry.now(verdict=verdict, why=why, compared=compared, **fields)


def _why(compared: PairedRecall, margin: float, other: str) -> str:
    said = {
        "promoted": f"a loss of {margin:.1%} is ruled out",
        "refused": f"a loss is certain, and one of {margin:.1%} is not ruled out",
        "undecided": f"neither a loss of {margin:.1%} nor a gain is ruled out",
    }[compared.verdict(margin)]
    return f"{said} (trial against {other}: {compared})"


def _held_out_alike(manifest: Manifest, config: RunConfig) -> bool:
    """Whether a trial's log was read and split with the settings of tonight."""
    recorded: Any = manifest.facts.get("config")
    try:
        return InteractionsConfig.model_validate(recorded["interactions"]) == config.interactions
    except (KeyError, TypeError, ValueError):
        return False


def _promoted(
    plan: NightPlan,
    candidate: Manifest,
    log: NightLog,
    console: Console,
    why: str,
    judged: Entry | None = None,
) -> Entry:
    """Promote tonight's bundle, and say so in the log. Nothing is done twice."""
    target = plan.store / candidate.name / candidate.version
    if not target.exists():
        promote(plan.bundle, plan.store, plan.key)
    elif verify(target).digest != candidate.digest:
        raise DataError(
            f"{target} is another bundle than that of night {plan.night}; a version is never "
            "overwritten: leave bundle.version out, so that each run has its own"
        )
    put_in_service(target)
    entry = judged or Entry.now(
        night=plan.night,
        verdict="promoted",
        why=why,
        candidate=candidate.ref,
        digest=candidate.digest,
        in_service=None,
        margin=plan.margin,
    )
    entry = replace(entry, verdict="promoted", forced=entry.verdict == "undecided")
    log.append(entry)
    console.print(f"promoted {candidate.ref}", markup=False)
    return entry


def _promoted_before(plan: NightPlan, name: str) -> Manifest | None:
    """Tonight's bundle, if it is in the store already."""
    try:
        version = reference_at(plan.bundle).partition("@")[2]
        there = plan.store / name / version
        if not there.exists() or verify(there).digest != verify(plan.bundle).digest:
            return None
    except BundleInvalid:
        return None
    return verify(plan.bundle)


def _run_of(serving: Path, out: Path) -> Path | None:
    """The folder of the run that made a bundle of the store; None if it is not in `out`."""
    for folder in _nights(out):
        try:
            if reference_at(folder / "bundle") == reference_at(serving):
                return folder
        except BundleInvalid:
            continue
    return None


def _warm_start(
    config: RunConfig,
    dataset: Dataset,
    plan: NightPlan,
    run_of_serving: Path | None,
    console: Console,
) -> WarmStart | None:
    """Where the network begins, if it is to go on; says why it cannot."""
    if not plan.warm_share:
        return None
    reason = "the run of the bundle in service is not there"
    after = None
    if run_of_serving is not None:
        after, reason = warm_start(run_of_serving, dataset, config, plan.warm_share)
        reason = f"{run_of_serving.name}: {reason}"
    if after is None:
        console.print(f"no warm start, all is fitted anew: {reason}", style="yellow", markup=False)
    return after


def _tidy_up(
    plan: NightPlan, name: str, log: NightLog, run_of_serving: Path | None, console: Console
) -> None:
    """Remove old versions that nights have promoted, and old folders of nights."""
    ours = {entry.version for entry in log.read() if entry.verdict == "promoted"}
    for version in prune(plan.store, name, plan.keep, ours):
        console.print(f"removed {name}@{version} from the store")
    nights = [folder for folder in _nights(plan.out) if folder != plan.folder]
    for folder in nights[plan.keep :]:
        if folder != run_of_serving:
            remove(folder)
            console.print(f"removed {folder}", markup=False)


def _nights(out: Path) -> list[Path]:
    """Folders of nights, newest first."""
    found = out.iterdir() if out.is_dir() else ()
    return sorted((each for each in found if re.fullmatch(NIGHT, each.name)), reverse=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Only one night at a time. A process that was killed holds nothing."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another night is at work in {out}; wait for its end") from None
        yield
