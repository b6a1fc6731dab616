"""What changed between two sets of semantic IDs: items added, removed, and moved, by the first level that changed and by item field.

Shape suffixes: ``M`` items, ``L`` levels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dig_models.arrays import ArrayError, Strings, open_npy
from dig_models.evaluate.sid_quality import churn, sid_keys
from dig_models.features import FeatureSpec, FieldSpec
from dig_models.index import generation as g
from dig_models.index.catalogue import HASH, IDS, SID, field_file
from dig_models.index.maps import ROW_GROUP, sid_column
from dig_models.quantize.align import inverse, renamed

log = logging.getLogger(__name__)
ADDED, REMOVED, MOVED = "added", "removed", "moved"
FEW = 64
SETTINGS = "model.json"  # of the model, whose module loads torch
Values = Mapping[int, str]


class NoSuchField(ValueError):
    """Asked to group by what is no categorical item field."""


@dataclass(frozen=True, kw_only=True)
class Sids:
    """SIDs of a generation's items.

    Attributes:
        id_M: item ids, ``hash_M`` int64 item hashes, ``code_ML`` codes.
    """

    id_M: Strings
    hash_M: NDArray[np.int64]
    code_ML: NDArray[np.signedinteger[Any]]

    @classmethod
    def read(cls, folder: Path, generation: str) -> Sids:
        """Those of a generation folder, mapped.

        Raises:
            IndexCorrupt: an array is missing or cannot be read.
        """
        items = folder / g.ITEMS
        try:
            hash_N = open_npy(items / HASH, np.int64, (None,))
            sid_NL = open_npy(items / SID, np.int32, (len(hash_N), None))
            return cls(id_M=Strings.open(items, IDS, len(hash_N)).after(1), hash_M=hash_N[1:], code_ML=sid_NL[1:])
        except ArrayError as error:
            raise g.IndexCorrupt(generation, g.ITEMS, expected="ids, hashes and SIDs of the items", found=str(error)) from None


def sid_text(code_ML: NDArray[np.integer[Any]]) -> list[str]:
    """SIDs as text, codes joined by ``-``."""
    return ["-".join(map(str, sid)) for sid in code_ML.tolist()]


def changes(old: Sids | None, new: Sids) -> pa.Table:
    """Rows of ``delta.parquet``, sorted by item id: ``item_id, change, level, old_sid, new_sid``.

    ``level`` is the first level (from 1) whose code changed, null unless the item moved; a missing SID is null.
    """
    return pa.concat_tables(change_groups(old, new))


def change_groups(old: Sids | None, new: Sids, rows: int = ROW_GROUP) -> Iterator[pa.Table]:
    """``changes`` in groups of so many rows, at least one, which may be empty; only numbers of all changed items are held at once."""
    old = old or Sids(id_M=Strings.of([]), hash_M=new.hash_M[:0], code_ML=new.code_ML[:0])
    was_C, now_C = _common(old, new)
    level_C = _first_changes(old.code_ML[was_C], new.code_ML[now_C])
    moved = level_C > 0
    gone, came = _others(len(old.hash_M), was_C), _others(len(new.hash_M), now_C)
    was_X = np.concatenate([was_C[moved], gone, np.full(len(came), -1)])
    now_X = np.concatenate([now_C[moved], np.full(len(gone), -1), came])
    level_X = np.concatenate([level_C[moved], np.zeros(len(gone) + len(came), dtype=np.int64)])
    ids = pa.chunked_array([new.id_M.take(now_C[moved]).to_arrow(), old.id_M.take(gone).to_arrow(), new.id_M.take(came).to_arrow()])
    order = pc.sort_indices(ids).to_numpy()
    for at in range(0, max(len(order), 1), rows):
        part = order[at : at + rows]
        was, now, level = was_X[part], now_X[part], level_X[part]
        change = np.where(was < 0, ADDED, np.where(now < 0, REMOVED, MOVED))
        yield pa.table(
            {
                "item_id": ids.take(pa.array(part)).combine_chunks().cast(pa.string()),
                "change": pa.array(change.tolist(), pa.string()),
                "level": pa.array(level, pa.int32(), mask=level == 0),
                "old_sid": _sids(old.code_ML, was),
                "new_sid": _sids(new.code_ML, now),
            }
        )


def _others(count: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    left = np.ones(count, dtype=bool)
    left[rows] = False
    return np.flatnonzero(left)


def _sids(code_ML: NDArray[np.signedinteger[Any]], row_X: NDArray[np.int64]) -> pa.Array:
    """SIDs of some rows as text; null for row -1."""
    text = sid_column(code_ML[np.maximum(row_X, 0)]) if len(code_ML) else pa.nulls(len(row_X), pa.string())
    return pc.if_else(pa.array(row_X >= 0), text, pa.scalar(None, pa.string()))


def _first_changes(was_CL: NDArray[np.signedinteger[Any]], now_CL: NDArray[np.signedinteger[Any]]) -> NDArray[np.int64]:
    """First level (from 1) whose code differs, 0 if none does; SIDs of another length differ from the first level that one lacks."""
    shared = min(was_CL.shape[1], now_CL.shape[1])
    differs_CL = was_CL[:, :shared] != now_CL[:, :shared]
    otherwise = 0 if was_CL.shape[1] == now_CL.shape[1] else shared + 1
    return np.where(differs_CL.any(axis=1), differs_CL.argmax(axis=1) + 1, otherwise)


def counts(delta: pa.Table) -> dict[str, Any]:
    """Number of items ``added``, ``removed`` and ``moved``, the last one by level: ``{"1": n, ...}``."""
    levels = delta.column("level").drop_null()
    moved = {str(r["values"]): r["counts"] for r in sorted(pc.value_counts(levels).to_pylist(), key=lambda r: r["values"])}
    of = {name: int(pc.sum(pc.equal(delta.column("change"), name)).as_py() or 0) for name in (ADDED, REMOVED)}
    return {**of, MOVED: moved}


def total(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``counts`` of a whole from those of its parts."""
    levels = sorted({level for part in parts for level in part[MOVED]}, key=int)
    return {name: sum(part[name] for part in parts) for name in (ADDED, REMOVED)} | {
        MOVED: {level: sum(part[MOVED].get(level, 0) for part in parts) for level in levels}
    }


