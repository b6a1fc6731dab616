"""Cross look-ups against a slow NumPy reading of their definition."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dig_models.cross_files import META, CrossArraysError, CrossWriter
from dig_models.crosses import CrossStore
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, FeatureSpecMismatch, FieldSpec, OfferSpec
from dig_models.items import ItemTable

FIRST, POP_FIRST, LAST, SHARDS = 17_000, 17_005, 17_012, 2
SPEC = FeatureSpec(
    item_fields=(FieldSpec(name="item_id"),),
    user_fields=(),
    context_fields=(),
    u2i_keys=("item", "kind"),
    windows=(2, 5),
    offers=(OfferSpec(name="display", values=("1", "2")), OfferSpec(name="mailer", values=("A",))),
)
USERS = np.array([-9, -4, 3, 8], dtype=np.int64)  # both shards, both signs
OFFERS = np.array([-7, 0, 11, 99], dtype=np.int64)  # 0 and 99 were never offered
ITEM_HASHES = np.array([-50, -20, 5, 30, 70], dtype=np.int64)
KIND_HASHES = np.array([1, 1, 2, 0, 2], dtype=np.int64)  # item 30 has no kind


def item_table() -> ItemTable:
    low = np.iinfo(np.int64).min
    return ItemTable(
        hash_N=np.concatenate([[low], ITEM_HASHES]),
        id_N=np.array(["", *map(str, ITEM_HASHES)], dtype=object),
        name_N=np.array(["", *map(str, ITEM_HASHES)], dtype=object),
        fields={"item_id": np.arange(6)},
        numbers={},
        key_KN=np.stack([np.concatenate([[0], ITEM_HASHES]), np.concatenate([[0], KIND_HASHES])]),
    )


@dataclass
class World:
    """Events ``(user, item, ts)``, offers ``{(offer, item): codes}``; an item is its position in ``ITEM_HASHES``, 5 is in no table."""

    events: list[tuple[int, int, int]]
    offers: dict[tuple[int, int], tuple[int, int]]

    def key(self, k: int, item: int) -> int:
        return int((np.append(ITEM_HASHES, 77) if k == 0 else np.append(KIND_HASHES, 2))[item])

    def write(self, path: Path) -> None:
        writer = CrossWriter(path, first_day=FIRST, last_day=LAST)
        for k, name in enumerate(SPEC.u2i_keys):
            rows: dict[tuple[int, int, int], float] = {}
            for user, item, ts in self.events:
                if self.key(k, item):
                    rows[user, self.key(k, item), ts] = rows.get((user, self.key(k, item), ts), 0) + 1
            table = np.array([(*r, n) for r, n in rows.items()], dtype=np.int64).reshape(-1, 4)
            for shard in range(SHARDS):
                part = table[table[:, 0] % SHARDS == shard]
                writer.put_u2i(name, shard, part[:, 0], part[:, 1], part[:, 2], part[:, 3].astype(float))
        days = np.arange(POP_FIRST, LAST + 1)
        writer.put_pop(
            days, ITEM_HASHES, {w: np.array([[self.pop(i, d, w) for i in range(5)] for d in days], np.float32) for w in SPEC.windows}
        )
        pairs = np.array(sorted(self.offers), dtype=np.int64).reshape(-1, 2)
        codes = np.array([self.offers[o, i] for o, i in sorted(self.offers)], dtype=np.int16).reshape(-1, 2)
        writer.put_offers(pairs[:, 0], np.append(ITEM_HASHES, 77)[pairs[:, 1]], {"display": codes[:, 0], "mailer": codes[:, 1]})
        writer.close(SPEC, pop_first_day=POP_FIRST, shards=SHARDS)

    def pop(self, item: int, day: int, window: int) -> int:
        return sum(i == item and day - window < ts // SECONDS_PER_DAY <= day for _, i, ts in self.events)

    def slow(self, user: int, ts: int, offer: int, item: int) -> list[float]:
        """Reading of the contract for one pair; ``item`` as in ``ITEM_HASHES``."""
        day, out = ts // SECONDS_PER_DAY, []
        for k in range(len(SPEC.u2i_keys)):
            key = self.key(k, item)
            mine = [t for u, i, t in self.events if key and u == user and self.key(k, i) == key and t < ts]
            out += [float(sum(t >= (day - w) * SECONDS_PER_DAY for t in mine)) for w in SPEC.windows]
            recent = [t for t in mine if t >= (day - max(SPEC.windows)) * SECONDS_PER_DAY]
            out.append((ts - max(recent)) / SECONDS_PER_DAY if recent else -1.0)
        out += [float(self.pop(item, day - 1, w)) for w in SPEC.windows]
        return [*out, *map(float, self.offers.get((offer, item), (0, 0)))]


# Midnights and the second before them, where windows open and close, as often as any second.
seconds = st.builds(
    lambda day, second: day * SECONDS_PER_DAY + second,
    st.integers(FIRST, LAST),
    st.one_of(st.sampled_from([0, 1, SECONDS_PER_DAY - 1]), st.integers(0, SECONDS_PER_DAY - 1)),
)
worlds = st.builds(
    World,
    st.lists(st.tuples(st.sampled_from(USERS[:3].tolist()), st.integers(0, 5), seconds), max_size=40),
    st.dictionaries(st.tuples(st.sampled_from([-7, 11]), st.integers(0, 5)), st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=8),
)
asked_seconds = seconds.map(lambda ts: max(ts, (POP_FIRST + 1) * SECONDS_PER_DAY))
pairs = st.lists(
    st.tuples(st.sampled_from(USERS.tolist()), asked_seconds, st.sampled_from(OFFERS.tolist()), st.integers(0, 4)), min_size=1, max_size=30
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds, asked=pairs)
def test_pairs_and_catalogue_agree_with_the_definition(
    world: World, asked: list[tuple[int, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("arrays")
    world.write(path)
    store = CrossStore.open(path, SPEC, item_table())
    user, ts, offer, item = (np.array(column, dtype=np.int64) for column in zip(*asked, strict=True))
    got = store.pairs(user, ts, offer, item + 1)
    np.testing.assert_allclose(got, np.array([world.slow(*pair) for pair in asked]), atol=1e-5)
    for u, t, o, _ in asked[:3]:
        whole = store.catalogue(u, t, o)
        np.testing.assert_allclose(whole[1:], [world.slow(u, t, o, i) for i in range(5)], atol=1e-5)
        bought = sorted({i + 1 for v, i, s in world.events if v == u and s < t and i < 5})
        assert store.bought(u, t).tolist() == bought


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    at = (POP_FIRST + 3) * SECONDS_PER_DAY
    World([(-9, 0, at), (-9, 0, at + 60), (3, 2, at)], {(-7, 0): (2, 1)}).write(tmp_path)
    return tmp_path


def ask(store: CrossStore, user: int, ts: int, item: int, offer: int = 0) -> NDArray[np.float32]:
    return store.pairs(*(np.array([v], dtype=np.int64) for v in (user, ts, offer, item)))[0]


def test_an_event_at_the_very_second_of_the_request_does_not_count_and_one_a_second_before_does(arrays: Path) -> None:
    store, at = CrossStore.open(arrays, SPEC, item_table()), (POP_FIRST + 3) * SECONDS_PER_DAY
    assert ask(store, -9, at, 1)[:3].tolist() == [0, 0, -1]
    assert ask(store, -9, at + 60, 1)[:3].tolist() == pytest.approx([1, 1, 60 / SECONDS_PER_DAY])
    assert ask(store, -9, at + 61, 1)[:2].tolist() == [2, 2]


def test_a_window_reaches_back_to_the_midnight_of_its_first_day(arrays: Path) -> None:
    store, at = CrossStore.open(arrays, SPEC, item_table()), (POP_FIRST + 3) * SECONDS_PER_DAY
    late = at + 2 * SECONDS_PER_DAY + SECONDS_PER_DAY - 1
    assert ask(store, 3, late, 3)[:2].tolist() == [1, 1]
    assert ask(store, 3, late + 1, 3)[:2].tolist() == [0, 1]


def test_unknown_user_unknown_item_and_unknown_offer_have_no_crosses(arrays: Path) -> None:
    store, at = CrossStore.open(arrays, SPEC, item_table()), (LAST + 1) * SECONDS_PER_DAY
    never = [0, 0, -1, 0, 0, -1]
    assert ask(store, 12345, at, 1, offer=4).tolist()[:6] == never
    assert ask(store, -9, at, 0, offer=-7).tolist() == [*never, 0, 0, 0, 0]
    np.testing.assert_array_equal(store.catalogue(12345, at, 4)[:, :6], np.tile(never, (6, 1)))
    assert store.bought(12345, at).tolist() == []


def test_no_pairs_give_an_empty_matrix(arrays: Path) -> None:
    none = np.zeros(0, dtype=np.int64)
    assert CrossStore.open(arrays, SPEC, item_table()).pairs(none, none, none, none).shape == (0, SPEC.cross_width_raw)


@pytest.mark.parametrize("day", [POP_FIRST, LAST + 2])
def test_a_time_that_the_arrays_do_not_cover_is_refused(arrays: Path, day: int) -> None:
    store = CrossStore.open(arrays, SPEC, item_table())
    with pytest.raises(ValueError, match="the arrays answer 2016-07-24 to 2016-07-31"):
        ask(store, 3, day * SECONDS_PER_DAY, 1)


def test_what_grows_with_events_and_users_stays_on_disk(arrays: Path) -> None:
    store = CrossStore.open(arrays, SPEC, item_table())
    ask(store, -9, LAST * SECONDS_PER_DAY, 1, -7)
    shards = [store._shard(k, shard) for k in range(len(SPEC.u2i_keys)) for shard in range(SHARDS)]
    for held in (*shards, store._offers):
        for array in (value for value in list(vars(held).values()) if isinstance(value, np.ndarray)):
            of_items = any(array is getattr(held, name, None) for name in ("key_N", "item_key_N"))
            assert of_items or not array.size or (not array.flags.owndata and not array.flags.writeable), "a view of a read-only map"


def test_a_store_that_is_loaded_goes_on_answering_when_its_folder_is_removed(arrays: Path) -> None:
    asked = (-9, LAST * SECONDS_PER_DAY, 1, -7)
    expected = ask(CrossStore.open(arrays, SPEC, item_table()), *asked)
    store = CrossStore.open(arrays, SPEC, item_table()).preload()
    shutil.rmtree(arrays)
    np.testing.assert_array_equal(ask(store, *asked), expected)


def test_events_outside_the_days_of_the_arrays_are_refused(tmp_path: Path) -> None:
    writer = CrossWriter(tmp_path, first_day=FIRST, last_day=LAST)
    one = np.array([1])
    for second in (FIRST * SECONDS_PER_DAY - 1, (LAST + 1) * SECONDS_PER_DAY):
        with pytest.raises(ValueError, match="outside days"):
            writer.put_u2i("item", 0, one, one, np.array([second]), np.array([1.0]))


def test_arrays_of_another_feature_spec_are_refused(arrays: Path) -> None:
    other = FeatureSpec.model_validate(SPEC.model_dump() | {"windows": (2, 6)})
    with pytest.raises(FeatureSpecMismatch, match="rebuild"):
        CrossStore.open(arrays, other, item_table())


@pytest.mark.parametrize("name", ["u2i-item-1.cum", "u2i-kind-1.place", "pop.5", "offers.place"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_a_damaged_file_is_named(arrays: Path, name: str, damage: str) -> None:
    file = arrays / f"{name}.npy"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "missing":
        file.unlink()
    else:
        np.save(file, np.zeros(3, dtype=np.float16))
    with pytest.raises(CrossArraysError, match=rf"{name}\.npy"):
        ask(CrossStore.open(arrays, SPEC, item_table()), -9, LAST * SECONDS_PER_DAY, 1, -7)


@pytest.mark.parametrize(("text", "said"), [("", "not the description"), ("[]", "not the description"), ('{"format": 9}', "9 found")])
def test_a_broken_description_is_refused(arrays: Path, text: str, said: str) -> None:
    (arrays / META).write_text(text)
    with pytest.raises(CrossArraysError, match=said):
        CrossStore.open(arrays, SPEC, item_table())


def test_a_folder_without_description_says_which_job_writes_it(tmp_path: Path) -> None:
    with pytest.raises(CrossArraysError, match=r"jobs\.u2i_crosses"):
        CrossStore.open(tmp_path, SPEC, item_table())


def test_the_description_lists_every_array(arrays: Path) -> None:
    listed = set(json.loads((arrays / META).read_text())["arrays"])
    assert listed == {file.stem for file in arrays.glob("*.npy")}
