"""Whether the ablation reaches what was aimed at: a line a number, with its interval and where it stands to its limit.

The limits were set for The Complete Journey; on another data set the same lines are shown for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.ablation_rows import BASE, DIG, TWO_STAGE
from benchmarks.judging import MAX_AUC_LOSS

RESOLVED = "resolved"
SEEDS_ASKED = 3
AUC_GAINS = (0.005, 0.0177)
MAX_AUC_GAP = 0.03
OVER_TWO_STAGE, OVER_TWO_STAGE_AIM = 1.5, 2.7
OVER_POPULARITY_NEW = 2.0
LEAST_CODES_USED, MOST_SHARED = 0.9, 0.01
DIFFERENCE, RATIO, SHARE = "+.4f", ".2f", ".1%"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A number and where it stands.

    Attributes:
        what: the number, for people.
        value, ci, by_seed: it, its interval if it has one, and that of each seed.
        limit: what was asked for; None for a number that is shown without one.
        side: which side of the limit is asked for.
        bound: end of the interval that is held against the limit; None holds the value itself.
        aim: whether it is hoped for, not owed.
        form: how numbers of its kind are written.
    """

    what: str
    value: float
    form: str
    ci: tuple[float, float] | None = None
    by_seed: tuple[float, ...] = ()
    limit: float | None = None
    side: Literal["at least", "at most", "above", "below"] = "at least"
    bound: Literal["low", "high"] | None = None
    aim: bool = False

    @property
    def judged(self) -> float:
        """The number that is held against the limit."""
        if self.bound is None or self.ci is None:
            return self.value
        return self.ci[0] if self.bound == "low" else self.ci[1]

    @property
    def reached(self) -> bool | None:
        """Whether it is reached; None without a limit. An interval that is asked for and not there reaches nothing."""
        if self.limit is None:
            return None
        if self.bound is not None and self.ci is None:
            return False
        found, limit = self.judged, self.limit
        return {"at least": found >= limit, "at most": found <= limit, "above": found > limit, "below": found < limit}[self.side]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with ``reached``."""
        plain = asdict(self)
        del plain["form"]
        return plain | {"reached": self.reached}

    def line(self) -> str:
        """The verdict as text."""
        form = self.form
        ci = f" [{format(self.ci[0], form)}, {format(self.ci[1], form)}]" if self.ci else ""
        seeds = f" (by seed {', '.join(format(value, form) for value in self.by_seed)})" if len(self.by_seed) > 1 else ""
        shown = f"{self.what}: {format(self.value, form)}{ci}{seeds}"
        if self.limit is None:
            return shown
        of = {"low": "lower end of the interval ", "high": "upper end of the interval ", None: ""}[self.bound]
        verdict = ("aim " if self.aim else "") + ("reached" if self.reached else "NOT reached")
        return f"{shown}, {of}{self.side} {format(self.limit, form)}: {verdict}"


def heading(found: Mapping[str, Any]) -> str:
    """What stands over the verdicts; it says where there are fewer seeds than the numbers were asked for with."""
    seeds = len(found["rows"].get(DIG, {}).get("seeds", ()))
    short = f", with {SEEDS_ASKED} seeds; these are of {seeds}, so nothing is shown by them" if seeds < SEEDS_ASKED else ""
    return f"Numbers aimed at on The Complete Journey{short}"


def verdicts(found: Mapping[str, Any]) -> list[Verdict]:
    """A verdict for each number asked for that the rows of a table give.

    Args:
        found: ``ablation_table.summary`` of them.
    """
    return [*_ranking(found), *_retrieval(found), *_sids(found)]


def _of(what: str, form: str, told: Mapping[str, Any] | None, **asked: Any) -> list[Verdict]:
    """A verdict on a figure, difference or ratio; none if it is not there."""
    if told is None or told["mean"] is None:
        return []
    ci = None if None in told["ci"] else (told["ci"][0], told["ci"][1])
    return [Verdict(what=what, form=form, value=told["mean"], ci=ci, by_seed=tuple(v for v in told["by_seed"] if v is not None), **asked)]


def _ranking(found: Mapping[str, Any]) -> list[Verdict]:
    dig = found["rows"].get(DIG, {})
    over_base = dig.get("differences", {}).get(BASE, {}).get("rank_auc")
    what = "ranking AUC less Base's"
    out = _of(what, DIFFERENCE, over_base, limit=-MAX_AUC_LOSS, side="above", bound="low")
    for gain in AUC_GAINS:
        out += _of(what, DIFFERENCE, over_base, limit=gain, aim=True)
    return out + _of(
        "ranking AUC less the retrieval path's", DIFFERENCE, dig.get("auc_gap"), limit=MAX_AUC_GAP, side="at most", bound="high"
    )


def _retrieval(found: Mapping[str, Any]) -> list[Verdict]:
    out: list[Verdict] = []
    for figure, how in (("recall@10_all", "re-ranked"), ("path_recall@10_all", "by path score")):
        there = {name: found["rows"][name]["figures"][figure] for name in TWO_STAGE if figure in found["ratios"].get(name, {})}
        if not there:
            continue
        best = max(there, key=lambda name: there[name]["mean"])
        what = f"recall@10 over that of two-stage SIDs ({best}, the best), {how}"
        for limit, aim in ((OVER_TWO_STAGE, False), (OVER_TWO_STAGE_AIM, True)):
            out += _of(what, RATIO, found["ratios"][best][figure], limit=limit, aim=aim)
    over = found.get("over_references", {})
    own = over.get("own_frequency", {}).get("differences", {}).get("recall@10_all")
    out += _of("recall@10, re-ranked, less own most frequent", DIFFERENCE, own, limit=0.0, side="above", bound="low")
    new = over.get("popularity", {}).get("ratios", {}).get("recall@10_new")
    return out + _of("recall@10 over popularity, items new to the user, re-ranked", RATIO, new, limit=OVER_POPULARITY_NEW)


def _sids(found: Mapping[str, Any]) -> list[Verdict]:
    """Of the worst seed, for these have no interval."""
    out: list[Verdict] = []
    dig, resolved = (found["rows"].get(name, {}) for name in (DIG, RESOLVED))
    if dig.get("sid"):
        used = tuple(min(levels) for levels in dig["sid"]["codes_used_by_seed"])
        what = "share of codes used, of the level that uses fewest, worst seed"
        out.append(Verdict(what=what, form=SHARE, value=min(used), by_seed=used, limit=LEAST_CODES_USED, side="above"))
    if resolved.get("sid"):
        shared = tuple(resolved["sid"]["shared_rate_by_seed"])
        what = "share of items without a SID of their own after resolution, worst seed"
        out.append(Verdict(what=what, form=SHARE, value=max(shared), by_seed=shared, limit=MOST_SHARED, side="below"))
        gaps = resolved["differences"].get(DIG, {})
        for figure, how in (("recall@10_all", "re-ranked"), ("path_recall@10_all", "by path score")):
            out += _of(f"recall@10 after resolution less before, {how}", DIFFERENCE, gaps.get(figure))
    return out
