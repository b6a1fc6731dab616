"""Several threads on one retriever answer as one thread does, bit by bit, whatever they ask for and whatever is made while they do."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import synthetic
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, hash_id
from dig_models.retrieve.options import SearchOptions
from dig_models.retrieve.recent import Recent
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable

USERS, ITEMS, THREADS = 6, 400, 4
World = tuple[Retriever, RequestTable]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, spec: FeatureSpec) -> World:
    """Requests of six users, each on a day of his own (more than are kept), under two offers and none."""
    items, users = synthetic.make_items(spec, [f"i{n}" for n in range(ITEMS)]), [f"u{i}" for i in range(USERS)]
    store = CrossStore.open(synthetic.write_crosses(tmp_path_factory.mktemp("threads"), spec, items, users), spec, items)
    retriever = Retriever.of(synthetic.make_model(spec, items, codes=12), spec, items, store)
    table = synthetic.user_state(spec, items, users)
    requests = RequestTable.from_arrow(table, spec, items)
    ts_B = requests.ts_B - np.arange(USERS) * SECONDS_PER_DAY
    return retriever, replace(requests, ts_B=ts_B, offer_B=np.array([hash_id(o) for o in ("offer-a", "offer-b", "none")] * 2))


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads take turns far more often than they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def fresh(retriever: Retriever) -> Retriever:
    """A retriever of which nothing is made yet."""
    return Retriever(model=retriever.model, spec=retriever.spec, items=retriever.items, trie=retriever.trie, store=retriever.store)


def draw_search(data: st.DataObject, rng: np.random.Generator) -> tuple[np.ndarray, SearchOptions]:
    index_B = rng.integers(0, USERS, data.draw(st.integers(1, 4)))
    options = SearchOptions(
        k=data.draw(st.integers(1, 20)),
        beam=data.draw(st.sampled_from([1, 5, 60, 1000])),
        rerank=data.draw(st.sampled_from([0, 30])),
        u2t=data.draw(st.sampled_from(["exact", "mlp"])),
        allowed=rng.random(ITEMS + 1) < 0.5 if data.draw(st.booleans()) else None,
        exclude_bought=data.draw(st.booleans()),
        chunk=data.draw(st.sampled_from([1, 16])),
    )
    return index_B, options


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_several_threads_answer_as_one(world: World, data: st.DataObject) -> None:
    threads_answer_as_one(world, data)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_several_threads_answer_as_one_whatever_is_asked(world: World, data: st.DataObject) -> None:
    threads_answer_as_one(world, data)


def threads_answer_as_one(world: World, data: st.DataObject) -> None:
    retriever, requests = world
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    asked = [draw_search(data, rng) for _ in range(2 * THREADS)]
    alone = [fresh(retriever).search(requests, *one) for one in asked]
    shared, together = fresh(retriever), threading.Barrier(THREADS)

    def ask(number: int) -> list[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        torch.set_num_threads(1)
        together.wait()
        order = [(number + step) % len(asked) for step in range(2 * len(asked))]
        found = [(at, shared.search(requests, *asked[at])) for at in order]
        return [(at, (one.item_GJ, one.score_GJ)) for at, one in found]

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pair for future in [pool.submit(ask, n) for n in range(THREADS)] for pair in future.result()]
    assert len(answers) == THREADS * 2 * len(asked)
    for at, (item_GJ, score_GJ) in answers:
        np.testing.assert_array_equal(item_GJ, alone[at].item_GJ)
        np.testing.assert_array_equal(score_GJ, alone[at].score_GJ)


def test_what_was_made_last_is_kept_up_to_the_limit() -> None:
    made: list[str] = []
    recent = Recent[str, str](7, size=len)

    def ask(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    for key in ("aaa", "bb", "aaa", "cc", "ddd", "aaa", "bb"):
        assert ask(key) == key
    assert made == ["aaa", "bb", "cc", "ddd", "aaa", "bb"]  # aaa outlived bb, and went for ddd
    assert ask("a single one that is too large") and len(recent) == 1
    assert ask("a single one that is too large") and made.count("a single one that is too large") == 1


def test_what_could_not_be_made_is_made_at_the_next_asking() -> None:
    recent = Recent[int, int](3)
    with pytest.raises(ZeroDivisionError):
        recent.get(1, lambda: 1 // 0)
    assert recent.get(1, lambda: 5) == 5 and len(recent) == 1


def test_threads_that_ask_for_the_same_at_once_leave_it_once() -> None:
    recent, together = Recent[int, int](100, size=lambda kept: 60), threading.Barrier(THREADS)

    def make() -> int:
        together.wait()
        return 7

    with ThreadPoolExecutor(THREADS) as pool:
        assert [f.result() for f in [pool.submit(recent.get, 1, make) for _ in range(THREADS)]] == [7] * THREADS
    assert recent.get(1, lambda: 8) == 7 and len(recent) == 1 and recent.get(2, lambda: 9) == 9 and len(recent) == 1
    assert recent.get(3, lambda: 4) == 4 and recent.get(2, lambda: 5) == 5
