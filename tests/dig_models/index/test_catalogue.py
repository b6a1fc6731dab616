"""The item table on disk, the chunked encoder, the lease of a reader, and the differences of two generations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import synthetic
import torch

from dig_models.bundle import BundleMismatch, items_to_arrow, load_network, save_network
from dig_models.features import FeatureSpec
from dig_models.index import encode
from dig_models.index import generation as g
from dig_models.index.catalogue import by_id, open_items, save_items, spill_items
from dig_models.index.diff import Sids, changes
from dig_models.index.maps import sid_column
from dig_models.index.reader import IndexReader
from dig_models.index.state import state_table
from dig_models.index.writer import Release, is_open, locked, retain, superfluous
from dig_models.items import ItemTable

Publish = Callable[[Path, Release], str]


def same(one: ItemTable, two: ItemTable) -> None:
    assert list(one.id_N) == list(two.id_N) and list(one.name_N) == list(two.name_N)
    assert np.array_equal(one.hash_N, two.hash_N) and np.array_equal(one.key_KN, two.key_KN)
    assert one.fields.keys() == two.fields.keys() and one.numbers.keys() == two.numbers.keys()
    for name in one.fields:
        assert np.array_equal(one.fields[name], two.fields[name])
    for name in one.numbers:
        assert np.array_equal(one.numbers[name], two.numbers[name])


def test_a_table_comes_back_from_disk(spec: FeatureSpec, tmp_path: Path) -> None:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(30)])
    save_items(tmp_path, items, spec)
    same(open_items(tmp_path, spec, 31), items)
    ids = open_items(tmp_path, spec).id_N
    assert list(ids[np.load(tmp_path / "by_id.npy")]) == sorted(items.id_N[1:])


def test_a_catalogue_read_by_columns_is_the_one_read_whole(spec: FeatureSpec, tmp_path: Path) -> None:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(50)])
    table = items_to_arrow(items, spec, np.zeros((51, 0), dtype=np.int64)).take(np.random.default_rng(0).permutation(50))
    table = pa.concat_tables([table.slice(0, 20), table.slice(20)])
    same(spill_items(table.column, spec, tmp_path), ItemTable.from_arrow(table, spec))


def test_an_item_that_is_there_twice_is_refused(spec: FeatureSpec, tmp_path: Path) -> None:
    items = synthetic.make_items(spec, ["a", "b"])
    table = items_to_arrow(items, spec, np.zeros((3, 0), dtype=np.int64))
    with pytest.raises(ValueError, match="stands for two items"):
        spill_items(pa.concat_tables([table, table]).column, spec, tmp_path)


def test_ids_are_ordered_by_their_bytes() -> None:
    from dig_models.arrays import Strings

    ids = ["", "b", "ä", "a", "Z", "€"]
    order = by_id(Strings.of(ids))
    assert [ids[row] for row in order] == sorted(ids[1:], key=str.encode)


def test_chunks_give_what_the_whole_catalogue_gives(spec: FeatureSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 7)
    items = synthetic.make_items(spec, [f"i{n}" for n in range(40)])
    model = synthetic.make_model(spec, items)
    more = synthetic.make_items(spec, [f"i{n}" for n in range(5, 60)])
    encode.write_codes(model, more, tmp_path / "sid.npy", tmp_path / "e.npy")
    model.set_items(more)
    e_ND = model.encode_catalogue()
    assert np.allclose(np.load(tmp_path / "e.npy"), e_ND.numpy(), atol=1e-5)
    assert np.array_equal(np.load(tmp_path / "sid.npy")[1:], model.codes(e_ND).numpy()[1:])


def test_a_model_whose_codes_are_fixed_keeps_those_of_known_items(spec: FeatureSpec, tmp_path: Path) -> None:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(40)])
    model = synthetic.make_model(spec, items, assignment="frozen_tree")
    more = synthetic.make_items(spec, [f"i{n}" for n in range(5, 60)])
    encode.write_codes(model, more, tmp_path / "sid.npy", tmp_path / "e.npy")
    sid_NL = np.load(tmp_path / "sid.npy")
    at = items.rows(more.hash_N)
    assert np.array_equal(sid_NL[at > 0], model.code_NL.numpy()[at[at > 0]])
    assert sid_NL[1:].min() >= 0


def test_a_network_without_a_catalogue_scores_as_before(spec: FeatureSpec, tmp_path: Path) -> None:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(40)])
    model = synthetic.make_model(spec, items)
    save_network(tmp_path, model, {"date": "2017-01-01"})
    back, info = load_network(tmp_path)
    assert info == {"date": "2017-01-01"}
    back.set_items(items)
    assert torch.equal(back.encode_catalogue(), model.encode_catalogue())
    for name, value in model.state_dict().items():
        assert name == "code_NL" or torch.equal(back.state_dict()[name], value)


def test_weights_of_another_network_are_refused(spec: FeatureSpec, tmp_path: Path) -> None:
    items = synthetic.make_items(spec, [f"i{n}" for n in range(40)])
    save_network(tmp_path / "a", synthetic.make_model(spec, items), {})
    save_network(tmp_path / "b", synthetic.make_model(spec, items, heads=4, dim=16), {})
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "a" / "model.safetensors")
    with pytest.raises(BundleMismatch, match="does not fit"):
        load_network(tmp_path / "a")


def test_a_generation_that_is_open_is_not_removed_until_its_reader_is_gone(tmp_path: Path, release: Release, publish: Publish) -> None:
    ids = [publish(tmp_path, replace(release, day=release.day.replace(day=d))) for d in (1, 2, 3)]
    reader = IndexReader.open(tmp_path, ids[0])
    assert is_open(reader.folder)
    with locked(tmp_path):
        assert superfluous(tmp_path, 1) == retain(tmp_path, 1) == []
    del reader
    with locked(tmp_path):
        assert superfluous(tmp_path, 1) == retain(tmp_path, 1) == ids[:1]


def test_a_published_model_takes_another_catalogue_and_keeps_its_sids(tmp_path: Path, release: Release, publish: Publish) -> None:
    reader = IndexReader.open(tmp_path, publish(tmp_path, release))
    model, before = reader.bundle.model, reader.retriever.embedding_ND.clone()
    fewer = synthetic.make_items(release.bundle.spec, [*release.items.id_N[5:], "cold"])
    at = release.items.rows(fewer.hash_N)
    model.set_items(fewer)
    assert np.array_equal(model.code_NL.numpy()[at > 0], reader.bundle.codes_NL[at[at > 0]])
    assert torch.allclose(model.encode_catalogue()[torch.from_numpy(at > 0)], before[torch.from_numpy(at[at > 0])], atol=1e-5)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)  # a private map: the file stays
    IndexReader.open(tmp_path, checksums=True)


def test_the_state_can_be_published_again(tmp_path: Path, release: Release, publish: Publish) -> None:
    reader = IndexReader.open(tmp_path / "one", publish(tmp_path / "one", release))
    table = state_table(reader.folder / g.STATE, release.bundle.spec, reader.manifest.users)
    assert publish(tmp_path / "two", replace(release, user_state=table)) == reader.manifest.id


def test_differences_agree_with_a_slow_reading() -> None:
    from dig_models.arrays import Strings
    from dig_models.features import hash_id

    rng = np.random.default_rng(3)

    def draw(names: list[str]) -> Sids:
        names = sorted(names, key=hash_id)
        codes = np.array([rng.integers(0, 2, 3) for _ in names]).reshape(-1, 3)
        return Sids(id_M=Strings.of(names), hash_M=np.array([hash_id(n) for n in names], dtype=np.int64), code_ML=codes)

    old, new = draw([f"i{n}" for n in range(60)]), draw([f"i{n}" for n in range(20, 90)])
    before, after = ({item: tuple(sid) for item, sid in zip(s.id_M, s.code_ML.tolist(), strict=True)} for s in (old, new))
    expected = []
    for item in sorted(before.keys() | after.keys()):
        was, now = before.get(item), after.get(item)
        if was == now:
            continue
        change = "added" if was is None else "removed" if now is None else "moved"
        level = next((i + 1 for i in range(3) if was[i] != now[i]), None) if was and now else None
        texts = [None if sid is None else "-".join(map(str, sid)) for sid in (was, now)]
        expected.append({"item_id": item, "change": change, "level": level, "old_sid": texts[0], "new_sid": texts[1]})
    assert changes(old, new).to_pylist() == expected
    assert changes(new, new).num_rows == 0
    assert {r["change"] for r in changes(None, new).to_pylist()} == {"added"}
    assert sid_column(new.code_ML[:0]).to_pylist() == []


def test_the_sids_of_a_generation_are_those_of_its_reader(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    reader, sids = IndexReader.open(tmp_path), Sids.read(g.generation_dir(tmp_path, generation), generation)
    assert list(sids.id_M) == list(reader.bundle.items.id_N[1:])
    assert np.array_equal(sids.code_ML, reader.bundle.codes_NL[1:])
    assert [reader.item_row(item) for item in sids.id_M] == list(range(1, len(reader.bundle.items)))
    assert reader.item_row("nobody sells this") == 0 and reader.user_row("nobody") is None
    assert [reader.user_row(user) for user in reader.user_ids] == list(range(reader.manifest.users))
