"""What fits, trainings and searches of the tokenizer benchmark are given: the parts of leave-one-out and the run's seed, nothing else."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import tokenizers_runs, tokenizers_sasrec
from benchmarks.tokenizers_data import DataSet
from benchmarks.tokenizers_runs import drawn, run, split
from dig_models.generator.examples import Examples
from dig_models.tokenizers.registry import tokenizer_class
from dig_models.tokenizers.sequences import Sequences
from tests.jobs.test_tokenizers_benchmark import RESID, TINY, asked, data, given_vectors, home

__all__ = ["data", "given_vectors", "home"]  # fixtures

SEED = 11


def same(found: Examples, expected: Examples) -> bool:
    return all(torch.equal(getattr(found, name), getattr(expected, name)) for name in ("item_P", "at_X", "first_X"))


def watched(monkeypatch: pytest.MonkeyPatch, home: object, name: str) -> list[dict[str, Any]]:
    """What a function is called with from now on, by name or place; it runs as before."""
    calls: list[dict[str, Any]] = []
    inner = getattr(home, name)

    @wraps(inner)
    def through(*args: Any, **kwargs: Any) -> Any:
        calls.append({**{str(at): arg for at, arg in enumerate(args)}, **kwargs})
        return inner(*args, **kwargs)

    monkeypatch.setattr(home, name, through)
    return calls


def parts(data: DataSet, order: Any = "published") -> tuple[Sequences, Examples, Examples]:
    return split(data.sequences(order, SEED))


@pytest.mark.usefixtures("given_vectors")
def test_tokenizer_and_generator_see_what_is_learned_from_and_validate_on_the_last_but_one(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = watched(monkeypatch, tokenizer_class("resid"), "fit")
    trainings = watched(monkeypatch, tokenizers_runs, "train")
    searches = watched(monkeypatch, tokenizers_runs, "recommend")
    mode = TINY.model_copy(update={"validation_users": 7})
    record = run(asked(data, tmp_path, "resid", levels=2, codes=8, seed=SEED, mode=mode, changes=RESID), lambda _: None)
    learned, validation, test = parts(data)
    assert [call["seed"] for call in fits] == [SEED]
    np.testing.assert_array_equal(fits[0]["sequences"].item_P, learned.item_P)
    np.testing.assert_array_equal(fits[0]["sequences"].start, learned.start)
    (training,) = trainings
    assert training["2"] == TINY.generator.model_copy(update={"seed": SEED})
    assert same(training["3"], Examples.every(learned))
    assert same(training["4"], drawn(validation, 7, SEED)) and len(training["4"]) == 7
    judged = drawn(test, 9, SEED + 1)
    assert torch.equal(searches[-1]["2"], judged.history(TINY.generator.history))
    assert record["judged"] == 9


def test_sasrec_sees_what_is_learned_from_and_validates_on_the_last_but_one(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = watched(monkeypatch, tokenizers_sasrec, "train")
    searches = watched(monkeypatch, tokenizers_sasrec, "recommend")
    run(asked(data, tmp_path, "sasrec", seed=SEED, order="shuffled"), lambda _: None)
    learned, validation, test = parts(data, "shuffled")
    (training,) = trainings
    np.testing.assert_array_equal(training["1"].item_P, learned.item_P)
    np.testing.assert_array_equal(training["1"].start, learned.start)
    assert same(training["2"], validation)
    assert training["3"] == TINY.sasrec.model_copy(update={"seed": SEED})
    assert same(searches[-1]["1"], drawn(test, 9, SEED + 1))
