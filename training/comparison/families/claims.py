"""What MDGR and MaskGR claim, beside what the tables of this comparison say of it.

A claim says that one thing is more than another. The rule makes its verdict, nobody else: the
difference, measured over the same users, is at least two standard errors above 0 (reproduced), as
much below (not reproduced), or neither (not decided). A claim without rows here is not run. The
published figures are of other data and inputs, so sizes are shown and not judged. Knows rows by
their names and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from training.comparison.families.runs import DROPPED, FIRST
from training.comparison.families.seeds import Rows, difference, growth, kept_more
from training.comparison.families.tables import facts_of, mean_at
from training.comparison.paper_tables import ABLATIONS, RANDOM_CHOICE
from training.comparison.table import NONE, Row
from training.evaluation import Difference, markdown_table

Tables = Mapping[str, Sequence[Row]]

VERDICTS = {"better": "reproduced", "worse": "not reproduced", "tie": "not decided"}
NOT_RUN = "not run"
# Presets that stand for a system of the papers, published sizes and losses first; of several the
# first that has rows.
MDGR = ("mdgr-paper", "mdgr")
MASKGR = ("maskgr-paper", "maskgr", "maskgr-dense")
DENSE = ("maskgr-paper", "maskgr-dense")
TIGER = ("tiger-paper", "tiger")
LIGER = ("liger-paper", "liger")
MDGR_POSITIONS = 8


def row_name(preset: str) -> str:
    """Of the configured run: its preset's, if that stands for a system of the papers, else ours."""
    return preset if preset in {*MDGR, *MASKGR, *DENSE, *TIGER, *LIGER} else FIRST


class Found(NamedTuple):
    """A difference, of what it is, and the figure that it would be a change of, if it is one."""

    of: str
    difference: Difference
    whole: float | None = None


@dataclass(frozen=True)
class Claim:
    """One thing is more than another, as a paper reports it.

    measure: finds it in tables; None where they have no rows for it
    """

    paper: str
    says: str
    published: str
    measure: Callable[[Tables], Found | None] = lambda tables: None

    def judged(self, tables: Tables) -> tuple[Found | None, str]:
        """What was found, and the verdict of the rule."""
        found = self.measure(tables)
        return found, NOT_RUN if found is None else VERDICTS[found.difference.verdict]


def claims_table(tables: Tables) -> str:
    """All claims with their verdicts."""
    header = ["paper", "claim", "published", "measured", "difference", "change", "verdict"]
    lines = []
    for claim in CLAIMS:
        found, verdict = claim.judged(tables)
        line = [claim.paper, claim.says, claim.published]
        if found is None:
            line += [NONE, NONE, NONE]
        else:
            change = 100 * found.difference.mean / found.whole if found.whole else None
            line += [found.of, str(found.difference), f"{change:+.1f} %" if change else NONE]
        lines.append([*line, verdict])
    return markdown_table(header, lines)


def verdicts(tables: Tables) -> dict[str, str]:
    """The verdicts of the claims that were measured."""
    found = {f"{claim.paper}: {claim.says}": claim.judged(tables)[1] for claim in CLAIMS}
    return {claim: verdict for claim, verdict in found.items() if verdict != NOT_RUN}


def _rows(
    tables: Tables, table: str, names: Sequence[str], fits: Callable[[Row], bool] = lambda row: True
) -> Rows:
    """Rows of the first of these systems that has such rows, one for each seed."""
    for name in names:
        rows = [row for row in tables.get(table, ()) if row.system == name and fits(row)]
        if rows:
            return rows
    return []


def _more(found: Rows, reference: Rows, k: int, how: str = "") -> Found | None:
    if not found or not reference:
        return None
    of = f"{found[0].system} against {reference[0].system}{how}, recall@{k}"
    return Found(of, difference(found, reference, k), mean_at(reference, k))


def _families(
    names: Sequence[str], others: Sequence[str], k: int
) -> Callable[[Tables], Found | None]:
    """A family against another, each at the setting that its bundle chose, but by beams alone."""

    def measure(tables: Tables) -> Found | None:
        mine, theirs = (_generated(tables, each) for each in (names, others))
        return _more(mine, theirs, k)

    return measure


