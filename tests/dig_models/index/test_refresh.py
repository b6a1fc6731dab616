"""Delta generations: new items come, withdrawn ones go, nothing else moves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import synthetic
import torch

from dig_models.affinity import Neighbours
from dig_models.bundle import RESERVED, Bundle, read_reserved
from dig_models.dig import Dig
from dig_models.features import FeatureSpec, FeatureSpecMismatch, bucket_of, hash_id
from dig_models.index import generation as g
from dig_models.index import refresh as refresh_module
from dig_models.index.encode import item_codes
from dig_models.index.reader import IndexReader
from dig_models.index.refresh import Fresh, refresh
from dig_models.index.verify import verify
from dig_models.index.writer import Release, locked, retain, superfluous, switch
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids
from dig_models.train.data import histories
from dig_models.train.warm import settle
from tests.dig_models.conftest import make_batch, pair_crosses

Publish = Callable[[Path, Release], str]
NEW, GONE = ["fresh-1", "fresh-2"], ["i3", "i7"]


def hashes(ids: list[str]) -> np.ndarray:
    return np.array([hash_id(i) for i in ids], dtype=np.int64)


def fresh(spec: FeatureSpec, new: list[str] = NEW, gone: list[str] = GONE) -> Fresh:
    return Fresh(arrived=synthetic.make_items(spec, new) if new else none(spec), withdrawn=hashes(gone))


def none(spec: FeatureSpec) -> ItemTable:
    one = synthetic.make_items(spec, ["x"])
    return ItemTable(
        hash_N=one.hash_N[:1],
        id_N=one.id_N[:1],
        name_N=one.name_N[:1],
        fields={k: v[:1] for k, v in one.fields.items()},
        numbers={k: v[:1] for k, v in one.numbers.items()},
        key_KN=one.key_KN[:, :1],
    )


def apply(root: Path, spec: FeatureSpec, change: Fresh) -> str:
    """Refresh, verify, switch."""
    with locked(root):
        generation = refresh(root, change, spec)
        verify(root, generation)
        switch(root, generation)
    return generation


def sids(reader: IndexReader) -> dict[str, tuple[int, ...]]:
    return {str(item): reader.sid(row) for row, item in enumerate(reader.bundle.items.id_N) if row}


def test_new_items_get_sids_and_withdrawn_ones_leave_and_the_others_stay(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    before = sids(IndexReader.open(tmp_path, publish(tmp_path, release)))
    delta = IndexReader.open(tmp_path, apply(tmp_path, spec, fresh(spec)))
    after = sids(delta)
    assert after.keys() - before.keys() == set(NEW)
    assert before.keys() - after.keys() == set(GONE)
    assert all(after[item] == before[item] for item in after.keys() & before.keys())
    postings = pq.read_table(delta.folder / g.SID_TO_ITEMS).column("items").to_pylist()
    listed = [item for some in postings for item in some]
    assert sorted(listed) == sorted(after)
    rows = pq.read_table(delta.folder / g.DELTA).to_pylist()
    assert {r["item_id"]: r["change"] for r in rows} == dict.fromkeys(NEW, "added") | dict.fromkeys(GONE, "removed")


def test_a_new_item_has_the_sid_that_the_encoder_would_give_it_in_a_whole_index(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    publish(tmp_path / "delta", release)
    delta = IndexReader.open(tmp_path / "delta", apply(tmp_path / "delta", spec, fresh(spec, gone=[])))
    whole = synthetic.make_items(spec, [*release.items.id_N[1:], *NEW])
    full = IndexReader.open(tmp_path / "full", publish(tmp_path / "full", replace(release, items=whole)))
    assert sids(delta) == sids(full)
    assert np.allclose(delta.retriever.embedding_ND, full.retriever.embedding_ND, atol=1e-5)


def test_a_new_item_can_be_recommended_at_once_and_a_withdrawn_one_cannot(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    publish(tmp_path, release)
    reader = IndexReader.open(tmp_path, apply(tmp_path, spec, fresh(spec)))
    every = len(reader.bundle.items) - 1
    found = reader.retriever.retrieve(reader.state, np.array([1]), k=every, beam=every, rerank=every)
    names = set(reader.bundle.items.id_N[found.item_GJ[0]])
    assert set(NEW) <= names and not names & set(GONE)


def test_histories_follow_the_items(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    old = IndexReader.open(tmp_path, publish(tmp_path, release))
    new = IndexReader.open(tmp_path, apply(tmp_path, spec, fresh(spec)))
    was = old.bundle.items.id_N[old.state.history_item]
    now = new.bundle.items.id_N[new.state.history_item]
    assert [("" if item in GONE else item) for item in was] == list(now)


def test_what_does_not_change_is_the_same_file(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    home = tmp_path / g.GENERATIONS
    base = publish(tmp_path, release)
    delta = apply(tmp_path, spec, fresh(spec))
    shared = {
        name for name in g.read_manifest(tmp_path, delta).files if (home / delta / name).stat().st_ino == (home / base / name).stat().st_ino
    }
    own = {name for name in g.read_manifest(tmp_path, base).files if name.startswith(("model/", "state/"))} - {"state/history.item.npy"}
    assert shared == own


def test_a_delta_says_what_it_was_made_from(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    base = publish(tmp_path, release)
    one = g.read_manifest(tmp_path, apply(tmp_path, spec, fresh(spec)))
    two = g.read_manifest(tmp_path, apply(tmp_path, spec, fresh(spec, [*NEW, "fresh-3"], ["i3"])))
    assert (one.base, one.previous, two.base, two.previous) == (base, base, base, one.id)
    assert (one.date, one.model_version) == (release.day, "1")
    assert two.delta == {"added": 2, "removed": 0, "moved": {}}, "fresh-3 came, and i7 came back"
    reader = IndexReader.open(tmp_path)
    assert sids(reader)["i7"] == sids(IndexReader.open(tmp_path, base))["i7"]


def test_an_item_that_was_fresh_an_hour_ago_keeps_its_sid(tmp_path: Path, release: Release, publish: Publish) -> None:
    """Even if its fields have changed meanwhile."""
    spec = release.bundle.spec
    publish(tmp_path, release)
    before = sids(IndexReader.open(tmp_path, apply(tmp_path, spec, fresh(spec))))
    other = synthetic.make_items(spec, [*NEW, "fresh-3"], seed=5)
    after = sids(IndexReader.open(tmp_path, apply(tmp_path, spec, Fresh(arrived=other, withdrawn=hashes(GONE)))))
    assert {item: after[item] for item in NEW} == {item: before[item] for item in NEW}


def test_the_same_again_changes_no_byte(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    publish(tmp_path, release)
    first = apply(tmp_path, spec, fresh(spec))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert apply(tmp_path, spec, fresh(spec)) == first
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_nothing_new_is_the_whole_generation_itself(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    base = publish(tmp_path, release)
    assert apply(tmp_path, spec, fresh(spec, [], [])) == base
    apply(tmp_path, spec, fresh(spec))
    assert apply(tmp_path, spec, fresh(spec, [], ["unknown"])) == base, "all went as it came"


def test_unknown_values_take_the_bucket_of_what_is_missing(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    publish(tmp_path, release)
    items = synthetic.make_items(spec, ["blank"])
    blank = replace(items, fields={k: np.zeros_like(v) for k, v in items.fields.items()}, key_KN=np.zeros_like(items.key_KN))
    reader = IndexReader.open(tmp_path, apply(tmp_path, spec, Fresh(arrived=blank, withdrawn=hashes([]))))
    assert min(sids(reader)["blank"]) >= 0


@pytest.fixture(scope="module")
def trained(release: Release) -> Release:
    """A model that was trained for a few steps, on items ``i0`` to ``i39`` of the catalogue and on brands below 9."""
    spec, items = release.bundle.spec, release.items
    items = replace(items, fields={**items.fields, "brand": items.fields["brand"] % 9})
    model = synthetic.make_model(spec, items, item_id_dropout=0.3).train()
    batch, rows = make_batch(spec, items, requests=40), items.rows(hashes([f"i{n}" for n in range(40)]))
    shown = torch.from_numpy(rows)[batch.item_R % 40]
    batch = replace(batch, item_R=shown, history_BH=torch.zeros_like(batch.history_BH))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    crosses = spec.cross_width
    for _ in range(5):
        optimizer.zero_grad()
        model(batch, "joint", lambda user, ts, offer, item: pair_crosses(user, ts, offer, item, crosses))["total"].backward()
        optimizer.step()
        model.update_codebooks()
    settle(model, items)
    return replace(release, items=items, bundle=Bundle(model, spec, items, model.code_NL.numpy().copy(), release.bundle.info))


def alike(spec: FeatureSpec, ids: list[str], **fields: int) -> ItemTable:
    """Items that differ in nothing but their ids, and so in the buckets of these."""
    items = synthetic.make_items(spec, ids)
    same = {name: np.repeat(value[1:2], len(ids), axis=0) for name, value in synthetic.make_items(spec, ["i1"]).fields.items()}
    same |= {name: np.full(len(ids), value) for name, value in fields.items()}
    same["item_id"] = np.array([bucket_of(str(item), 256) for item in items.id_N[1:]])
    columns = {name: np.concatenate([np.zeros_like(value[:1]), value]) for name, value in same.items()}
    return replace(items, fields=columns, numbers={k: np.r_[0, np.full(len(ids), 2.5)].astype(np.float32) for k in items.numbers})


def stored(reader: IndexReader, ids: list[str]) -> np.ndarray:
    return reader.retriever.embedding_ND[torch.from_numpy(reader.bundle.items.rows(hashes(ids)))].numpy()


def test_the_sid_of_a_new_item_does_not_depend_on_its_id(tmp_path: Path, trained: Release, publish: Publish) -> None:
    """Whether its bucket is one that nothing trained or one that another item did; and the embeddings are equal, not just their codes."""
    spec = trained.bundle.spec
    publish(tmp_path, trained)
    ids = [f"fresh-{n}" for n in range(30)]
    change = Fresh(arrived=alike(spec, ids, brand=3), withdrawn=hashes([]))
    noted = trained.bundle.model.shown.bucket_T[torch.from_numpy(change.arrived.fields["item_id"][1:])]
    assert 0 < int(noted.sum()) < len(ids)
    reader = IndexReader.open(tmp_path, apply(tmp_path, spec, change))
    assert len({sids(reader)[item] for item in ids}) == 1
    assert np.ptp(stored(reader, ids), axis=0).max() < 1e-6


def test_a_value_never_seen_in_training_is_as_good_as_a_missing_one(tmp_path: Path, trained: Release, publish: Publish) -> None:
    spec = trained.bundle.spec
    publish(tmp_path, trained)
    ids = ["known", "missing", "unseen", "unseen too"]
    parts = [alike(spec, [item], brand=brand) for item, brand in zip(ids, (3, 0, 13, 14), strict=True)]
    rows = {str(part.id_N[1]): part for part in parts}
    table = synthetic.make_items(spec, ids)
    order = [str(item) for item in table.id_N[1:]]
    merged = {
        name: np.concatenate([parts[0].fields[name][:1], *(rows[item].fields[name][1:] for item in order)]) for name in parts[0].fields
    }
    numbers = {name: np.concatenate([parts[0].numbers[name][:1], *(rows[i].numbers[name][1:] for i in order)]) for name in table.numbers}
    arrived = replace(table, fields=merged, numbers=numbers)
    reader = IndexReader.open(tmp_path, apply(tmp_path, spec, Fresh(arrived=arrived, withdrawn=hashes([]))))
    found = dict(zip(ids, stored(reader, ids), strict=True))
    assert np.allclose(found["unseen"], found["missing"], atol=1e-6) and np.allclose(found["unseen too"], found["missing"], atol=1e-6)
    assert sids(reader)["unseen"] == sids(reader)["unseen too"] == sids(reader)["missing"]
    assert not np.allclose(found["known"], found["missing"], atol=1e-3)


def test_an_item_of_the_catalogue_that_no_example_showed_does_not_depend_on_its_id_either(
    tmp_path: Path, trained: Release, publish: Publish
) -> None:
    shown = [f"i{n}" for n in range(40)]
    base = IndexReader.open(tmp_path / "a", publish(tmp_path / "a", trained))
    other = replace(trained.items, fields={**trained.items.fields, "item_id": trained.items.fields["item_id"][::-1] * 0 + 77})
    changed = IndexReader.open(tmp_path / "b", publish(tmp_path / "b", replace(trained, items=other)))
    never = [str(item) for item in trained.items.id_N[1:] if item not in shown]
    assert len(never) == 20
    assert np.allclose(stored(base, never), stored(changed, never), atol=1e-6)
    with_id = [item for item, own in zip(shown, trained.bundle.model.shown.of(hashes(shown)).tolist(), strict=True) if own]
    assert len(with_id) > 20 and not np.allclose(stored(base, with_id), stored(changed, with_id), atol=1e-3)


def test_verify_compares_the_sids_of_a_delta_with_base_and_encoder(
    tmp_path: Path, release: Release, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote other SIDs wrote trie, maps and checksums to fit."""
    spec = release.bundle.spec
    base = publish(tmp_path, release)
    told = dict(verify(tmp_path, apply(tmp_path, spec, fresh(spec))).checks)
    assert told["arrivals"] == f"{len(release.items) - 3} items with the SIDs of {base} or reserved ones, 2 new ones with the nearest codes"
    switch(tmp_path, base)

    def others(model: Dig, hash_R: np.ndarray, e_RD: torch.Tensor) -> torch.Tensor:
        return (item_codes(model, hash_R, e_RD) + 1) % model.config.codes

    with monkeypatch.context() as patch, locked(tmp_path):
        patch.setattr(refresh_module, "item_codes", others)
        wrong = refresh(tmp_path, fresh(spec), spec)
    with pytest.raises(g.IndexCorrupt, match=r"items/sid\.npy: expected for new items the codes nearest"):
        verify(tmp_path, wrong)
    write_codes = refresh_module._write_codes

    def moved(folder: Path, *more: Any) -> None:
        write_codes(folder, *more)
        sid_NL = np.load(folder / "sid.npy", mmap_mode="r+")
        sid_NL[5] = sid_NL[6] + 1 - 2 * (sid_NL[6] > 0)
        sid_NL.flush()

    with monkeypatch.context() as patch, locked(tmp_path):
        patch.setattr(refresh_module, "_write_codes", moved)
        wrong = refresh(tmp_path, fresh(spec, new=[]), spec)
    with pytest.raises(g.IndexCorrupt, match=rf"items/sid\.npy: expected the SIDs that items have in {base}"):
        verify(tmp_path, wrong)