@dataclass(frozen=True, kw_only=True)
class Postings:
    """SIDs by what became of their list of items.

    Attributes:
        sids: SIDs of either generation.
        changed: in both, with other items.
        emptied: in the old one only.
        opened: in the new one only.
    """

    sids: int
    changed: int
    emptied: int
    opened: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """What changed among the items that share a value of a field.

    Attributes:
        value: in words, or ``bucket n`` where the words are not known; ``(none)`` for items without a value.
        common: items in both generations; ``added``, ``removed`` in one only; ``moved`` in both with another SID.
    """

    value: str
    common: int
    added: int
    removed: int
    moved: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changed from generation ``old`` to generation ``new``.

    Attributes:
        common: items in both.
        added, removed: items in one of them only.
        moved: items in both whose SID changed, by first changed level (from 1).
        churn: ``dig_models.evaluate.sid_quality.Churn`` as a dictionary; None if nothing can be compared.
        postings: SIDs whose list of items changed.
        groups: by field, the values that its items have, most moved first.
        examples: some changed rows ``(item_id, change, level, old_sid, new_sid)``.
        models: name and version of the model of each.
    """

    old: str
    new: str
    common: int
    added: int
    removed: int
    moved: dict[int, int]
    churn: dict[str, Any] | None
    postings: Postings
    groups: dict[str, list[Group]]
    examples: list[dict[str, Any]]
    models: tuple[str, str]


def diff(
    root: Path, old: str, new: str, *, examples: int = 10, by: Sequence[str] | None = None, values: Mapping[str, Values] | None = None
) -> Difference:
    """Compare two generations, whichever was published first.

    Args:
        root: the index folder.
        old: id of a generation.
        new: id of another one.
        examples: changed items to name, moved ones first.
        by: categorical item fields to group by; by default those with at most ``FEW`` buckets, which fit a table.
        values: by field, what its buckets stand for.

    Raises:
        IndexMissing: no such generation.
        IndexCorrupt: one of them cannot be read.
        NoSuchField: ``by`` names what is no categorical item field of the new generation.
    """
    manifests = [g.read_manifest(root, generation) for generation in (old, new)]
    a, b = (Sids.read(g.generation_dir(root, generation), generation) for generation in (old, new))
    rows = changes(a, b)
    found = counts(rows)
    moved = churn(a.hash_M, a.code_ML, b.hash_M, b.code_ML)
    fields = [field.name for field in grouping_fields(root, new, by)]
    moved_first = rows.take(pc.sort_indices(pc.not_equal(rows.column("change"), MOVED).cast(pa.int8())))
    return Difference(
        old=old,
        new=new,
        common=len(a.id_M) - found[REMOVED],
        added=found[ADDED],
        removed=found[REMOVED],
        moved={int(level): n for level, n in found[MOVED].items()},
        churn=None if moved is None else moved.as_dict(),
        postings=postings(a, b),
        groups={name: _groups(root, (old, new), (a, b), name, (values or {}).get(name, {})) for name in fields},
        examples=moved_first.slice(0, examples).to_pylist(),
        models=(f"{manifests[0].model_name} v{manifests[0].model_version}", f"{manifests[1].model_name} v{manifests[1].model_version}"),
    )


def postings(old: Sids, new: Sids) -> Postings:
    """What became of the lists of items behind the SIDs: a list is another one if an item came, went, or moved from it or to it."""
    was_M, now_M = _numbered(old.code_ML, new.code_ML)
    was_C, now_C = _common(old, new)
    stays_C = was_M[was_C] == now_M[now_C]
    touched = np.concatenate([np.delete(was_M, was_C[stays_C]), np.delete(now_M, now_C[stays_C])])
    before, after = np.unique(was_M), np.unique(now_M)
    both = np.intersect1d(before, after, assume_unique=True)
    return Postings(
        sids=len(before) + len(after) - len(both),
        changed=len(np.intersect1d(both, touched)),
        emptied=len(before) - len(both),
        opened=len(after) - len(both),
    )


def _numbered(*codes: NDArray[np.signedinteger[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """SIDs of two generations as numbers that are equal where the SIDs are."""
    width = max(code_ML.shape[1] for code_ML in codes)
    padded = [np.pad(code_ML, ((0, 0), (0, width - code_ML.shape[1])), constant_values=-1) for code_ML in codes]
    number_X = sid_keys(np.concatenate(padded))
    return number_X[: len(codes[0])], number_X[len(codes[0]) :]


def _common(old: Sids, new: Sids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the items that both have."""
    _, was_C, now_C = np.intersect1d(old.hash_M, new.hash_M, assume_unique=True, return_indices=True)
    return was_C, now_C


