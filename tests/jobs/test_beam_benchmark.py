"""Beams against an exhaustive search on a small trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import evaluation_world as ew
import numpy as np
import pytest
import torch

from benchmarks import beam, negatives
from benchmarks.judging import Judged
from dig_models.evaluate.lists import Contender, Search, recommend_all
from dig_models.retrieve.beam import OPEN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    world = ew.build(tmp_path_factory.mktemp("beam"), "retrieve.rerank=20")
    ew.train(world, loss={"recall": 0.5})  # thirty steps are few for a small weight
    return Judged.open(world.config, ew.DAY, 25)


def test_a_beam_that_drops_nothing_loses_nothing(judged: Judged) -> None:
    found = beam.measure(judged, [1, 3, 36], free_requests=5)
    whole = found["exhaustive"]
    assert whole["path_winner_lost"]["mean"] == 0.0
    assert whole["top10_kept"]["mean"] == 1.0
    lost = [row["path_winner_lost"]["mean"] for row in (*found["beams"], whole)]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.0  # one prefix a level is a greedy search
    assert found["beams"][-1]["all"] == whole["all"]  # 6 codes: 36 prefixes of two levels are all there are
    for row in found["beams"]:
        first, *_, last = row["valid_beams"]
        assert 0.0 <= last <= first <= 1.0
    # With as many beams as there are pairs of codes, those that exist are all among them: their share is known.
    of_two = found["prefixes"][1] / 36
    assert (found["u2t"], found["valid_beams_u2t"], found["valid_beams_requests"]) == ("exact", "mlp", 5)
    assert found["beams"][-1]["valid_beams"][1] == pytest.approx(of_two)
    assert beam.plot(found).axes


def test_the_beams_that_are_asked_about_are_measured_by_default() -> None:
    assert {10, 50, 200} <= set(beam.BEAMS)


def test_valid_beams_are_the_existing_ones_among_the_best_of_all_codes_by_the_predicted_crosses(judged: Judged) -> None:
    assert judged.bundle.model.config.u2t_inference == "exact", "so that the search itself scores otherwise"
    there = [{tuple(code[: level + 1]) for code in judged.bundle.codes_NL[1:].tolist()} for level in range(3)]
    shares = [slowly_valid(judged, at, there, codes=6, width=4) for at in judged.index_Q[:8]]
    found_BL = beam.valid_beams(judged.retriever, judged.requests, judged.index_Q[:8], 4)
    np.testing.assert_allclose(found_BL, shares)
    assert 0.0 < np.mean(shares, axis=0)[-1] < 1.0, "else the test could not see which prefixes are kept"


@torch.no_grad()
def slowly_valid(judged: Judged, at: int, there: list[set[tuple[int, ...]]], *, codes: int, width: int) -> list[float]:
    """For one request, with a forward pass a prefix."""
    model, first, kept, shares = judged.bundle.model, torch.zeros(1, dtype=torch.int64), [()], []
    users = judged.retriever.users(judged.requests, np.array([at]))
    for level_there in there:
        tried = [(*prefix, code) for prefix in kept for code in range(codes)]
        scores = []
        for prefix in tried:
            e_1D = model.prefix_embeddings(torch.tensor([prefix]))[:, -1]
            u2t_1C = model.predict_u2t(users, first, e_1D)
            scores.append(float(model.recall_logit(users, first, e_1D, u2t_1C, torch.full_like(first, OPEN))))
        kept = [tried[best] for best in np.argsort(scores)[::-1][:width]]
        shares.append(float(np.mean([prefix in level_there for prefix in kept])))
    return shares


def test_recall_is_that_of_the_evaluation(judged: Judged) -> None:
    shape = judged.bundle.model.config
    search = Search(beam=10, rerank=20, u2t=shape.u2t_inference, path_score=shape.path_score)
    contender = Contender(name="dig", retriever=judged.retriever, search=search)
    lists, _ = recommend_all([contender], judged.requests, judged.index_Q, k=10)
    for variant in ("all", "new"):
        for rerank, name in ((20, "dig"), (0, "dig_path")):
            mine = beam.padded(beam.found_by(judged, 10, rerank=rerank, variant=variant))
            for figure, value_Q in judged.values(variant, mine).items():
                np.testing.assert_allclose(value_Q, judged.values(variant, lists[variant][name])[figure])


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (beam, ["--beams", "2", "--requests", "6"]),
        (beam, ["--beams", "2", "--requests", "6", "--validation"]),
        (negatives, ["--requests", "10"]),
    ],
)
def test_the_programs_write_figures_and_plot(
    judged: Judged, program: object, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [f"model.{k}={v}" for k, v in ew.SMALL.items()]
    # The world has examples of the evaluation days and the week before them.
    sets = [f"paths.home={judged.config.paths.home}", "evaluate.bootstrap=20", "retrieve.rerank=20", *small]
    given = [part for one in sets for part in ("--set", one)]
    monkeypatch.setattr(sys, "argv", ["benchmark", "--date", ew.DAY.isoformat(), "--results", str(tmp_path), *options, *given])
    program.main()  # type: ignore[attr-defined]
    name = program.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    name += "-validation" if "--validation" in options else ""
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["date"] == ew.DAY.isoformat()
    if program is beam:
        days = ["2017-11-06", "2017-11-08"] if "--validation" in options else ["2017-11-09", "2017-11-15"]
        assert found["judged_on"]["days"] == days and (found["settings"], found["draws"]) == (sets[1:], 20)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