def _generated(tables: Tables, names: Sequence[str]) -> Rows:
    """Rows of beams alone: those that say so, of networks with a dense head."""
    return _rows(tables, "families", [row for name in names for row in (f"{name}, generate", name)])


def _dense(tables: Tables) -> Found | None:
    """MaskGR, beams and dense head fused, against MaskGR without a head of the same size.

    The published sizes have no preset without a head, so there it is the network's own beams.
    """
    for name, without in zip(DENSE, ((), ("maskgr",)), strict=True):
        if dense := _rows(tables, "families", [f"{name}, fused"]):
            return _more(dense, _generated(tables, (*without, name)), 10)
    return None


def _two_items(tables: Tables) -> Found | None:
    """MaskGR together, in at most half of the calls that TIGER needs for one after another."""
    theirs = _rows(tables, "several-items", TIGER, lambda row: facts_of(row).chained)
    mine = _rows(tables, "several-items", MASKGR, lambda row: not facts_of(row).chained)
    if not mine or not theirs:
        return None
    half = facts_of(theirs[0]).calls // 2
    most = max((calls for row in mine if (calls := facts_of(row).calls) <= half), default=0)
    found = _more([row for row in mine if facts_of(row).calls == most], theirs, 10)
    return found and found._replace(
        of=f"{mine[0].system} in {most} calls against {theirs[0].system} in {2 * half}, recall@10"
    )


def _in_fewer_calls(others: Sequence[str]) -> Callable[[Tables], Found | None]:
    """MaskGR in three calls against another family, with as many as it chose."""

    def measure(tables: Tables) -> Found | None:
        in_three = _rows(tables, "nfe", MASKGR, lambda row: _is_in_calls(row, 3))
        return _more(in_three, _rows(tables, "families", others), 10, ", 3 calls")

    return measure


def _is_in_calls(row: Row, calls: int) -> bool:
    """Whether a row has so many calls, in the family's own order."""
    return facts_of(row).calls == calls and not facts_of(row).order


def _orders(order: str) -> Callable[[Tables], Found | None]:
    """MaskGR in its own order against another one, a call for each position."""

    def measure(tables: Tables) -> Found | None:
        own = _rows(tables, "nfe", MASKGR, lambda row: row.reference is None)
        other = _rows(tables, "nfe", MASKGR, lambda row: facts_of(row).order == order)
        found = _more(own, other, 10)
        return found and found._replace(of=f"{own[0].system}, its own order, recall@10")

    return measure


def _grows(tables: Tables) -> Found | None:
    mine, others = (_generated(tables, names) for names in (MASKGR, TIGER))
    if not mine or not others:
        return None
    of = f"{mine[0].system} against {others[0].system}, @40 minus @5"
    return Found(of, growth(mine, others, 5, 40))


def _keeps(dropped: float) -> Callable[[Tables], Found | None]:
    def measure(tables: Tables) -> Found | None:
        mine, others = (
            _rows(tables, "family-density", names, lambda row: facts_of(row).dropped == dropped)
            for names in (MASKGR, TIGER)
        )
        found = kept_more(mine, others, 5) if mine and others else None
        of = f"{mine[0].system} against {others[0].system}, share kept" if found else ""
        return found and Found(of, found)

    return measure


def _schedules(
    params: tuple[int, int], others: tuple[int, int]
) -> Callable[[Tables], Found | None]:
    """Of the table of calls, of MDGR to the letter or else of the first family."""

    def measure(tables: Tables) -> Found | None:
        names = [name for name in (*MDGR, FIRST) if _rows(tables, "nfe", [name])][:1]
        rows, reference = (
            _rows(tables, "nfe", names, partial(_is_at, params=asked)) for asked in (params, others)
        )
        found = _more(rows, reference, 10)
        return found and found._replace(of=f"{names[0]}, recall@10")

    return measure


