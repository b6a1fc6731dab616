"""What is written: content, determinism, delta, retention; and what is refused when read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import synthetic

from dig_models.index import generation as g
from dig_models.index.diff import diff
from dig_models.index.reader import IndexReader
from dig_models.index.verify import verify
from dig_models.index.writer import Release, build, locked, retain, switch
from dig_models.retrieve.trie import Trie

Publish = Callable[[Path, Release], str]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def reseal(root: Path, generation: str, change: Callable[[dict[str, object]], object]) -> None:
    """Change a manifest and seal it again, as somebody with bad intentions would."""
    path = root / g.GENERATIONS / generation / g.MANIFEST
    loaded = json.loads(path.read_text())
    change(loaded)
    loaded["seal"] = g.digest({k: v for k, v in loaded.items() if k != "seal"})
    path.write_text(json.dumps(loaded))


def test_every_item_is_found_in_both_directions(tmp_path: Path, release: Release, publish: Publish) -> None:
    folder = tmp_path / g.GENERATIONS / publish(tmp_path, release)
    forward = {r["item_id"]: f"{r['s_1']}-{r['s_2']}-{r['s_3']}" for r in pq.read_table(folder / g.ITEM_TO_SID).to_pylist()}
    backward = {item: r["sid"] for r in pq.read_table(folder / g.SID_TO_ITEMS).to_pylist() for item in r["items"]}
    assert forward == backward
    assert set(forward) == set(release.items.id_N[1:])


def test_sids_are_those_of_the_model_on_the_catalogue_of_the_day(tmp_path: Path, release: Release, publish: Publish) -> None:
    reader = IndexReader.open(tmp_path, publish(tmp_path, release))
    release.bundle.model.set_items(release.items)
    own_NL = release.bundle.model.codes(release.bundle.model.encode_catalogue()).numpy()
    assert np.array_equal(reader.bundle.codes_NL[1:], own_NL[1:])


def test_an_item_that_the_model_has_not_seen_gets_a_sid_and_can_be_recommended(tmp_path: Path, release: Release, publish: Publish) -> None:
    spec = release.bundle.spec
    more = synthetic.make_items(spec, [*release.items.id_N[1:], "cold"])
    reader = IndexReader.open(tmp_path, publish(tmp_path, replace(release, items=more)))
    row = reader.item_row("cold")
    allowed_N = np.zeros(len(more), dtype=bool)
    allowed_N[row] = True
    found = reader.retriever.retrieve(reader.state, np.array([1]), k=1, beam=5, rerank=1, allowed_N=allowed_N)
    assert found.item_GJ.tolist() == [[row]]


def test_the_same_content_gives_the_same_id_and_the_same_bytes(tmp_path: Path, release: Release, publish: Publish) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = publish(one, release), publish(two, release)
    assert first == second
    assert bytes_of(one) == bytes_of(two)


def test_the_order_of_the_user_state_does_not_change_the_id(tmp_path: Path, release: Release, publish: Publish) -> None:
    shuffled = replace(release, user_state=release.user_state.take([3, 0, 4, 2, 1]))
    assert publish(tmp_path / "one", release) == publish(tmp_path / "two", shuffled)


def test_publishing_again_leaves_every_byte_as_it_is(tmp_path: Path, release: Release, next_release: Release, publish: Publish) -> None:
    publish(tmp_path, release)
    publish(tmp_path, next_release)
    before = bytes_of(tmp_path)
    assert publish(tmp_path, next_release) == g.current(tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("field", ["day", "model_version", "user_state", "bundle"])
def test_other_content_gives_another_id(tmp_path: Path, release: Release, field: str) -> None:
    other = {
        "day": release.day.replace(day=1),
        "model_version": "2",
        "user_state": release.user_state.slice(1),
        "bundle": synthetic.make_bundle(release.bundle.spec, release.items, seed=4),
    }[field]
    with locked(tmp_path):
        assert build(tmp_path, release) != build(tmp_path, replace(release, **{field: other}))


def test_the_manifest_names_every_file_and_is_the_last_word(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    manifest = g.read_manifest(tmp_path, generation)
    on_disk = set(bytes_of(tmp_path / g.GENERATIONS / generation)) - {g.MANIFEST}
    assert set(manifest.files) == on_disk
    assert manifest.spec == release.bundle.spec.digest
    assert manifest.items == len(release.items) - 1
    assert manifest.id == f"{release.day}-v1-{manifest.content[:10]}"
    assert manifest.quality["levels"][0]["codes"] == release.bundle.model.config.codes


def test_the_delta_tells_items_that_came_went_and_moved(tmp_path: Path, release: Release, next_release: Release, publish: Publish) -> None:
    old = IndexReader.open(tmp_path, publish(tmp_path, release))
    new = IndexReader.open(tmp_path, publish(tmp_path, next_release))
    rows = {r["item_id"]: r for r in pq.read_table(new.folder / g.DELTA).to_pylist()}
    assert {i for i, r in rows.items() if r["change"] == "added"} == {"new-1", "new-2"}
    assert {i for i, r in rows.items() if r["change"] == "removed"} == {"i0", "i1", "i2"}
    for item in next_release.items.id_N[1:-2]:
        if not old.item_row(item) or not new.item_row(item):
            continue
        was, now = old.sid(old.item_row(item)), new.sid(new.item_row(item))
        levels = [level for level in range(3) if was[level] != now[level]]
        assert rows.get(item, {}).get("level") == (levels[0] + 1 if levels else None)
    manifest = new.manifest
    assert manifest.previous == old.manifest.id
    assert manifest.churn is not None and manifest.churn["items"] == 57
    assert sum(manifest.delta["moved"].values()) == round(manifest.churn["rate"] * 57)


def test_the_first_generation_has_only_added_items(tmp_path: Path, release: Release, publish: Publish) -> None:
    manifest = g.read_manifest(tmp_path, publish(tmp_path, release))
    assert (manifest.previous, manifest.churn) == (None, None)
    assert manifest.delta == {"added": 60, "removed": 0, "moved": {}}


def test_diff_agrees_with_the_delta_in_both_directions(tmp_path: Path, release: Release, next_release: Release, publish: Publish) -> None:
    a, b = publish(tmp_path, release), publish(tmp_path, next_release)
    there, back = diff(tmp_path, a, b), diff(tmp_path, b, a)
    assert (there.added, there.removed, there.common) == (2, 3, 57)
    assert (back.added, back.removed, back.common) == (3, 2, 57)
    assert {str(k): n for k, n in there.moved.items()} == g.read_manifest(tmp_path, b).delta["moved"]
    assert there.moved == back.moved
    assert diff(tmp_path, a, a).moved == {}


def test_retention_keeps_the_newest_the_current_and_the_one_before_it(tmp_path: Path, release: Release, publish: Publish) -> None:
    ids = [publish(tmp_path, replace(release, day=release.day.replace(day=d))) for d in (1, 2, 3, 4, 5)]
    switch(tmp_path, ids[1])  # rolled back: its predecessor is ids[0]
    with locked(tmp_path):
        assert retain(tmp_path, keep=1) == ids[2:4]
    assert g.generations(tmp_path) == [ids[0], ids[1], ids[4]]
    assert IndexReader.open(tmp_path).manifest.id == ids[1]


def test_rolling_back_is_the_same_switch(tmp_path: Path, release: Release, next_release: Release, publish: Publish) -> None:
    first, second = publish(tmp_path, release), publish(tmp_path, next_release)
    assert g.current(tmp_path) == second
    switch(tmp_path, first)
    assert verify(tmp_path).generation == first


def test_switching_to_what_is_not_there_is_refused(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    with pytest.raises(g.IndexMissing, match=f"no generation 2017-01-01-v1-0123456789; generations there: {generation}"):
        switch(tmp_path, "2017-01-01-v1-0123456789")
    with pytest.raises(g.IndexMissing, match="no index generation id"):
        switch(tmp_path, "../../etc")
    assert g.current(tmp_path) == generation


def test_a_reader_keeps_its_generation_across_a_switch(tmp_path: Path, release: Release, next_release: Release, publish: Publish) -> None:
    first = publish(tmp_path, release)
    reader = IndexReader.open(tmp_path)
    publish(tmp_path, next_release)
    assert reader.manifest.id == first
    assert (reader.retriever.retrieve(reader.state, np.array([1]), k=5, beam=5, rerank=5).item_GJ > 0).all()


def test_an_index_that_was_never_published_says_so(tmp_path: Path) -> None:
    with pytest.raises(g.IndexMissing, match="no index was published yet"):
        IndexReader.open(tmp_path)


def test_an_empty_catalogue_is_refused(tmp_path: Path, release: Release) -> None:
    empty = synthetic.make_items(release.bundle.spec, ["only"])
    nothing = replace(
        empty,
        hash_N=empty.hash_N[:1],
        id_N=empty.id_N[:1],
        name_N=empty.name_N[:1],
        fields={k: v[:1] for k, v in empty.fields.items()},
        numbers={k: v[:1] for k, v in empty.numbers.items()},
        key_KN=empty.key_KN[:, :1],
    )
    with pytest.raises(g.NotIndexable, match="the catalogue has no items"), locked(tmp_path):
        build(tmp_path, replace(release, items=nothing))


def test_a_model_without_codebooks_is_refused(tmp_path: Path, release: Release) -> None:
    bundle = synthetic.make_bundle(release.bundle.spec, release.items)
    bundle.model.quantizer.built.fill_(False)
    with pytest.raises(g.NotIndexable, match="dig version 1 has no codebooks"), locked(tmp_path):
        build(tmp_path, replace(release, bundle=bundle))
    assert g.generations(tmp_path) == []


def test_a_day_without_users_is_published_and_answers_strangers(tmp_path: Path, release: Release, publish: Publish) -> None:
    reader = IndexReader.open(tmp_path, publish(tmp_path, replace(release, user_state=release.user_state.slice(0, 0))))
    assert len(reader.user_ids) == 0 and reader.manifest.users == 0
    found = reader.retriever.retrieve(reader.stranger("x"), np.array([0]), k=5, beam=5, rerank=5)
    assert (found.item_GJ > 0).all()


def test_a_frozen_tree_keeps_the_sids_of_known_items_and_gives_new_ones_a_sid(tmp_path: Path, release: Release, publish: Publish) -> None:
    bundle = synthetic.make_bundle(release.bundle.spec, release.items, assignment="frozen_tree")
    known = {str(i): tuple(c) for i, c in zip(release.items.id_N[1:], bundle.codes_NL[1:].tolist(), strict=True)}
    more = synthetic.make_items(release.bundle.spec, [*release.items.id_N[1:], "cold"])
    reader = IndexReader.open(tmp_path, publish(tmp_path, replace(release, bundle=bundle, items=more)))
    assert {i: reader.sid(reader.item_row(i)) for i in known} == known
    assert min(reader.sid(reader.item_row("cold"))) >= 0


# ---- bad files -------------------------------------------------------------------------------------------------------


def files_of(root: Path) -> list[str]:
    return sorted(g.read_manifest(root, g.require_current(root)).files)


CASES = ["item_to_sid.parquet", "sid_to_items.parquet", "trie/order.npy", "nodes/level2.npy", "model/model.safetensors"]
CASES += [
    "model/model.json",
    "items/sid.npy",
    "items/id.bytes.npy",
    "items/embedding.npy",
    "state/history.item.npy",
    "state/user.start.npy",
]
CASES += ["state/cross_arrays/meta.json", "delta.parquet"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_corrupt_file_is_named_and_current_stays(tmp_path: Path, release: Release, publish: Publish, name: str, damage: str) -> None:
    generation = publish(tmp_path, release)
    path = tmp_path / g.GENERATIONS / generation / name
    whole = path.read_bytes()
    path.unlink()  # a hard link to the lake must not be written through
    if damage == "flip":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif damage == "truncate":
        path.write_bytes(whole[:-1])
    expected = {"flip": "sha256", "truncate": f"{len(whole)} bytes, found {len(whole) - 1} bytes", "remove": "found nothing"}[damage]
    with pytest.raises(g.IndexCorrupt, match=f"{generation}, file {name}: expected .*{expected}"):
        verify(tmp_path)
    if damage != "flip":  # which only reading every byte can find
        with pytest.raises(g.IndexCorrupt, match=f"{generation}, file {name}: expected .*{expected}"):
            IndexReader.open(tmp_path)
    assert g.current(tmp_path) == generation


def test_a_damaged_generation_is_replaced_by_publishing_again(
    tmp_path: Path, release: Release, next_release: Release, publish: Publish
) -> None:
    publish(tmp_path, release)
    generation = publish(tmp_path, next_release)
    before = bytes_of(tmp_path)
    (tmp_path / g.GENERATIONS / generation / g.ITEM_TO_SID).write_bytes(b"PAR1")
    assert publish(tmp_path, next_release) == generation
    assert bytes_of(tmp_path) == before


def test_a_damaged_current_does_not_keep_the_next_from_being_published(
    tmp_path: Path, release: Release, next_release: Release, publish: Publish
) -> None:
    first = publish(tmp_path, release)
    (tmp_path / g.GENERATIONS / first / "items" / "sid.npy").write_bytes(b"x")
    second = publish(tmp_path, next_release)
    manifest = g.read_manifest(tmp_path, second)
    assert (manifest.previous, manifest.churn, manifest.delta["added"]) == (first, None, 59)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "trie/../../x", "a\\..\\b", "./x", ""])
def test_a_manifest_whose_path_leaves_the_folder_is_refused(tmp_path: Path, release: Release, publish: Publish, path: str) -> None:
    generation = publish(tmp_path, release)
    reseal(tmp_path, generation, lambda m: m["files"].update({path: {"sha256": "0" * 64, "size": 1}}))  # type: ignore[attr-defined]
    with pytest.raises(g.IndexCorrupt, match="leaves the generation folder"):
        IndexReader.open(tmp_path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    path = tmp_path / g.GENERATIONS / generation / g.ITEM_TO_SID
    outside = tmp_path / "outside.parquet"
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(g.IndexCorrupt, match="expected a file inside the generation folder, found a link"):
        IndexReader.open(tmp_path)


def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    (tmp_path / g.GENERATIONS / generation / "trie" / "more.npy").write_bytes(b"x")
    with pytest.raises(g.IndexCorrupt, match=r"trie/more\.npy: expected only files that the manifest lists"):
        IndexReader.open(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "expected a manifest of format 2, found JSON"),
        (lambda text: text.replace('"items": 60', '"items": 61'), "expected seal"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "format 2, found format"),
        (lambda text: text.replace('"model_name"', '"model_nom"'), "model_name: Field required"),
        (lambda text: text.replace('"id": "2017', '"id": "2016'), "expected id 2017"),
    ],
)
def test_a_corrupt_manifest_is_named(
    tmp_path: Path, release: Release, publish: Publish, damage: Callable[[str], str], message: str
) -> None:
    generation = publish(tmp_path, release)
    path = tmp_path / g.GENERATIONS / generation / g.MANIFEST
    assert damage(path.read_text()) != path.read_text()
    path.write_text(damage(path.read_text()))
    with pytest.raises(g.IndexCorrupt, match=f"{generation}, file manifest.json: .*{message}"):
        IndexReader.open(tmp_path)


NO_DAY = ["2017-99-99-v1-0123456789", "2017-02-29-v1-0123456789", "0000-01-01-v1-0123456789", "٢٠١٧-٠٣-٢٠-v1-0123456789"]


@pytest.mark.parametrize("name", NO_DAY)
def test_an_id_that_names_no_day_is_no_id(tmp_path: Path, release: Release, publish: Publish, name: str) -> None:
    generation = publish(tmp_path, release)
    shutil.copytree(tmp_path / g.GENERATIONS / generation, tmp_path / g.GENERATIONS / name)
    assert g.generations(tmp_path) == [generation]
    for ask in (g.id_date, g.id_version, lambda one: IndexReader.open(tmp_path, one), lambda one: switch(tmp_path, one)):
        with pytest.raises(g.IndexMissing, match="no index generation id"):
            ask(name)
    reseal(tmp_path, generation, lambda m: m.update(id=name))
    with pytest.raises(g.IndexCorrupt, match=r"manifest\.json: .*found id: .*no generation id"):
        IndexReader.open(tmp_path)


@pytest.mark.parametrize("text", ["", "../x", "2017-03-20-v1-xyz", "\x00\xff", *NO_DAY])
def test_a_corrupt_current_is_named(tmp_path: Path, release: Release, publish: Publish, text: str) -> None:
    publish(tmp_path, release)
    (tmp_path / g.CURRENT).write_text(text)
    with pytest.raises(g.IndexCorrupt, match="CURRENT: expected a generation id"):
        IndexReader.open(tmp_path)


def test_verify_finds_content_that_the_id_does_not_stand_for(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    reseal(tmp_path, generation, lambda m: m.update(model_version="7"))
    with pytest.raises(g.IndexCorrupt, match=r"manifest\.json: expected id .*-v7-"):
        verify(tmp_path)


def test_verify_finds_a_trie_of_other_items(tmp_path: Path, release: Release, publish: Publish) -> None:
    """Right checksums are not enough: the parts must belong together."""
    generation = publish(tmp_path, release)
    folder = tmp_path / g.GENERATIONS / generation
    codes_NL = IndexReader.open(tmp_path).bundle.codes_NL[np.r_[0, 2, 1, 3 : len(release.items)]]
    other = Trie.build(codes_NL)
    for path in (folder / g.TRIE).iterdir():
        path.unlink()
    other.save(folder / g.TRIE)

    def update(manifest: dict[str, object]) -> None:
        manifest["files"] = {n: g.file_entry(p).model_dump() for n, p in g.files_under(folder).items()}

    def fits(manifest: dict[str, object]) -> None:
        update(manifest)
        entries = {n: g.FileEntry.model_validate(e) for n, e in manifest["files"].items()}  # type: ignore[attr-defined]
        manifest["content"] = g.content_of(entries, release.day, "dig", "1", str(manifest["codebook"]))
        manifest["id"] = g.generation_id(release.day, "1", str(manifest["content"]))

    reseal(tmp_path, generation, fits)
    forged = str(json.loads((folder / g.MANIFEST).read_text())["id"])
    folder.rename(folder.with_name(forged))
    switch(tmp_path, forged)
    IndexReader.open(tmp_path)
    with pytest.raises(g.IndexCorrupt, match=r"trie"):
        verify(tmp_path)
