"""Requests as arrays and the batches made of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import synthetic
import torch
from numpy.typing import NDArray
from tiny import KEEP_RATE, USERS, Tiny, example_table

from dig_models.batch import Batch
from dig_models.features import SOURCE_EXPOSED, SOURCE_ORGANIC, SOURCE_RANDOM
from dig_models.items import ItemTable
from dig_models.train.data import ExamplesError, RequestTable, collate, popular_chances


@pytest.fixture(scope="module")
def table(tiny: Tiny) -> pa.Table:
    return example_table(tiny.spec, tiny.items, tiny.store, synthetic.DAY, 20)


@pytest.fixture(scope="module")
def requests(tiny: Tiny, table: pa.Table) -> RequestTable:
    return RequestTable.from_arrow(table, tiny.spec, tiny.items)


def make(tiny: Tiny, requests: RequestTable, index: object, items: ItemTable | None = None, **changes: object) -> Batch:
    given = {"spec": tiny.spec, "items": items or tiny.items, "lookup": tiny.lookup, "keep_rate": KEEP_RATE}
    return collate(requests, np.asarray(index), **{**given, **changes})  # type: ignore[arg-type]


def test_a_batch_without_negatives_is_the_stored_rows_in_the_order_asked(tiny: Tiny, table: pa.Table, requests: RequestTable) -> None:
    batch = make(tiny, requests, [7, 2, 7])
    stored = [table.slice(i, 1).to_pylist()[0] for i in (7, 2, 7)]
    assert batch.item_R.tolist() == [int(tiny.items.rows(np.array([h]))[0]) for r in stored for h in r["item"]]
    assert batch.label_R.tolist() == [v for r in stored for v in r["label"]]
    assert batch.request_R.tolist() == [b for b in range(3) for _ in range(11)]
    raw = np.array([r["cross"] for r in stored], dtype=np.float32).reshape(-1, tiny.spec.cross_width_raw)
    np.testing.assert_array_equal(batch.cross_RC.numpy(), tiny.spec.transform(raw))
    assert batch.user_hash_B.tolist() == [r["user_hash"] for r in stored]
    assert batch.user_BF.tolist() == [[r["u_user_id"], r["c_weekday"]] for r in stored]


def test_a_slice_of_a_table_gives_the_same_requests_as_the_whole(tiny: Tiny, table: pa.Table, requests: RequestTable) -> None:
    part = RequestTable.from_arrow(table.slice(5, 6), tiny.spec, tiny.items)
    a, b = make(tiny, part, range(6)), make(tiny, requests, range(5, 11))
    assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in a.__dataclass_fields__)


def test_lists_are_taken_from_arrow_without_a_copy(tiny: Tiny, table: pa.Table) -> None:
    whole = table.combine_chunks()
    taken = RequestTable.from_arrow(whole, tiny.spec, tiny.items)
    assert np.shares_memory(taken.cross_RW, whole.column("cross").chunk(0).values.to_numpy())
    assert np.shares_memory(taken.history_ts, whole.column("hist_ts").chunk(0).values.to_numpy())


def test_history_is_newest_first_with_ages_in_days_and_zero_where_padded(tiny: Tiny, table: pa.Table, requests: RequestTable) -> None:
    batch = make(tiny, requests, range(len(requests)))
    for b, row in enumerate(table.to_pylist()):
        n = len(row["hist_item"])
        assert batch.history_BH[b, :n].tolist() == tiny.items.rows(np.array(row["hist_item"], dtype=np.int64)).tolist()
        np.testing.assert_allclose(batch.history_age_BH[b, :n], [(row["ts"] - t) / 86400 for t in row["hist_ts"]], rtol=1e-6)
        assert not batch.history_BH[b, n:].any() and not batch.history_age_BH[b, n:].any()


def test_rows_of_items_outside_the_catalogue_are_dropped_and_history_reads_unknown(tiny: Tiny, table: pa.Table) -> None:
    few = synthetic.make_items(tiny.spec, [f"i{n}" for n in range(30)])
    requests = RequestTable.from_arrow(table, tiny.spec, few)
    batch = make(tiny, requests, range(20), few)
    known = {int(h) for h in few.hash_N[1:]}
    assert batch.rows == sum(h in known for r in table.column("item").to_pylist() for h in r)
    assert batch.item_R.min() > 0
    request_R, at_R = requests.rows_of(np.arange(20))
    assert request_R.tolist() == batch.request_R.tolist()
    assert requests.label_R[at_R].tolist() == batch.label_R.tolist()
    assert ((batch.history_BH > 0) | (batch.history_age_BH == 0)).all()


def test_user_state_without_row_columns_gives_requests_without_rows(tiny: Tiny) -> None:
    state = synthetic.user_state(tiny.spec, tiny.items, USERS)
    batch = make(tiny, RequestTable.from_arrow(state, tiny.spec, tiny.items), range(len(USERS)))
    assert (batch.requests, batch.rows) == (len(USERS), 0)
    assert batch.cross_RC.shape == (0, tiny.spec.cross_width)


def test_an_empty_partition_gives_an_empty_table(tiny: Tiny, table: pa.Table) -> None:
    assert len(RequestTable.from_arrow(table.slice(0, 0), tiny.spec, tiny.items)) == 0


def test_random_negatives_are_never_positives_of_their_request_and_carry_looked_up_crosses(tiny: Tiny, requests: RequestTable) -> None:
    batch = make(tiny, requests, range(20), random_negatives=40, rng=np.random.default_rng(0))
    positive = {(int(r), int(i)) for r, i, y in zip(batch.request_R, batch.item_R, batch.label_R, strict=True) if y > 0}
    drawn = batch.source_R == SOURCE_RANDOM
    pairs = list(zip(batch.request_R[drawn].tolist(), batch.item_R[drawn].tolist(), strict=True))
    assert len(pairs) == 20 * 40 and not positive & set(pairs)
    assert not batch.label_R[drawn].any()
    request_R, item_R = batch.request_R[drawn], batch.item_R[drawn]
    want = tiny.lookup(*(a.numpy() for a in (batch.user_hash_B[request_R], batch.ts_B[request_R], batch.offer_B[request_R], item_R)))
    np.testing.assert_array_equal(batch.cross_RC[drawn].numpy(), want)
    assert (batch.request_R.diff() >= 0).all()


def test_random_negatives_are_uniform_over_the_rest_of_the_catalogue(tiny: Tiny, requests: RequestTable) -> None:
    batch = make(tiny, requests, [0], random_negatives=60_000, rng=np.random.default_rng(1))
    mine = set(batch.item_R[batch.label_R > 0].tolist())
    counts = np.bincount(batch.item_R[batch.source_R == SOURCE_RANDOM], minlength=len(tiny.items))
    rest = [i for i in range(1, len(tiny.items)) if i not in mine]
    assert counts[0] == 0 and not counts[list(mine)].any()
    expected = 60_000 / len(rest)
    assert (((counts[rest] - expected) ** 2) / expected).sum() < 2 * len(rest)  # chi-square, mean len(rest) - 1, sd ~ 10


def test_a_request_that_bought_everything_gets_no_negatives(tiny: Tiny, table: pa.Table) -> None:
    few = synthetic.make_items(tiny.spec, [str(tiny.items.id_N[r]) for r in tiny.items.rows(np.array(table.column("item")[0].as_py()))])
    row = table.slice(0, 1).to_pylist()[0] | {"label": [1] * 11}
    requests = RequestTable.from_arrow(pa.Table.from_pylist([row], schema=table.schema), tiny.spec, few)
    crosses = np.zeros((0, tiny.spec.cross_width), np.float32)
    batch = make(tiny, requests, [0], few, random_negatives=5, rng=np.random.default_rng(0), lookup=lambda *_: crosses)
    assert not (batch.source_R == SOURCE_RANDOM).any()


@pytest.mark.parametrize("kind", ["all", "organic"])
def test_exposed_positives_are_open_rows_too_only_with_open_positives_all(tiny: Tiny, requests: RequestTable, kind: str) -> None:
    stored = make(tiny, requests, range(20))
    batch = make(tiny, requests, range(20), random_negatives=3, rng=np.random.default_rng(0), open_positives=kind)
    exposed_positives = int(((stored.source_R == SOURCE_EXPOSED) & (stored.label_R > 0)).sum())
    more = int((batch.source_R == SOURCE_ORGANIC).sum()) - int((stored.source_R == SOURCE_ORGANIC).sum())
    assert exposed_positives > 0 and more == (exposed_positives if kind == "all" else 0)
    assert (batch.label_R[batch.source_R == SOURCE_ORGANIC] == 1).all()
    assert torch_equal_counts(batch, stored)


def torch_equal_counts(batch: Batch, stored: Batch) -> bool:
    return int((batch.source_R == SOURCE_EXPOSED).sum()) == int((stored.source_R == SOURCE_EXPOSED).sum())


def test_offsets_undo_the_sampling_of_each_domain(tiny: Tiny, requests: RequestTable) -> None:
    batch = make(tiny, requests, range(20), random_negatives=6, rng=np.random.default_rng(0))
    exposed = batch.domain_R == 0
    np.testing.assert_allclose(batch.offset_R[exposed], np.log(1 / KEEP_RATE), rtol=1e-6)
    np.testing.assert_allclose(batch.offset_R[~exposed], np.log((len(tiny.items) - 1) / 6), rtol=1e-6)
    assert ((batch.source_R == SOURCE_EXPOSED) == exposed).all()


def test_history_negatives_are_distinct_items_of_the_history_that_were_not_bought_again(tiny: Tiny, requests: RequestTable) -> None:
    plain = make(tiny, requests, range(20), random_negatives=3, rng=np.random.default_rng(0))
    batch = make(tiny, requests, range(20), random_negatives=3, history_negatives=4, rng=np.random.default_rng(0))
    drawn = pairs_of(batch, batch.source_R == SOURCE_RANDOM)
    own = drawn - Counter(pairs_of(plain, plain.source_R == SOURCE_RANDOM))
    bought = set(pairs_of(batch, batch.label_R > 0))
    met = {(b, item) for b in range(20) for item in batch.history_BH[b].tolist() if item}
    assert set(own.values()) == {1} and set(own) <= met - bought
    free = Counter(b for b, _ in met - bought)
    assert Counter(b for b, _ in own) == {b: min(4, n) for b, n in free.items()}
    assert max(free.values()) > 4 > min(free.values()), "both requests with more and with fewer of them"
    request_R, item_R = (torch.tensor(column) for column in zip(*own, strict=True))
    want = tiny.lookup(*(a.numpy() for a in (batch.user_hash_B[request_R], batch.ts_B[request_R], batch.offer_B[request_R], item_R)))
    at = {pair: row for row, pair in enumerate(zip(batch.request_R.tolist(), batch.item_R.tolist(), strict=True))}
    np.testing.assert_array_equal(batch.cross_RC[[at[pair] for pair in own]].numpy(), want)


def pairs_of(batch: Batch, chosen_R: torch.Tensor) -> Counter[tuple[int, int]]:
    return Counter(zip(batch.request_R[chosen_R].tolist(), batch.item_R[chosen_R].tolist(), strict=True))


def test_offsets_know_which_rows_history_negatives_made_likelier(tiny: Tiny, requests: RequestTable) -> None:
    batch = make(tiny, requests, range(20), random_negatives=6, history_negatives=4, rng=np.random.default_rng(0))
    bought = set(pairs_of(batch, batch.label_R > 0))
    for row in np.flatnonzero(batch.source_R.numpy() != SOURCE_EXPOSED).tolist():
        b, item = int(batch.request_R[row]), int(batch.item_R[row])
        met = set(batch.history_BH[b].tolist()) - {0}
        free = {one for one in met if (b, one) not in bought}
        share = 6 / (len(tiny.items) - 1) + (min(1.0, 4 / max(len(free), 1)) if item in met else 0.0)
        assert float(batch.offset_R[row]) == pytest.approx(-np.log(share), abs=1e-5)
    np.testing.assert_allclose(batch.offset_R[batch.domain_R == 0], np.log(1 / KEEP_RATE), rtol=1e-6)


def test_drawn_negatives_and_their_offsets_give_the_true_rates_back(tiny: Tiny, requests: RequestTable) -> None:
    """A drawn negative stands for ``exp(offset)`` of them: over many draws these must sum up to all negatives, of either kind."""
    found = {True: 0.0, False: 0.0}
    for seed in range(60):
        batch = make(tiny, requests, range(20), random_negatives=6, history_negatives=3, rng=np.random.default_rng(seed))
        met_R = (batch.history_BH[batch.request_R] == batch.item_R.unsqueeze(1)).any(1)
        for met in (True, False):
            drawn_R = (batch.source_R == SOURCE_RANDOM) & (met_R == met)
            found[met] += float(batch.offset_R[drawn_R].double().exp().sum()) / 60
    bought = set(pairs_of(batch, batch.label_R > 0))
    every = {(b, item) for b in range(20) for item in range(1, len(tiny.items))} - bought
    own = {(b, item) for b in range(20) for item in batch.history_BH[b].tolist()} & every
    assert found[True] == pytest.approx(len(own), rel=0.1)
    assert found[False] == pytest.approx(len(every - own), rel=0.15), "positives, 15% of this tiny catalogue, are not drawn"


def test_popular_negatives_are_drawn_by_their_chances_and_their_offsets_give_the_rates_back(tiny: Tiny, requests: RequestTable) -> None:
    """Some items many times as likely as others: over many draws each stands for every request that did not buy it."""
    rows, draws = len(tiny.items), 60
    chance_N = np.r_[0.0, np.arange(1.0, rows)]
    chance_N /= chance_N.sum()
    count_N, stands_for_N = np.zeros(rows), np.zeros(rows)
    for seed in range(draws):
        given = {"random_negatives": 2, "history_negatives": 2, "rng": np.random.default_rng(seed)}
        batch = make(tiny, requests, range(20), **given, popular_negatives=12, chance_N=chance_N)
        drawn_R = batch.source_R == SOURCE_RANDOM
        item_R, met_R = batch.item_R, (batch.history_BH[batch.request_R] == batch.item_R.unsqueeze(1)).any(1)
        count_N += np.bincount(item_R[drawn_R & ~met_R], minlength=rows)
        stands_for_N += np.bincount(item_R[drawn_R], weights=batch.offset_R[drawn_R].double().exp(), minlength=rows) / draws
        assert not set(pairs_of(batch, drawn_R)) & set(pairs_of(batch, batch.label_R > 0))
    free_N = np.zeros(rows)
    for b in range(20):
        free_N[[i for i in range(1, rows) if (b, i) not in pairs_of(batch, batch.label_R > 0)]] += 1
    assert stands_for_N[1:].sum() == pytest.approx(free_N.sum(), rel=0.1)
    often, seldom = chance_N > np.quantile(chance_N[1:], 0.75), (chance_N > 0) & (chance_N < np.quantile(chance_N[1:], 0.25))
    assert stands_for_N[often].sum() == pytest.approx(free_N[often].sum(), rel=0.1)
    assert stands_for_N[seldom].sum() == pytest.approx(free_N[seldom].sum(), rel=0.25)
    assert count_N[often].sum() > 2 * count_N[seldom].sum()


def test_offsets_know_how_popular_an_open_row_is(tiny: Tiny, requests: RequestTable) -> None:
    chance_N = np.zeros(len(tiny.items))
    chance_N[[3, 5]] = 0.75, 0.25
    batch = make(tiny, requests, range(20), random_negatives=4, popular_negatives=8, chance_N=chance_N, rng=np.random.default_rng(0))
    open_R = (batch.domain_R == 1).numpy()
    share_R = 4 / (len(tiny.items) - 1) + 8 * chance_N[batch.item_R.numpy()[open_R]]
    np.testing.assert_allclose(batch.offset_R.numpy()[open_R], -np.log(share_R), rtol=1e-6)
    drawn = pairs_of(batch, batch.source_R == SOURCE_RANDOM)
    bought = set(pairs_of(batch, batch.label_R > 0))
    assert all(drawn[b, 3] > 2 for b in range(20) if (b, 3) not in bought)


def test_popular_negatives_need_the_chances_of_the_catalogue(tiny: Tiny, requests: RequestTable) -> None:
    for chance_N in (None, np.full(3, 1 / 3)):
        with pytest.raises(ValueError, match="chance of each of the"):
            make(tiny, requests, [0], random_negatives=1, popular_negatives=1, chance_N=chance_N, rng=np.random.default_rng(0))


class Sold:
    """Popularity of three items by two windows."""

    def __init__(self, *events: float) -> None:
        self.events, self.asked = events, 0

    def popularity(self, ts: int) -> NDArray[np.float32]:
        self.asked = ts
        return np.array([(9.0, 9.0), *((1.0, n) for n in self.events)], dtype=np.float32)


def test_chances_are_shares_of_what_was_sold_before_in_about_a_month(tiny: Tiny) -> None:
    spec = tiny.spec.model_copy(update={"windows": (7, 28)})
    sold = Sold(30.0, 0.0, 10.0)
    assert popular_chances(sold, spec, 1_000_000).tolist() == [0.0, 0.75, 0.0, 0.25]
    assert sold.asked == 1_000_000
    assert popular_chances(Sold(0.0, 0.0), spec, 0).tolist() == [0.0, 0.5, 0.5], "nothing was sold: all alike"


def test_the_offset_gives_the_true_rate_back_from_a_sample() -> None:
    """Fit one logit on a sample that keeps a quarter of the negatives, with the offset: it must be the population's log-odds."""
    rng = np.random.default_rng(0)
    label = rng.random(400_000) < 0.03
    kept = label | (rng.random(len(label)) < KEEP_RATE)
    sampled_rate = label[kept].mean()
    f = np.log(sampled_rate / (1 - sampled_rate)) - np.log(1 / KEEP_RATE)  # where BCE(sigmoid(f + offset)) is least
    assert 1 / (1 + np.exp(-f)) == pytest.approx(0.03, rel=0.03)