def _is_at(row: Row, params: tuple[int, int]) -> bool:
    """Whether a row is of this schedule, for as many positions as MDGR has."""
    facts = facts_of(row)
    left, m_par = MDGR_POSITIONS - params[0], params[1]
    is_mdgr = facts.family == "mdgr" and not facts.order
    return is_mdgr and facts.schedule == params and facts.calls == params[0] + -(-left // m_par)


def _ablations(name: str) -> Callable[[Tables], Found | None]:
    """The run as it is against an ablation of it, at the paper's schedule."""

    def measure(tables: Tables) -> Found | None:
        rows = _rows(tables, "ablations", [name])
        at = rows[-1].setting if rows else ""  # the paper's is the last that is asked
        as_it_is = _rows(tables, "ablations", ["as it is"], lambda row: row.setting == at)
        found = _more(as_it_is, rows[-1:], 5)
        whole = mean_at(as_it_is, 5) if found else None  # the published change is of the whole
        return found and found._replace(of=f"the first run {at}, recall@5", whole=whole)

    return measure


def _all() -> Iterator[Claim]:
    yield Claim(
        "MDGR",
        "finds more than TIGER",
        "recall@10 .0826 and .0731 on Books (+13.0 %), .0583 and .0524 on Electronics (+11.3 %)",
        _families(MDGR, TIGER, 10),
    )
    for more, less, published in (
        ((0, 1), (4, 2), ".2219 and .2210 (+0.4 %)"),
        ((6, 2), (4, 2), ".2213 and .2210 (+0.1 %)"),
        ((4, 2), (2, 2), ".2210 and .2199 (+0.5 %)"),
        ((4, 2), (0, 2), ".2210 and .2127 (+3.9 %)"),
    ):
        yield Claim(
            "MDGR",
            f"schedule {more} finds more than {less}",
            f"recall@10 {published}",
            _schedules(more, less),
        )
    for ablation in (*ABLATIONS, RANDOM_CHOICE):
        if ablation.published:
            yield Claim(
                "MDGR",
                f"finds more than with {ablation.name}",
                f"change of recall@5 / ndcg@5 {ablation.published}",
                _ablations(ablation.name),
            )
    yield Claim("MDGR", "gamma 2 finds more than .5, 1, 1.5, 2.5 and 3", "Figure 4")
    yield Claim("MDGR", "(4, 2) answers more requests a second than (0, 1)", "2.527 and 2.212")
    yield Claim("MDGR", "earns more than TIGER online", "revenue +1.20 %, GMV +3.69 %, CTR +2.36 %")
    for k, published in ((5, ".0538 and .0429 (+25 %)"), (10, ".0815 and .0659 (+24 %)")):
        yield Claim(
            "MaskGR",
            f"finds more than TIGER, @{k}",
            f"recall@{k} {published} on Beauty",
            _families(MASKGR, TIGER, k),
        )
    yield Claim(
        "MaskGR",
        "gains more over TIGER @40 than @5",
        "+1.0 point @5, +3.8 points @40 on Beauty",
        _grows,
    )
    for name, others, published in (("TIGER", TIGER, "+13 %"), ("LIGER", LIGER, "+4.7 %")):
        yield Claim(
            "MaskGR",
            f"finds more in 3 calls than {name}",
            f"{published}, of a metric that is not named",
            _in_fewer_calls(others),
        )
    yield Claim(
        "MaskGR",
        "finds more with dense retrieval than without",
        "recall@10 .0859 and .0815 on Beauty (+5.4 %)",
        _dense,
    )
    for order, published in (("random", ".0754 (+8.1 %)"), ("left_to_right", ".0809 (+0.7 %)")):
        yield Claim(
            "MaskGR",
            f"finds more in its own order than in order {order.replace('_', ' ')}",
            f"recall@10 .0815 and {published} on Beauty",
            _orders(order),
        )
    for dropped in DROPPED:
        yield Claim(
            "MaskGR",
            f"keeps more of its recall than TIGER when {100 * dropped:.0f} % are dropped",
            "6 to 14 % more of recall@5 on Beauty",
            _keeps(dropped),
        )
    yield Claim(
        "MaskGR",
        "finds more with SIDs of texts than with random ones or item ids",
        "recall@10 .0815, .0553 and .0671 on Beauty",
    )
    yield Claim("MaskGR", "finds more with 4 levels than with 5", "invalid SIDs are blamed")
    yield Claim(
        "MaskGR",
        "finds more of two items at once than TIGER, in half the calls",
        "as much, on ML-1M",
        _two_items,
    )


CLAIMS = tuple(_all())
