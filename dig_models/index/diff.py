"""What changed between two sets of semantic IDs: items added, removed, and moved, by the first level that changed.

Shape suffixes: ``M`` items, ``L`` levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dig_models.evaluate.sid_quality import churn
from dig_models.index import generation as g

ADDED, REMOVED, MOVED = "added", "removed", "moved"


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
class Difference:
    """What changed from generation ``old`` to generation ``new``.

    Attributes:
        common: items in both.
        added, removed: items in one of them only.
        moved: items in both whose SID changed, by first changed level (from 1).
        churn: ``dig_models.evaluate.sid_quality.Churn`` as a dictionary; None if nothing can be compared.
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
    examples: list[dict[str, Any]]
    models: tuple[str, str]


def diff(root: Path, old: str, new: str, *, examples: int = 10) -> Difference:
    """Compare two generations, whichever was published first.

    Args:
        root: the index folder.
        old: id of a generation.
        new: id of another one.
        examples: changed items to name.

    Raises:
        IndexMissing: no such generation.
        IndexCorrupt: one of them cannot be read.
    """
    manifests = [g.read_manifest(root, generation) for generation in (old, new)]
    a, b = (Sids.read(g.generation_dir(root, generation), generation) for generation in (old, new))
    rows = changes(a, b)
    found = counts(rows)
    moved = churn(a.hash_M, a.code_ML, b.hash_M, b.code_ML)
    return Difference(
        old=old,
        new=new,
        common=len(a.id_M) - found[REMOVED],
        added=found[ADDED],
        removed=found[REMOVED],
        moved={int(level): n for level, n in found[MOVED].items()},
        churn=None if moved is None else moved.as_dict(),
        examples=rows.slice(0, examples).to_pylist(),
        models=(f"{manifests[0].model_name} v{manifests[0].model_version}", f"{manifests[1].model_name} v{manifests[1].model_version}"),
    )
