"""The comparison as a document: where it comes from, by which protocol, then its tables.

comparison.md    for readers                  comparison.csv          every row, the same columns
comparison.png   and .svg, the picture      families.png            and .svg, that of families
Knows rows; has no figure of its own but those of the machine and the data.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from joblib import cpu_count

from service.bundles import HISTORY_CAP, Manifest
from training.comparison.families import (
    claims_table,
    families_table,
    family_density_table,
    nfe_table,
    plot_families,
    several_items_table,
)
from training.comparison.plot import plot_comparison
from training.comparison.ranked_systems import SEQUENCE_USERS
from training.comparison.refit_table import refit_rows
from training.comparison.table import (
    Row,
    ablations_table,
    cold_table,
    csv_text,
    density_table,
    lengths_table,
    schedules_table,
    seeds_table,
    systems_table,
)
from training.data import Dataset
from training.evaluation import LONG, SHORT, setting_name, targets_seen

SERVED_OTHERWISE = "as the service answers requests that say exclude_seen: false"

TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], str], str]] = {
    "systems": (
        "Systems",
        systems_table,
        "Differences are to the first row, over the same users, ± one standard error; a verdict "
        "other than tie needs two. Minutes: from interactions to a model that answers, choices on "
        "validation included. Parameters: weights and stored similarities. One call scores every "
        "item with the log-probabilities of a single denoiser call, as RPG does.\n\n"
        "Transitions in log space and sequential rules count which item follows which: the first "
        "over 20 items, smoothed to popularity, with all of the history (rebuilt from a "
        "description of arXiv 2608.19833), the second over 10 items, from the newest item alone "
        "(arXiv 1803.09587). The pairwise envelope is the one of all that count pairs that is best "
        "on validation. SASRec (ce) learns a softmax over all items, SASRec (sampled) one over "
        "each target and 256 items drawn uniformly, without a log-Q correction, which uniform "
        "draws do not need, with the layers and dropout of arXiv 2508.06450. SASRec + prior "
        "is the one of the two that is better on validation, with the neighbour prior that Unmask "
        "has: the same counts, and weights chosen in the same way on the same validation "
        "users.\n\n"
        "Counts made again: in all other rows nobody has seen the validation item of a user before "
        "the test, except in the history. Here it is counted too, as a shop that counts every "
        "night would do. All that was chosen or learnt stays: networks, weights, decays. Text kNN "
        "counts nothing.",
    ),
    "schedules": (
        "Schedules",
        schedules_table,
        "All with the same network, each against (4, 2) with the same prior. MDGR's change is that "
        "of recall@10 against (4, 2) in its Table 3: SIDs of 8 positions, industry data. "
        "Milliseconds are of encoder, denoiser and search in batches, on a machine that may have "
        "been busy.",
    ),
    "lengths": (
        "Users by length of their history",
        lengths_table,
        "recall@10 ± one standard error by the number of items in the history at test.",
    ),
    "seeds": (
        "Seeds",
        seeds_table,
        "Runs that differ only in the seeds of vectors, codebook and fit, all decoded at the "
        "defaults of the first; sd with n - 1; gap = largest minus smallest. A difference below "
        "the gap is no finding, whatever its verdict. All other tables are of the first seed.",
    ),
    "refit": (
        "Refit before shipping",
        refit_rows,
        "Test users, ranked after the validation interactions became known: not at all, by the "
        "counts (neighbour prior and popularity, made again with the numbers chosen before), by "
        "the network (which learns on, with its codes and vectors), by both. What ships knows the "
        "test interactions too, so it cannot be measured. Differences are to the first row, ± one "
        "paired standard error.",
    ),
    "scratch": (
        "Refit or fit again",
        refit_rows,
        "The network that learnt on against one that learnt all of it from the beginning, with as "
        "many steps as the fit had; both with counts made again.",
    ),
    "ablations": (
        "Ablations",
        ablations_table,
        "Each is a run of its own with one thing changed, prior off, against the run as it is with "
        "the prior off; random position choice is the same run decoded in another way. ± is one "
        "paired standard error over users, of one seed: it does not hold the noise between two "
        "fits. The position loss fits no repeat bias and ranks partial SIDs by their path, so read "
        "its row with seen items excluded. "
        "MDGR's changes of recall@5 / ndcg@5 (its Table 4) are of the authors' industry data: "
        "other data, other sizes, a direction at most.",
    ),
    "density": (
        "Less training data",
        density_table,
        "A random share of every user's training interactions dropped, at least two left, one draw "
        "for all systems; histories at validation and test are whole.",
    ),
    "cold": (
        "New items",
        cold_table,
        "A tenth of the items that have content, training interactions and a test user whose "
        "target they are were drawn, once for all rows. *As trained*: the run with all items. *Put "
        "back*: they were taken out of its bundle and added again from their embeddings, as the "
        "service adds items; its network had seen them. *Kept out of training*: a run of its own, "
        "with the same settings, on the data without these items; nothing that was fitted or "
        "counted, and no choice on validation, knew them; then they were added in the same way. "
        "The same test users ask all of them, each bundle at its own default, the whole catalogue "
        "is ranked, and histories may hold new items. Figures @10 are of requests for 10 items, "
        "@100 for 100. Share: of the first row's recall@10. ± is one standard error, paired over "
        "users for shares and differences; a verdict other than tie needs two. Users of one item "
        "hit or miss together, so the true errors are larger. All other users may lose by new "
        "items in their answers and in their histories; kept out of training also by another fit.",
    ),
    "families": (
        "Families",
        families_table,
        "Each family is a preset: its codebook, network, masks, losses and decoding. All else is "
        "that of the first row: data, item vectors (one file for all, though a family may leave "
        "them out of its network), seeds, validation users, and `fit.minutes`, if it is set: then "
        "all learn for as long, in CPU time of all threads and training steps alone, and how many "
        "steps that makes is a result; if not, for the epochs of their presets. No row has a "
        "neighbour prior. Schedule: the setting that the bundle chose on validation users; an "
        "autoregressive family has one. recall@40 is of requests for 40 items, with at least 40 "
        "beams. A network with a dense head also has a row for each retrieval, all else as it "
        "chose. Milliseconds: of a request, all stages, one thread, decoded alone or as one of "
        "eight (an eighth of their time), the first seed; all families take turns in one process, "
        "medians. Search / network: time in the search divided by time in encoder and denoiser, in "
        "batches, on a machine that may have been busy. Figures are means over seeds. ± is one "
        "standard error of the users' paired differences; with several seeds it holds the variance "
        "over seeds too, of one seed it does not say what another fit would change. A verdict "
        "other than tie needs two errors.",
    ),
    "nfe": (
        "Families by denoiser calls",
        nfe_table,
        "For every number of calls one schedule (r_warm, m_par): m_par is the number of positions "
        "divided by the calls, rounded up, and r_warm the most that makes up the number. All with "
        "the widest beam that the family's grid has, ranked as its network is trained. NFE is what "
        "was needed: a search may end earlier. Orders other than its own are of the most calls. "
        "Differences are to the same family at its most calls, paired as above.",
    ),
    "several-items": (
        "The next items at once",
        several_items_table,
        f"The last two items of {SEQUENCE_USERS:,} users are held out, and none of them was "
        "learnt. Together: one search over the positions of both, a schedule (r_warm, m_par) is of "
        "all of them. One after another: a request for one item at the setting that the bundle "
        "chose, but by beams; then each of its ten best items joins the history in a request for "
        "the next, which do not wait for each other, so calls are those of one of them. Answers "
        "are ten sequences; a target is found if one has it in its slot. Differences as above, of "
        "a user's mean over slots. The first item is the one of validation, with which choices "
        "were made.",
    ),
    "family-density": (
        "Families on less training data",
        family_density_table,
        "A random share of every user's training interactions dropped, at least two left, one draw "
        "for all; histories at validation and test are whole. Each family is trained again, with "
        "`fit.minutes` in as much time. Kept: the share of its own recall on all data; its error "
        "is that of a ratio of two paired means, to first order.",
    ),
}
CLAIMS = (
    "Each claim says that one thing is more than another. The verdict is made by a rule from the "
    "rows of this document: *reproduced* if the difference, paired by user (and seed), is at least "
    "two standard errors above 0; *not reproduced* if it is as much below; else *not decided*. "
    "*Not run*: no row here measures it. Published figures are of other data, encoders and sizes, "
    "so how large a difference is, is shown and not judged. Parts of MDGR (schedules, ablations) "
    "are measured on the first row's network, if it is of that family, unless a preset of MDGR to "
    "the letter is among the families; whole systems only on presets of their names."
)
FAMILIES = ("families", "nfe", "several-items", "family-density")


@dataclass(frozen=True)
class Origin:
    """Where a comparison comes from: the data's name, the preset's, the command line as given."""

    data: str
    preset: str
    command: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that is written. tables: rows by key of TABLES, in the order of the document."""

    origin: Origin
    dataset: Dataset
    manifest: Manifest
    seeds: int
    exclude_seen: bool
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Write document and CSV with the tables there are."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "comparison.md").write_text(self.markdown())
        (out / "comparison.csv").write_text(csv_text(dict(self.tables)))

    def draw(self, out: Path) -> None:
        """Write the pictures of systems and schedules, which must be there."""
        files = [out / f"comparison.{suffix}" for suffix in ("png", "svg")]
        plot_comparison(self.tables["systems"], self.tables["schedules"], files)

    def draw_families(self, out: Path) -> None:
        """Write the picture of families by denoiser calls, whose table must be there."""
        plot_families(self.tables["nfe"], [out / f"families.{kind}" for kind in ("png", "svg")])

    @property
    def measured(self) -> dict[str, list[Row]]:
        """The tables that say something of the papers' claims.

        Ablations are of the configured run, so they say nothing of MDGR if that is another family.
        """
        is_mdgr = self.manifest.family == "mdgr"
        return {name: rows for name, rows in self.tables.items() if is_mdgr or name != "ablations"}

    def markdown(self) -> str:
        """The document."""
        parts = [f"# Comparison on {self.origin.data}", self._head(), self._protocol()]
        for name, rows in self.tables.items():
            title, table, sentence = TABLES[name]
            parts += [f"## {title}", sentence, table(rows)]
            notes = [f"- {row.system}: {row.ranks.note}" for row in rows if row.ranks.note]
            if name in ("systems", "cold"):
                parts.append("\n".join(notes))
            if name == "systems" and "schedules" in self.tables:  # the picture needs both
                parts.append("![recall@10 of the systems](comparison.svg)")
            if name == "nfe":
                parts.append("![recall@10 of families by denoiser calls](families.svg)")
        if self.tables.keys() & set(FAMILIES):
            parts += ["## Claims", CLAIMS, claims_table(self.measured)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _head(self) -> str:
        split, origin = self.dataset.split, self.origin
        facts = {
            "data": f"{origin.data}: {split.train.num_users:,} users, {split.train.num_items:,} "
            f"items, {len(split.test.rows):,} interactions; {len(split.test):,} test users",
            "preset": origin.preset,
            "command": f"`{origin.command}`",
            "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "machine": _machine(),
            "commit": _commit(),
            "bundle": self.manifest.ref,
        }
        return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)

    def _protocol(self) -> str:
        repeated = int(targets_seen(self.dataset.split.test).sum())
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return (
            f"Protocol: {self.dataset.split.sentence}. Validation alone chooses checkpoints, "
            "schedule, prior and decay; all test users; the whole catalogue is ranked, cold items "
            "too, item-level unless marked SID; "
            f"{setting_name(exclude_seen=self.exclude_seen)} unless said, "
            f"{'as the service answers by default' if self.exclude_seen else SERVED_OTHERWISE}, "
            f"in all choices on validation too; of a history all see the newest {HISTORY_CAP} "
            f"items at most, which the service keeps; {seeds}. {self._of_unmask()}"
            f"Of {repeated:,} of {len(self.dataset.split.test):,} test users the history holds the "
            "target already: with seen items excluded these are unreachable for all."
        )

    def _of_unmask(self) -> str:
        """What tables with the configured run as it would ship need to be read."""
        manifest, default = self.manifest, self.manifest.decoding
        if self.tables.keys() <= set(FAMILIES):
            return "All answer through the production decoder.\n\n"
        return (
            "Unmask's encoder sees the newest "
            f"{manifest.history_length} items and answers through the production decoder: as a "
            f"full system with beam_width {default.beam_width}, ranking {default.ranking}, "
            f"finish_rows {default.finish_rows}, chosen on validation too; at other schedules, and "
            "wherever schedules or ablations are compared, with the widest beam that was tried, "
            f"the ranking the network is trained for, and no early end. Its figures @{LONG} are of "
            f"requests for {LONG} items, all others of requests for {SHORT}; narrower beams are "
            "widened to that, as in the service.\n\n"
            "Unmask learns how likely users come back to an item of their history (repeat bias "
            f"{manifest.repeat_bias:+.2f} on this data), the baselines do not: with nothing "
            "excluded that is an advantage of its own. "
        )


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
                break
    return f"{model}, {cpu_count()} cores"


def _commit() -> str:
    """The commit of this code, empty outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short", "HEAD")
        changed = bool(commit) and bool(git("status", "--porcelain", "--untracked-files=no"))
    except FileNotFoundError:  # no git
        return ""
    return commit + ", with uncommitted changes" * changed