def test_negatives_need_a_generator_and_items(tiny: Tiny, requests: RequestTable) -> None:
    with pytest.raises(ValueError, match="rng"):
        make(tiny, requests, [0], random_negatives=1)


def damaged(table: pa.Table, name: str, values: object) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, type=table.schema.field(name).type))


def test_examples_that_do_not_fit_are_refused_by_name(tiny: Tiny, table: pa.Table) -> None:
    cross = table.column("cross").to_pylist()
    cases = {
        "lack column.*ts": table.drop_columns(["ts"]),
        "'label'": damaged(table, "label", [v[:-1] for v in table.column("label").to_pylist()]),
        "another data-set config": damaged(table, "cross", [v[:-1] for v in cross]),
        "non-finite": damaged(table, "cross", [[float("nan"), *v[1:]] for v in cross]),
        "'ts' has 1 null": damaged(table, "ts", [None, *table.column("ts").to_pylist()[1:]]),
        "'weight' holds nulls": damaged(table, "weight", [[None, *v[1:]] for v in table.column("weight").to_pylist()]),
    }
    for message, wrong in cases.items():
        with pytest.raises(ExamplesError, match=message):
            RequestTable.from_arrow(wrong, tiny.spec, tiny.items)


def test_what_was_written_to_parquet_reads_back_the_same(tiny: Tiny, table: pa.Table, requests: RequestTable, tmp_path: object) -> None:
    file = f"{tmp_path}/x.parquet"
    pq.write_table(table, file, row_group_size=3)
    again = RequestTable.from_arrow(pq.read_table(file), tiny.spec, tiny.items)
    assert all(np.array_equal(getattr(again, n), getattr(requests, n)) for n in requests.__dataclass_fields__)