def test_a_delta_whose_base_is_elsewhere_is_verified_without_it(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    base = publish(tmp_path, release)
    delta = apply(tmp_path, spec, fresh(spec))
    shutil.rmtree(tmp_path / g.GENERATIONS / base)
    assert dict(verify(tmp_path, delta).checks)["arrivals"].startswith(f"not compared with {base}: ")


def test_another_feature_spec_is_refused(tmp_path: Path, release: Release, publish: Publish) -> None:
    publish(tmp_path, release)
    spec = release.bundle.spec
    other = FeatureSpec.model_validate({**spec.model_dump(), "half_life_days": 3.0})
    with pytest.raises(FeatureSpecMismatch, match="index generation"):
        apply(tmp_path, other, fresh(spec))
    assert len(g.generations(tmp_path)) == 1


def test_a_bucket_that_the_spec_does_not_have_is_refused_and_nothing_is_left(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    base = publish(tmp_path, release)
    wrong = synthetic.make_items(spec, NEW)
    name = next(iter(wrong.fields))
    wrong = replace(wrong, fields={**wrong.fields, name: wrong.fields[name] + 1_000_000})
    with pytest.raises(ValueError, match=f"field '{name}': bucket"):
        apply(tmp_path, spec, Fresh(arrived=wrong, withdrawn=hashes([])))
    assert (g.generations(tmp_path), g.current(tmp_path)) == ([base], base)
    assert not (tmp_path / ".staging").exists()


def test_an_index_whose_every_item_was_withdrawn_is_refused(tmp_path: Path, release: Release, publish: Publish) -> None:
    publish(tmp_path, release)
    with pytest.raises(g.NotIndexable, match="no item would be left"):
        apply(tmp_path, release.bundle.spec, fresh(release.bundle.spec, [], list(release.items.id_N[1:])))


def test_an_index_that_was_never_published_cannot_be_refreshed(tmp_path: Path, release: Release) -> None:
    with pytest.raises(g.IndexMissing, match="no index was published yet"):
        apply(tmp_path, release.bundle.spec, fresh(release.bundle.spec))


def test_retention_counts_whole_generations_and_keeps_the_base(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    older = [publish(tmp_path, replace(release, day=release.day.replace(day=d))) for d in (1, 2)]
    base = publish(tmp_path, release)
    deltas = [apply(tmp_path, spec, fresh(spec, [f"fresh-{n}"])) for n in range(4)]
    with locked(tmp_path):
        gone = retain(tmp_path, keep=2)
    assert set(gone) == {older[0], *deltas[:2]}
    assert set(g.generations(tmp_path)) == {older[1], base, deltas[2], deltas[3]}


def test_a_delta_that_is_kept_keeps_what_it_was_made_from_and_is_refreshed_when_it_serves_again(
    tmp_path: Path, release: Release, next_release: Release, publish: Publish
) -> None:
    spec = release.bundle.spec
    base = publish(tmp_path, release)
    delta = apply(tmp_path, spec, fresh(spec))
    publish(tmp_path, next_release)
    now = publish(tmp_path, replace(next_release, model_version="3"))
    with locked(tmp_path):
        assert base not in superfluous(tmp_path, 1, also={delta}), "a rollback may go to the delta"
        assert set(superfluous(tmp_path, 1)) == {base, delta}, "which else would not be needed"
        retain(tmp_path, 1, also={delta})
        assert {base, delta, now} <= set(g.generations(tmp_path))
        switch(tmp_path, delta)
    again = apply(tmp_path, spec, fresh(spec, [*NEW, "fresh-3"]))
    assert g.read_manifest(tmp_path, again).base == base
    assert sids(IndexReader.open(tmp_path)).keys() >= {*NEW, "fresh-3"}


def test_an_item_whose_sid_was_kept_for_it_comes_back_with_it(tmp_path: Path, release: Release, publish: Publish) -> None:
    """The model knows items that the catalogue of the day lacks, and others that it was told of beside its catalogue."""
    spec = release.bundle.spec
    bundle = synthetic.make_bundle(spec, release.items)
    bundle.model.settled = True
    known = bundle.model.codes_held(release.items.hash_N[1:])
    bundle.model.code_NL[1:] = (bundle.model.code_NL[1:] + 1) % bundle.model.config.codes  # not what the encoder would give
    bundle = replace(bundle, codes_NL=bundle.model.code_NL.numpy().copy())
    told = (bundle.codes_NL[4:6] + 1) % bundle.model.config.codes
    bundle.model.reserved = KnownSids.of(hashes(NEW), told)
    today = synthetic.make_items(spec, [item for item in release.items.id_N[1:] if item not in GONE] + NEW[:1])
    first = IndexReader.open(tmp_path, publish(tmp_path, replace(release, bundle=bundle, items=today)))
    sid_of = dict(zip(release.items.id_N[1:], map(tuple, bundle.codes_NL[1:].tolist()), strict=True)) | dict(
        zip(NEW, map(tuple, told.tolist()), strict=True)
    )
    assert not np.array_equal(known.numpy(), bundle.codes_NL[1:])
    assert all(sid == sid_of[item] for item, sid in sids(first).items()), "items keep the SIDs they have"
    kept = read_reserved(first.folder / g.MODEL)
    assert set(kept.hash_X.tolist()) == set(hashes([*GONE, NEW[1]]).tolist())
    delta = IndexReader.open(tmp_path, apply(tmp_path, spec, fresh(spec, new=[*GONE, NEW[1]], gone=[])))
    assert sids(delta) == sid_of
    assert (delta.folder / g.MODEL / RESERVED).stat().st_ino == (first.folder / g.MODEL / RESERVED).stat().st_ino


def test_a_delta_generation_has_the_affinity_of_the_whole_one_and_new_items_have_none(
    tmp_path: Path, release: Release, publish: Publish, spec: FeatureSpec
) -> None:
    bundle = synthetic.make_bundle(spec, release.items, affinity={"enabled": True})
    rng, hash_N = np.random.default_rng(0), release.items.hash_N[1:]
    bundle.model.neighbours = Neighbours.fit(hash_N, rng.integers(0, 20, 400), rng.choice(hash_N, 400), ridge=1.0, keep=20)
    publish(tmp_path, replace(release, bundle=bundle))
    whole = IndexReader.open(tmp_path)
    delta = IndexReader.open(tmp_path, apply(tmp_path, spec, fresh(spec)))
    before, after = (
        dict(zip(r.bundle.items.hash_N.tolist(), r.retriever.catalogue(r.state, 2)[:, -1].tolist(), strict=True)) for r in (whole, delta)
    )
    assert max(before.values()) > 0
    kept = {h: a for h, a in after.items() if h in before}
    gone = set(hashes(GONE).tolist())
    past = set(whole.bundle.items.hash_N[histories(whole.state, np.array([2]), spec.history_length)[0][0]].tolist())
    assert not past & gone, "withdrawn items of the history would speak no more"
    assert kept == pytest.approx({h: before[h] for h in kept})
    assert [after[h] for h in hashes(NEW).tolist()] == [0.0, 0.0]
