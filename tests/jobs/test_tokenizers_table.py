"""Rows of the tokenizer benchmark: what they are called, which published figures stand beside, differences and lists without training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import tokenizers_references, tokenizers_sasrec
from benchmarks.tokenizers_modes import MODES, settings_of
from benchmarks.tokenizers_published import OUR_GRADIENT, published
from benchmarks.tokenizers_table import key, label, markdown, rows_of
from dig_models.generator.examples import Examples
from dig_models.tokenizers.sequences import Sequences

SIDS = {"collision_rate": 0.1, "used": [4, 4], "perplexity": [3.0, 4.0], "seconds": 2.0}


def record(kind: str, ranks: tuple[int, ...] = (1, 0), **given: Any) -> dict[str, Any]:
    out = {
        "data": "d", "dataset": "beauty", "kind": kind, "order": "published", "seed": 1, "device": "cpu", "tied": 0.1, "users": 2,
        "items": 9, "mode": {"name": "gpu", "test_users": None}, "ranks": list(ranks), "epochs": 3, "train_seconds": 1.0, "judged": 2,
        "figures": {f"{name}@{cut}": {"mean": 0.5, "low": 0.4, "high": 0.6} for name in ("recall", "ndcg") for cut in (5, 10)},
        "sid": {"levels": 2, "codes": 4, "changes": {}, "conflicts": "suffix"}, "sids": SIDS,
    } | given  # fmt: skip
    return out | ({"sid": {}, "sids": None} if kind in ("sasrec", "popular") else {})


def changed(kind: str, mode: str = "gpu", variant: str = "", **changes: str) -> dict[str, Any]:
    own = settings_of(MODES[mode], "beauty", variant or kind) | changes
    sid = {"levels": 2, "codes": 4, "changes": own, "conflicts": "suffix"}
    return record(kind, sid=sid, mode={"name": mode, "test_users": None})


def test_a_row_is_called_by_its_preset_and_by_settings_that_are_not_the_modes() -> None:
    assert label(changed("rqvae")) == "RQ-VAE (small)"
    assert label(changed("rqvae", variant="rqvae:tiger")) == "TIGER"
    assert label(changed("rqvae", variant="rqvae:letter", mode="full", epochs="9")) == "LETTER (epochs=9)"
    assert label(changed("diger", variant="diger:detached", mode="full")) == "DIGER, detached"
    assert label(changed("diger", mode="quick", tau="1")) == "DIGER (tau=1)"
    assert label(record("resid", mode={"name": "quick", "test_users": 3})) == "ReSID (epochs by default)"


def test_published_figures_are_those_of_the_settings_in_force() -> None:
    def beside(kind: str, dataset: str = "beauty", **changes: str) -> tuple[float, float] | None:
        found = published(dataset, kind, changes)
        return found and (found.recall, found.ndcg)

    assert beside("rqvae") is None and beside("rqvae", preset="tiger") == (0.0610, 0.0331)
    assert beside("rqvae", preset="letter") == (0.0672, 0.0364) and beside("rqvae", "yelp", preset="letter") == (0.0426, 0.0231)
    assert beside("diger") == (0.0696, 0.0376) and beside("diger", exploration="frqud") == (0.0683, 0.0372)
    assert beside("diger", "yelp") == (0.0437, 0.0227) and beside("diger", "yelp", exploration="frqud") == (0.0432, 0.0227)
    assert beside("diger", gradient="inputs") == beside("diger", gradient="joint") == beside("diger")
    assert beside("diger", exploration="sdud") is None and beside("diger", gradient="detached", exploration="frqud") is None
    assert beside("diger", exploration="sdud", gradient="joint") is None and beside("diger", gradient="detached") is None
    assert beside("resid") is None


def test_a_published_figure_of_diger_is_of_targets_that_move_and_says_so_beside_a_row_whose_do_not() -> None:
    def note(kind: str = "diger", **changes: str) -> str | None:
        found = published("beauty", kind, changes)
        return found and found.note

    assert note() == note(gradient="inputs") == note(exploration="frqud") == OUR_GRADIENT
    assert note(gradient="joint") == note(gradient="joint", exploration="frqud") == "" == note("rqvae", preset="tiger") == note("sasrec")
    table = markdown(rows_of([changed("diger"), changed("diger", mode="full", variant="diger:joint"), changed("diger", mode="quick")]))
    cells = {one.split(" | ")[3]: one for one in table.splitlines() if one.startswith("| DIGER")}
    assert "| 0.0696 / 0.0376, gradient ours |" in cells["gpu"]
    assert "| 0.0696 / 0.0376, not comparable, gradient ours |" in cells["quick"]
    assert "| 0.0696 / 0.0376 |" in cells["full"] and cells["full"].startswith("| DIGER, joint |")
    (sources,) = (one.removeprefix("Published: ").rstrip(".").split("; ") for one in table.splitlines() if one.startswith("Published: "))
    said = {row: rest for row, _, rest in (one.partition(": ") for one in sources)}
    assert {row for row, rest in said.items() if OUR_GRADIENT in rest} == {"DIGER"} and said.keys() == {"DIGER", "DIGER, joint"}


def test_a_published_figure_is_not_comparable_with_a_quick_one_and_is_of_the_published_order() -> None:
    def line(**given: Any) -> str:
        return next(one for one in markdown(rows_of([record("sasrec", **given)])).splitlines() if one.startswith("| SASRec"))

    assert "| 0.0588 / 0.0313 |" in line()
    assert "| 0.0588 / 0.0313, not comparable |" in line(mode={"name": "quick", "test_users": None})
    assert "0.0588" not in line(order="shuffled")


def test_a_difference_is_paired_by_user_with_the_rqvae_that_was_judged_on_the_same() -> None:
    users = np.random.default_rng(0).integers(0, 11, 40).tolist()
    better = [1 if rank == 0 else rank for rank in users]
    found = rows_of([record("resid", better), record("rqvae", users), record("unisid", users), record("diger", better, seed=2)])
    by = {row["kind"]: row["difference"] for row in found}
    gain = sum(rank == 0 for rank in users) / 40
    assert by["resid"]["mean"] == pytest.approx(gain) and 0 < by["resid"]["low"] < gain < by["resid"]["high"]
    assert (by["unisid"]["mean"], by["unisid"]["low"], by["unisid"]["high"]) == (0, 0, 0)  # paired: no noise of its own
    assert by["rqvae"] is None and by["diger"] is None  # another seed judges other users
    assert by["resid"]["from"] == "RQ-VAE (small)"
    assert "ranks" not in found[0]


def test_rows_of_other_settings_or_shapes_are_told_apart() -> None:
    rows = [record("rqvae"), changed("rqvae", epochs="3"), record("rqvae", seed=2)]
    rows += [record("rqvae", sid=rows[0]["sid"] | more) for more in ({"levels": 3}, {"codes": 8}, {"conflicts": "sinkhorn"})]
    assert len({key(row) for row in rows}) == len(rows)
    lines = [one for one in markdown(rows_of(rows)).splitlines() if one.startswith("| RQ-VAE")]
    assert len({one.split("| 0.5000")[0] for one in lines}) == len(rows)


def test_references_rank_by_number_of_users_and_by_those_who_have_both_items() -> None:
    learned = Sequences.of(np.array([0, 0, 0, 0, 1, 1, 2, 2, 3]), np.array([1, 2, 3, 3, 1, 2, 3, 4, 4]))
    asked = Examples.last(Sequences.of(np.array([0, 0, 1, 1]), np.array([1, 5, 4, 5])))
    assert tokenizers_references.popular(learned, 7, asked, 4).tolist() == [[3, 1, 2, 4]] * 2
    found = tokenizers_references.co_occurrence(learned, 7, asked, 6)
    assert found.tolist() == [[2, 3, 4, 5, 6, 1], [3, 1, 2, 5, 6, 4]]  # two users have 1 and 2; one has 1 and 3, though 3 twice


def test_sasrec_takes_every_event_but_a_users_first_as_a_target_once() -> None:
    sequences = Sequences.of(np.repeat([0, 1, 2], [8, 3, 1]), np.arange(1, 13))
    found = tokenizers_sasrec.stretches(sequences, 3)
    targets = []
    for history, target in zip(found.history(3).tolist(), found.target_X.tolist(), strict=True):
        targets += [*[one for one in history if one][1:], target]
    assert sorted(targets) == [*range(2, 9), 10, 11]