def grouping_fields(root: Path, generation: str, by: Sequence[str] | None = None) -> list[FieldSpec]:
    """Categorical item fields of a generation's model: those named, or those with few values.

    Raises:
        IndexCorrupt: its model's settings cannot be read.
        NoSuchField: a name is none of them.
    """
    spec = _spec(root, generation)
    known = {field.name: field for field in spec.item_fields if field.kind == "categorical"}
    if by is None:
        return [field for field in known.values() if field.buckets <= FEW]
    for name in by:
        if name not in known:
            raise NoSuchField(f"{name!r} is no categorical item field of index generation {generation}; it has {', '.join(known)}")
    return [known[name] for name in by]


def _spec(root: Path, generation: str) -> FeatureSpec:
    folder = g.generation_dir(root, generation)
    try:
        settings = json.loads((folder / g.MODEL / SETTINGS).read_text())
        return FeatureSpec.model_validate(settings["spec"])
    except (OSError, ValueError, KeyError) as error:
        raise g.IndexCorrupt(generation, f"{g.MODEL}/{SETTINGS}", expected="settings", found=str(error).splitlines()[0]) from None


def _groups(root: Path, generations: tuple[str, str], sids: tuple[Sids, Sids], field: str, values: Values) -> list[Group]:
    """Changes by bucket of a field; an item that is gone has the bucket that it had."""
    old, new = sids
    was_M, now_M = (_buckets(root, generation, field, len(s.hash_M)) for generation, s in zip(generations, sids, strict=True))
    was_C, now_C = _common(old, new)
    moved_C = _first_changes(old.code_ML[was_C], new.code_ML[now_C]) > 0
    buckets = 1 + max(int(was_M.max(initial=0)), int(now_M.max(initial=0)))
    kept, moved, added, removed = (
        np.bincount(bucket_X, minlength=buckets)
        for bucket_X in (now_M[now_C[~moved_C]], now_M[now_C[moved_C]], np.delete(now_M, now_C), np.delete(was_M, was_C))
    )
    groups = [
        Group(
            value=values.get(bucket, f"bucket {bucket}" if bucket else "(none)"),
            common=int(kept[bucket] + moved[bucket]),
            added=int(added[bucket]),
            removed=int(removed[bucket]),
            moved=int(moved[bucket]),
        )
        for bucket in np.flatnonzero(kept + moved + added + removed).tolist()
    ]
    return sorted(groups, key=lambda group: (-group.moved, -group.added - group.removed, -group.common, group.value))


def _buckets(root: Path, generation: str, field: str, items: int) -> NDArray[np.int32]:
    """Bucket of each item in the order of its row; 0 if the generation's model has no such field."""
    names = [f.name if f.kind == "categorical" else "" for f in _spec(root, generation).item_fields]
    if field not in names:
        return np.zeros(items, dtype=np.int32)
    path = g.generation_dir(root, generation) / g.ITEMS / field_file(names.index(field))
    try:
        return open_npy(path, np.int32, (items + 1,))[1:]
    except ArrayError as error:
        raise g.IndexCorrupt(generation, f"{g.ITEMS}/{path.name}", expected=f"field {field} of the items", found=str(error)) from None


def unaligned_churn(root: Path, manifest: g.Manifest) -> dict[str, Any] | None:
    """``manifest.churn`` as it would be if the model's codes had kept the names that training gave them.

    None if they were not aligned, or if there is nothing to compare with, or it can no longer be read.
    """
    if manifest.churn is None or manifest.previous is None:
        return None
    settings = json.loads((g.generation_dir(root, manifest.id) / g.MODEL / SETTINGS).read_text())
    alignment = settings["info"].get("alignment")
    if not alignment:
        return None
    try:
        old = Sids.read(g.generation_dir(root, manifest.previous), manifest.previous)
    except (g.IndexMissing, g.IndexCorrupt) as error:
        log.warning("no comparison without alignment: %s", error)
        return None
    new = Sids.read(g.generation_dir(root, manifest.id), manifest.id)
    label_LK = np.array(alignment["labels"], dtype=np.int64)
    moved = churn(old.hash_M, old.code_ML, new.hash_M, renamed(new.code_ML.astype(np.int64), inverse(label_LK)))
    return None if moved is None else moved.as_dict()
