"""What changed between two sets of semantic IDs: items added, removed, and moved, by the first level that changed and by item field.

Shape suffixes: ``M`` items, ``L`` levels.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dig_models.evaluate.sid_quality import churn
from dig_models.features import FeatureSpec, FieldSpec
from dig_models.index import generation as g
from dig_models.quantize.align import inverse, renamed

log = logging.getLogger(__name__)
ADDED, REMOVED, MOVED = "added", "removed", "moved"
FEW = 64
SETTINGS, ITEMS = "model.json", "items.parquet"  # of the bundle, whose module loads torch
Values = Mapping[int, str]


class NoSuchField(ValueError):
    """Asked to group by what is no categorical item field."""


@dataclass(frozen=True, kw_only=True)
class Sids:
    """SIDs of a generation's items.

    Attributes:
        id_M: item ids (object), ``hash_M`` int64 item hashes, ``code_ML`` int64 codes.
    """

    id_M: NDArray[np.object_]
    hash_M: NDArray[np.int64]
    code_ML: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, generation: str) -> Sids:
        """From ``item_to_sid.parquet`` of a generation folder.

        Raises:
            IndexCorrupt: the file is missing or cannot be read.
        """
        path = folder / g.ITEM_TO_SID
        try:
            table = pq.read_table(path, partitioning=None)
            names = sorted((n for n in table.column_names if n.startswith("s_")), key=lambda n: int(n[2:]))
            return cls(
                id_M=np.array(table.column("item_id").to_pylist(), dtype=object),
                hash_M=table.column("item_hash").to_numpy().astype(np.int64),
                code_ML=np.stack([table.column(n).to_numpy().astype(np.int64) for n in names], axis=1),
            )
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise g.IndexCorrupt(
                generation, g.ITEM_TO_SID, expected="a table of items and codes", found=str(error).splitlines()[0]
            ) from None


def sid_text(code_ML: NDArray[np.integer[Any]]) -> list[str]:
    """SIDs as text, codes joined by ``-``."""
    return ["-".join(map(str, sid)) for sid in code_ML.tolist()]


def changes(old: Sids | None, new: Sids) -> pa.Table:
    """Rows of ``delta.parquet``, sorted by item id: ``item_id, change, level, old_sid, new_sid``.

    ``level`` is the first level (from 1) whose code changed, null unless the item moved; a missing SID is null.
    """
    before = {} if old is None else dict(zip(old.id_M.tolist(), sid_text(old.code_ML), strict=True))
    after = dict(zip(new.id_M.tolist(), sid_text(new.code_ML), strict=True))
    rows = []
    for item in sorted(before.keys() | after.keys()):
        was, now = before.get(item), after.get(item)
        if was != now:
            change = ADDED if was is None else REMOVED if now is None else MOVED
            rows.append((item, change, _first_change(was, now) if was and now else None, was, now))
    names = ("item_id", "change", "level", "old_sid", "new_sid")
    types = (pa.string(), pa.string(), pa.int32(), pa.string(), pa.string())
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return pa.table({n: pa.array(list(c), t) for n, c, t in zip(names, columns, types, strict=True)})


def _first_change(was: str, now: str) -> int:
    pairs = zip(was.split("-"), now.split("-"), strict=False)
    return next((level for level, (a, b) in enumerate(pairs, 1) if a != b), min(was.count("-"), now.count("-")) + 2)


def counts(delta: pa.Table) -> dict[str, Any]:
    """Number of items ``added``, ``removed`` and ``moved``, the last one by level: ``{"1": n, ...}``."""
    levels = delta.column("level").drop_null()
    moved = {str(r["values"]): r["counts"] for r in sorted(pc.value_counts(levels).to_pylist(), key=lambda r: r["values"])}
    of = {name: int(pc.sum(pc.equal(delta.column("change"), name)).as_py() or 0) for name in (ADDED, REMOVED)}
    return {**of, MOVED: moved}


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
        groups={name: _groups(root, (old, new), (a, b), rows, name, (values or {}).get(name, {})) for name in fields},
        examples=moved_first.slice(0, examples).to_pylist(),
        models=(f"{manifests[0].model_name} v{manifests[0].model_version}", f"{manifests[1].model_name} v{manifests[1].model_version}"),
    )


def postings(old: Sids, new: Sids) -> Postings:
    """What became of the lists of items behind the SIDs."""
    before, after = _lists(old), _lists(new)
    both = before.keys() & after.keys()
    return Postings(
        sids=len(before.keys() | after.keys()),
        changed=sum(before[sid] != after[sid] for sid in both),
        emptied=len(before) - len(both),
        opened=len(after) - len(both),
    )


def _lists(sids: Sids) -> dict[str, set[str]]:
    lists: dict[str, set[str]] = {}
    for item, sid in zip(sids.id_M.tolist(), sid_text(sids.code_ML), strict=True):
        lists.setdefault(sid, set()).add(item)
    return lists


def grouping_fields(root: Path, generation: str, by: Sequence[str] | None = None) -> list[FieldSpec]:
    """Categorical item fields of a generation's model: those named, or those with few values.

    Raises:
        IndexCorrupt: its model cannot be read.
        NoSuchField: a name is none of them.
    """
    try:
        settings = json.loads((g.generation_dir(root, generation) / g.MODEL / SETTINGS).read_text())
        spec = FeatureSpec.model_validate(settings["spec"])
    except (OSError, ValueError, KeyError) as error:
        raise g.IndexCorrupt(generation, g.MODEL, expected="a model bundle", found=str(error).splitlines()[0]) from None
    known = {field.name: field for field in spec.item_fields if field.kind == "categorical"}
    if by is None:
        return [field for field in known.values() if field.buckets <= FEW]
    for name in by:
        if name not in known:
            raise NoSuchField(f"{name!r} is no categorical item field of index generation {generation}; it has {', '.join(known)}")
    return [known[name] for name in by]


def _groups(root: Path, generations: tuple[str, str], sids: tuple[Sids, Sids], rows: pa.Table, field: str, values: Values) -> list[Group]:
    """Changes by bucket of a field; an item that is gone has the bucket that it had."""
    old, new = (_buckets(root, generation, field) for generation in generations)
    bucket_of = {**old, **new}
    change = dict(zip(rows.column("item_id").to_pylist(), rows.column("change").to_pylist(), strict=True))
    kinds: dict[int, Counter[str]] = {}
    for item in {*sids[0].id_M.tolist(), *sids[1].id_M.tolist()}:
        kinds.setdefault(bucket_of.get(item, 0), Counter())[change.get(item, "kept")] += 1
    groups = [
        Group(
            value=values.get(bucket, f"bucket {bucket}" if bucket else "(none)"),
            common=of["kept"] + of[MOVED],
            added=of[ADDED],
            removed=of[REMOVED],
            moved=of[MOVED],
        )
        for bucket, of in kinds.items()
    ]
    return sorted(groups, key=lambda group: (-group.moved, -group.added - group.removed, -group.common, group.value))


def _buckets(root: Path, generation: str, field: str) -> dict[str, int]:
    """Bucket of each item; empty if the generation's model has no such field."""
    path = g.generation_dir(root, generation) / g.MODEL / ITEMS
    column = FieldSpec(name=field).column
    try:
        if column not in pq.read_schema(path).names:
            return {}
        table = pq.read_table(path, columns=["item_id", column], partitioning=None)
        return dict(zip(table.column("item_id").to_pylist(), table.column(column).to_pylist(), strict=True))
    except (OSError, pa.ArrowException) as error:
        raise g.IndexCorrupt(generation, f"{g.MODEL}/{ITEMS}", expected="a table of items", found=str(error).splitlines()[0]) from None


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
    moved = churn(old.hash_M, old.code_ML, new.hash_M, renamed(new.code_ML, inverse(label_LK)))
    return None if moved is None else moved.as_dict()
