"""Data sets of ``benchmarks.tokenizers``, read in place: item table, sequences and text vectors. Of them only the vectors are written.

A data set is a folder with two files:

- ``interactions.tsv``: tab-separated with a header; ``user_id``, ``item_id``, ``pos`` (order within the user) and, where times are known,
  ``elapsed_seconds`` since the user's first event;
- ``items.jsonl``: an item a line; ``item_id``, ``text`` or ``title``, and ``attr_names`` (brand, then a category path) or ``categories``
  (a set).

Ids are names: they are hashed, and no order follows from them.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``M = N - 1`` items, ``P`` events, ``D`` width.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dig_models.features import SECONDS_PER_DAY, FeatureSpec, FieldSpec, bucket_of, hash_id
from dig_models.items import UNKNOWN, ItemTable
from dig_models.tokenizers.content import Floats
from dig_models.tokenizers.sentences import sentence_vectors
from dig_models.tokenizers.sequences import Sequences

Order = Literal["published", "shuffled"]
Ints = NDArray[np.int64]
PATH_LEVELS = 3
NO_BRAND = "unknown"
OFTEN = 10
"""Items in which a name stands second before it counts as a category where it stands first; brands stand first alone."""
LAYOUT = (
    "expected is PATH/<data set>/interactions.tsv (user_id, item_id, pos[, elapsed_seconds]) and PATH/<data set>/items.jsonl "
    "(item_id, text or title, attr_names or categories); a data set may lie deeper, as in PATH/amazon2014/beauty"
)


class DataError(ValueError):
    """The data folder does not hold what is expected; the message says what was found and which layout is."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A catalogue and what users did, in the published order.

    Attributes:
        name: of its folder.
        items: the catalogue.
        spec: its fields.
        text_M: what is said of items ``1..N-1``.
        user_P: users by number, each user's events together.
        item_P: item rows.
        day_P: days since the user's first event; None where only the order is known.
    """

    name: str
    items: ItemTable
    spec: FeatureSpec
    text_M: tuple[str, ...]
    user_P: Ints
    item_P: Ints
    day_P: Ints | None

    def sequences(self, order: Order, seed: int) -> Sequences:
        """All events, in the published order or with those of one user and day shuffled.

        Raises:
            DataError: shuffled is asked for where no times are known.
        """
        if order == "published":
            return Sequences.of(self.user_P, self.item_P)
        if self.day_P is None:
            raise DataError(
                f"{self.name}: has an order but no times, so there are no ties to shuffle; only the published order can be judged"
            )
        drawn_P = np.random.default_rng(seed).random(len(self.user_P))
        order_P = np.lexsort((drawn_P, self.day_P, self.user_P))
        return Sequences.of(self.user_P[order_P], self.item_P[order_P])

    @cached_property
    def digest(self) -> str:
        """Of everything that was read."""
        found = hashlib.sha256("\0".join(self.text_M).encode())
        arrays = [self.items.hash_N, *self.items.fields.values(), self.user_P, self.item_P, *([] if self.day_P is None else [self.day_P])]
        for array in arrays:
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def tied(self) -> float | None:
        """Share of users whose last event has the day of the one before it; None where no times are known."""
        if self.day_P is None:
            return None
        last_U = np.flatnonzero(np.diff(self.user_P, append=-1) != 0)
        return float((self.day_P[last_U] == self.day_P[last_U - 1]).mean())


def folder_of(data: Path, name: str) -> Path:
    """Folder of a data set below ``data``, at any depth.

    Raises:
        DataError: there is none, or more than one.
    """
    if not data.is_dir():
        raise DataError(f"--data {data}: no such folder; {LAYOUT}")
    found = sorted(path.parent for path in data.rglob("interactions.tsv") if path.parent.name == name)
    if len(found) != 1:
        there = sorted({path.parent.name for path in data.rglob("interactions.tsv")})
        raise DataError(f"--data {data}: {len(found)} data sets {name!r} found beside {', '.join(there) or 'no other'}; {LAYOUT}")
    return found[0]


def read(data: Path, name: str) -> DataSet:
    """Read a data set.

    Raises:
        DataError: a file is missing, or lacks a column, or interactions name an item that is not described.
    """
    folder = folder_of(data, name)
    described = _described(folder / "items.jsonl")
    events = _events(folder / "interactions.tsv")
    items, spec, text_M = _catalogue(described)
    item_P = items.rows(np.array([hash_id(item) for item in events["item_id"]], dtype=np.int64))
    unknown = np.flatnonzero(item_P == 0)
    if len(unknown):
        first = events["item_id"].iloc[unknown[0]]
        raise DataError(f"{folder}: {len(unknown)} events of interactions.tsv are of items that items.jsonl lacks, the first of {first!r}")
    user_P, _ = pd.factorize(events["user_id"])
    day_P = events["elapsed_seconds"].to_numpy(np.int64) // SECONDS_PER_DAY if "elapsed_seconds" in events else None
    return DataSet(name=name, items=items, spec=spec, text_M=text_M, user_P=user_P.astype(np.int64), item_P=item_P, day_P=day_P)


def _events(path: Path) -> pd.DataFrame:
    """Events by user and place."""
    events = pd.read_csv(path, sep="\t", dtype={"user_id": str, "item_id": str})
    missing = {"user_id", "item_id", "pos"} - set(events.columns)
    if missing:
        raise DataError(f"{path}: columns {', '.join(sorted(missing))} are missing, found {', '.join(events.columns)}; {LAYOUT}")
    return events.sort_values(["user_id", "pos"], kind="stable", ignore_index=True)


def _described(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: not found; {LAYOUT}")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong = [at for at, row in enumerate(rows) if "item_id" not in row or not ({"text", "title"} & set(row))]
    if wrong or not rows:
        raise DataError(f"{path}: line {wrong[0] + 1 if wrong else 1} lacks item_id, or both text and title; {LAYOUT}")
    return rows


def _catalogue(rows: list[dict[str, Any]]) -> tuple[ItemTable, FeatureSpec, tuple[str, ...]]:
    """Item table, its fields, and the text of each item in order of the table."""
    rows = sorted(rows, key=lambda row: hash_id(str(row["item_id"])))
    ids = [str(row["item_id"]) for row in rows]
    names, brands, paths = _attributes(rows)
    said = [str(row.get("text") or row.get("title") or "") for row in rows]
    tagged = not _ordered(rows)
    spec = _spec(attributes=tagged)
    bucket = {field.name: field.buckets for field in spec.item_fields}
    columns: dict[str, list[list[str]]] = {
        "item_id": [[one] for one in ids],
        "brand": [[brand] for brand in brands],
        **{f"category_{level + 1}": [path[level : level + 1] for path in paths] for level in range(PATH_LEVELS)},
        **({"attributes": names} if tagged else {}),
        "words": [text.lower().split() for text in said],
    }
    wide = {"attributes", "words"}
    fields = {name: _buckets(values, bucket[name], name in wide) for name, values in columns.items()}
    items = ItemTable(
        hash_N=np.array([np.iinfo(np.int64).min, *(hash_id(one) for one in ids)], dtype=np.int64),
        id_N=np.array(["", *ids], dtype=object),
        name_N=np.array([UNKNOWN, *said], dtype=object),
        fields=fields,
        numbers={},
        key_KN=np.arange(len(ids) + 1, dtype=np.int64)[None, :],
    )
    text_M = tuple(". ".join(part for part in (text, ", ".join(name)) if part) or "nothing" for text, name in zip(said, names, strict=True))
    return items, spec, text_M


def _ordered(rows: list[dict[str, Any]]) -> bool:
    """Whether attributes come as brand and path, not as a set."""
    return any("attr_names" in row for row in rows)


def _spec(*, attributes: bool) -> FeatureSpec:
    """Fields of items; ``attributes`` where they are not brand and path again, which they would give away where those are hidden."""
    path = tuple(FieldSpec(name=f"category_{level + 1}", buckets=4096) for level in range(PATH_LEVELS))
    return FeatureSpec(
        item_fields=(
            FieldSpec(name="item_id", buckets=65_536),
            FieldSpec(name="brand", buckets=8192),
            *path,
            *((FieldSpec(name="attributes", kind="multi", buckets=8192),) if attributes else ()),
            FieldSpec(name="words", kind="text", buckets=16_384),
        ),
        user_fields=(),
        context_fields=(),
        u2i_keys=("item",),
        windows=(30,),
        history_length=50,
    )


def _attributes(rows: list[dict[str, Any]]) -> tuple[list[list[str]], list[str], list[list[str]]]:
    """Names to be said, brand ("" where there is none) and category path of each item, all prefixes of a path told apart.

    ``attr_names`` may start with the brand or with the path: what often stands second is a category. ``categories`` are a set; the commoner
    one is taken as the coarser. A brand ``Unknown`` is none.
    """
    names = [[str(name) for name in row.get("attr_names") or row.get("categories") or [] if name] for row in rows]
    ordered = _ordered(rows)
    second = Counter(name[1] for name in names if len(name) > 1)
    often = Counter(one for name in names for one in name)
    brands, paths = [], []
    for name in names:
        branded = ordered and bool(name) and (second[name[0]] < OFTEN or name[0].lower() == NO_BRAND)
        path = name[branded:] if ordered else sorted(name, key=lambda one: (-often[one], one))
        brands.append(name[0] if branded and name[0].lower() != NO_BRAND else "")
        paths.append([" > ".join(path[: level + 1]) for level in range(len(path))])
    said = [[one for one in name if one.lower() != NO_BRAND] for name in names]
    return said, brands, paths


def _buckets(values: list[list[str]], buckets: int, wide: bool) -> Ints:
    """Hashed buckets with row 0 for the unknown item: ``(N,)``, or ``(N, widest)`` of a field with many values."""
    width = max(max(map(len, values)), 1) if wide else 1
    out_NW = np.zeros((len(values) + 1, width), dtype=np.int64)
    for row, some in enumerate(values, start=1):
        out_NW[row, : len(some)] = [bucket_of(value, buckets) for value in some]
    return out_NW if wide else out_NW[:, 0]


def text_vectors(data: DataSet, cache: Path) -> Floats:
    """Sentence vectors of items ``1..N-1``, ``(M, D)``; computed once for the same texts, then read from ``cache``.

    Raises:
        MissingExtra: the sentence encoder is not installed.
    """
    digest = hashlib.sha256("\0".join(data.text_M).encode()).hexdigest()
    path = cache / f"minilm-{digest[:16]}.npy"
    if not path.is_file():
        vector_MD = sentence_vectors(data.text_M)
        cache.mkdir(parents=True, exist_ok=True)
        writing = path.with_suffix(".writing.npy")
        np.save(writing, vector_MD)
        writing.replace(path)
    found: Floats = np.load(path)
    return found
