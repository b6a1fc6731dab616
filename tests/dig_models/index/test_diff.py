"""What ``dig index diff`` says: by level, by posting list, by item field; with and without alignment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from dig_models.arrays import Strings
from dig_models.evaluate.sid_quality import churn
from dig_models.features import hash_id
from dig_models.index import generation as g
from dig_models.index.catalogue import field_file
from dig_models.index.diff import NoSuchField, Postings, Sids, diff, grouping_fields, postings, unaligned_churn
from dig_models.index.writer import Release
from dig_models.train.warm import align, rename_codes, settle

Publish = Callable[[Path, Release], str]


def sids(codes: dict[str, tuple[int, ...]]) -> Sids:
    ids = list(codes)
    return Sids(id_M=Strings.of(ids), hash_M=np.array([hash_id(item) for item in ids]), code_ML=np.array(list(codes.values())))


def test_posting_lists_that_kept_their_items_do_not_count_as_changed() -> None:
    old = sids({"a": (0, 0), "b": (0, 0), "c": (1, 0), "d": (1, 1), "e": (2, 2)})
    new = sids({"a": (0, 0), "b": (0, 0), "c": (1, 1), "d": (1, 1), "f": (2, 2), "g": (3, 3)})
    assert postings(old, new) == Postings(sids=5, changed=2, emptied=1, opened=1)  # 1-1 has c too, 2-2 has f for e
    assert postings(old, old) == Postings(sids=4, changed=0, emptied=0, opened=0)


def test_sids_of_another_length_have_no_posting_list_in_common() -> None:
    old, new = sids({"a": (0, 0), "b": (1, 0)}), sids({"a": (0, 0, 0), "b": (1, 0, 1)})
    assert postings(old, new) == Postings(sids=4, changed=0, emptied=2, opened=2)


def test_changes_are_counted_by_the_values_of_item_fields(
    tmp_path: Path, release: Release, next_release: Release, publish: Publish
) -> None:
    old, new = publish(tmp_path, release), publish(tmp_path, next_release)
    found = diff(tmp_path, old, new, values={"brand": {3: "ACME"}})
    assert list(found.groups) == ["brand"], "item_id has too many values for a table"
    was, now = (Sids.read(g.generation_dir(tmp_path, generation), generation) for generation in (old, new))
    code = {"was": dict(zip(was.id_M, map(tuple, was.code_ML.tolist()), strict=True))}
    code["now"] = dict(zip(now.id_M, map(tuple, now.code_ML.tolist()), strict=True))
    brand = dict(zip(release.items.id_N[1:], release.items.fields["brand"][1:].tolist(), strict=True))
    brand |= dict(zip(next_release.items.id_N[1:], next_release.items.fields["brand"][1:].tolist(), strict=True))
    for group in found.groups["brand"]:
        bucket = 3 if group.value == "ACME" else int(group.value.removeprefix("bucket "))
        of = {item for item, own in brand.items() if own == bucket}
        both = of & code["was"].keys() & code["now"].keys()
        assert group.common == len(both)
        assert group.moved == sum(code["was"][item] != code["now"][item] for item in both)
        assert (group.added, group.removed) == (len((of & code["now"].keys()) - both), len((of & code["was"].keys()) - both))
    for name in ("common", "added", "removed"):
        assert sum(getattr(group, name) for group in found.groups["brand"]) == getattr(found, name)
    assert sum(group.moved for group in found.groups["brand"]) == sum(found.moved.values()) > 0
    assert [group.moved for group in found.groups["brand"]] == sorted((group.moved for group in found.groups["brand"]), reverse=True)
    assert found.examples[0]["change"] == "moved", "what moved is named before what came or went"
    assert found.churn is not None and sum(found.churn["first"]) == pytest.approx(found.churn["rate"])


def test_other_fields_can_be_asked_for_and_what_is_none_is_named(tmp_path: Path, release: Release, publish: Publish) -> None:
    only = publish(tmp_path, release)
    assert list(diff(tmp_path, only, only, by=["item_id"]).groups) == ["item_id"]
    assert [field.name for field in grouping_fields(tmp_path, only)] == ["brand"]
    for wrong in ("price", "colour"):
        with pytest.raises(NoSuchField, match=f"'{wrong}' is no categorical item field.*it has item_id, brand"):
            diff(tmp_path, only, only, by=[wrong])


def test_a_generation_whose_model_cannot_be_read_is_named(tmp_path: Path, release: Release, publish: Publish) -> None:
    only = publish(tmp_path, release)
    folder = g.generation_dir(tmp_path, only)
    names = [field.name for field in release.bundle.spec.item_fields]
    brand = folder / g.ITEMS / field_file(names.index("brand"))
    brand.write_bytes(brand.read_bytes()[:-8])
    with pytest.raises(g.IndexCorrupt, match=brand.name):
        diff(tmp_path, only, only)
    (folder / g.MODEL / "model.json").write_text("{")
    with pytest.raises(g.IndexCorrupt, match="model"):
        diff(tmp_path, only, only)


def test_the_index_says_what_churn_would_be_without_alignment(tmp_path: Path, release: Release, publish: Publish) -> None:
    first = publish(tmp_path, release)
    assert unaligned_churn(tmp_path, g.read_manifest(tmp_path, first)) is None, "there was nothing before it"
    bundle = synthetic.make_bundle(release.bundle.spec, release.items)
    settle(bundle.model, bundle.items)
    old, was = bundle.model.reserved, Sids.read(g.generation_dir(tmp_path, first), first)
    assert np.array_equal(old.find(was.hash_M), was.code_ML)
    rng = np.random.default_rng(1)
    rename_codes(bundle.model, np.stack([rng.permutation(bundle.model.config.codes) for _ in range(bundle.model.config.levels)]))
    shuffled = bundle.model.reserved
    alignment = align(bundle.model, old).as_dict() | {"version": "1", "lineage": "l"}
    info = bundle.info | {"alignment": alignment}
    later = replace(release, model_version="2", bundle=replace(bundle, info=info))
    second = publish(tmp_path, later)
    manifest = g.read_manifest(tmp_path, second)
    assert manifest.churn is not None and manifest.churn["rate"] == 0.0
    expected = churn(old.hash_X, old.code_XL, shuffled.hash_X, shuffled.code_XL)
    assert expected is not None and expected.rate > 0.5
    assert unaligned_churn(tmp_path, manifest) == expected.as_dict()
