"""A night: train, hold the result against what is in service, promote it if it is as good, tidy up.

Each night is a run in a folder of its own, `<out>/<night>`. It can be cut off anywhere: the same
command goes on. The trial of the night is compared with the trial of the bundle in service, because
bundles that ship have learnt what is held out; and with that of the best so far, or many small
losses would add up (docs/decisions/057). Knows no option of the command line, and no service:
replicas look at the store by themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from joblib import cpu_count
from rich.console import Console

from service.bundles import CURRENT, Bundle, Manifest, reference_at, verify, versions_of
from service.errors import BundleInvalid
from training.bundling import (
    PairedRecall,
    Verdict,
    found_by,
    in_service,
    paired_recall,
    promote,
    prune,
    put_in_service,
)
from training.config import RunConfig
from training.data import Dataset
from training.errors import ConfigError, DataError
from training.evaluation import draw_windows
from training.pipeline.night_folders import alone, begin, check_name, run_of, tidy_up
from training.pipeline.night_log import FILE, Entry, NightLog
from training.pipeline.run import run
from training.pipeline.warm_start import WarmStart, is_alike, warm_start


@dataclass(frozen=True)
class NightPlan:
    """What a night is to do.

    night: its name, a date and perhaps more; names are in the order of the nights
    margin: largest loss of recall@10 that is accepted, as a share
    keep: how many of the newest versions, and of the newest nights before this one, stay
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
        check_name(self.night)

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
    Raises DataError when another night is at work in the same folder, ConfigError when all nights
    would have one version, and BundleInvalid when it cannot be told what is in service.
    """
    name = config.bundle.name
    if config.bundle.version:
        raise ConfigError("leave bundle.version out: each night makes a version of its own")
    log = NightLog(plan.store / name / FILE)
    with alone(plan.out):
        for entry in log.read():
            if (entry.night, entry.verdict) == (plan.night, "promoted"):
                console.print(f"nothing to do: night {plan.night} has promoted {entry.candidate}")
                return entry
        if (begun := _begun_to_promote(plan, name, log)) is not None:  # and then it was cut off
            return _promoted(plan, verify(plan.bundle), log, console, begun)
        serving = in_service(plan.store, name)
        run_of_serving = run_of(_reference_of(serving), plan.out) if serving else None
        _tidy_up(plan, name, log, console)
        begin(plan.folder)
        if run_of_serving != plan.folder:  # else tonight's bundle was promoted by hand
            after = _warm_start(config, dataset, plan, run_of_serving, console)
            run(config, dataset, plan.folder, console, after=after)
        candidate = verify(plan.bundle)
        if serving is not None:
            return _judged(config, dataset, plan, candidate, serving, run_of_serving, log, console)
        why = "there is no bundle of this name in the store, so there is nothing to compare"
        return _promoted(plan, candidate, log, console, _entry(plan, candidate, "promoted", why))


def _reference_of(serving: Path) -> str:
    """The name@version of what is in service. Raises BundleInvalid with the file to mend."""
    try:
        return reference_at(serving)
    except BundleInvalid as error:
        raise BundleInvalid(
            f"{serving.parent / CURRENT} names {serving.name}, which cannot be read ({error}); "
            "write a version into it that is there, or remove the file: then the newest is meant"
        ) from error


def _entry(
    plan: NightPlan, candidate: Manifest, verdict: Verdict, why: str, **fields: Any
) -> Entry:
    return Entry.now(
        night=plan.night,
        verdict=verdict,
        why=why,
        candidate=candidate.ref,
        digest=candidate.digest,
        margin=plan.margin,
        **fields,
    )


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
    best = _best_so_far(config, plan, log) or run_of_serving
    entry = _entry(
        plan,
        candidate,
        "undecided",
        "",
        in_service=reference_at(serving),
        best=reference_at(best / "bundle") if best else None,
    )
    said = [one for one in reversed(log.read()) if one.is_verdict]
    before = next((one for one in said if one.is_about_the_same_as(entry)), None)
    if before is not None and before.compared is not None:
        console.print("compared before")
        entry = before
    else:
        entry = _compared(config, dataset, plan, serving, run_of_serving, best, entry)
        is_news = before is None or before.why != entry.why
        if entry.verdict != "promoted" and is_news:
            log.append(entry)
    console.print(f"{entry.verdict}: {entry.why}", markup=False)
    if entry.verdict == "promoted" or (entry.verdict == "undecided" and plan.force):
        return _promoted(plan, candidate, log, console, entry)
    if entry.verdict == "undecided":
        console.print("--force promotes it all the same")
    return entry


def _best_so_far(config: RunConfig, plan: NightPlan, log: NightLog) -> Path | None:
    """The folder of the run of the best bundle that nights have promoted.

    None if it is not there any more, or cannot be compared with tonight's.
    """
    folder = run_of(log.best(), plan.out)
    try:
        trial = verify(folder / "trial") if folder else None
    except (BundleInvalid, OSError):
        return None
    usable = trial and not trial.knows_held_out and is_alike(trial, config, "interactions")
    return folder if usable else None


def _compared(
    config: RunConfig,
    dataset: Dataset,
    plan: NightPlan,
    serving: Path,
    run_of_serving: Path | None,
    best: Path | None,
    blank: Entry,
) -> Entry:
    """The verdict on tonight's bundle.

    best: the folder of the run of the best so far
    blank: the entry without its verdict
    """

    def undecided(why: str) -> Entry:
        return replace(blank, why=why)

    if run_of_serving == plan.folder:
        return undecided(
            f"{blank.in_service} is tonight's bundle, promoted by hand, so there is nothing to "
            "compare it with"
        )
    try:
        other = Bundle.load(run_of_serving / "trial" if run_of_serving else serving)
    except (BundleInvalid, OSError) as error:
        return undecided(f"what is in service cannot be compared: {error}")
    if other.manifest.knows_held_out:
        return undecided(
            f"{blank.in_service} has learnt what is held out, and the folder of its run, which "
            f"has its trial, is not in {plan.out}"
        )
    if not is_alike(other.manifest, config, "interactions"):
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
    with_best = compared
    if best is not None and best != run_of_serving:
        with_best = paired_recall(by_trial, found(Bundle.load(best / "trial")))
        if verdict != "refused" and with_best.high < -plan.margin:
            verdict = "refused"
            why = (
                f"beside the best night so far, a loss of more than {plan.margin:.1%} is certain "
                f"(trial against that of {best.name}: {with_best})"
            )
    shipped = Bundle.load(plan.bundle)
    if verdict != "refused" and shipped.manifest.knows_held_out:
        beside_trial = paired_recall(found(shipped), by_trial)
        if beside_trial.high < 0:
            verdict = "refused"
            why = f"the bundle that would ship finds less than its own trial: {beside_trial}"
    return replace(
        blank,
        verdict=verdict,
        why=why,
        compared=asdict(compared),
        compared_with_best=asdict(with_best),
    )


def _why(compared: PairedRecall, margin: float, other: str) -> str:
    said = {
        "promoted": f"a loss of {margin:.1%} is ruled out",
        "refused": f"a loss is certain, and one of {margin:.1%} is not ruled out",
        "undecided": f"neither a loss of {margin:.1%} nor a gain is ruled out",
    }[compared.verdict(margin)]
    return f"{said} (trial against {other}: {compared})"


def _promoted(
    plan: NightPlan, candidate: Manifest, log: NightLog, console: Console, entry: Entry
) -> Entry:
    """Promote tonight's bundle, and say so in the log. Nothing is done twice.

    entry: the verdict, or that this was begun
    """
    target = plan.store / candidate.name / candidate.version
    forced = entry.forced or entry.verdict == "undecided"
    entry = replace(entry, verdict="promoted", forced=forced)
    if not target.exists():
        log.append(replace(entry, verdict="promoting"))
        promote(plan.bundle, plan.store, plan.key)
    elif verify(target).digest != candidate.digest:
        raise DataError(
            f"{target} is another bundle than that of night {plan.night}, and a version is never "
            f"overwritten: remove {plan.folder}, and the night makes another version"
        )
    put_in_service(target)
    log.append(entry)
    console.print(f"promoted {candidate.ref}", markup=False)
    return entry


def _begun_to_promote(plan: NightPlan, name: str, log: NightLog) -> Entry | None:
    """What the log says last of tonight, if it is that the bundle in the store was being promoted.

    A bundle that is in the store without such a line was promoted by hand.
    """
    last = next((one for one in reversed(log.read()) if one.night == plan.night), None)
    if last is None or last.is_verdict:
        return None
    try:
        there = verify(plan.store / name / last.version).digest
        return last if there == last.digest == verify(plan.bundle).digest else None
    except BundleInvalid:
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


def _tidy_up(plan: NightPlan, name: str, log: NightLog, console: Console) -> None:
    """Remove old versions that nights have promoted, and old folders of nights.

    Folders stay as long as their bundle is in the store, for a rollback; and that of the best.
    """
    ours = {entry.version for entry in log.read() if entry.verdict == "promoted"}
    for version in prune(plan.store, name, plan.keep, ours):
        console.print(f"removed {name}@{version} from the store")
    needed = {f"{name}@{version}" for version in versions_of(plan.store, name)}
    for folder in tidy_up(plan.out, plan.keep, plan.folder, {*needed, str(log.best())}):
        console.print(f"removed {folder}", markup=False)
