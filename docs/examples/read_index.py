"""Reads an index generation with nothing but NumPy: items to SIDs, SIDs and prefixes of them to items, and the codes that may follow.

It imports nothing of this project, so it shows that ``docs/reference/index-format.md`` is enough. ``python read_index.py INDEX ITEM …``
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Index:
    """The generation that ``CURRENT`` names, or another one; arrays are memory-mapped."""

    def __init__(self, root: str | Path, generation: str | None = None) -> None:
        generation = generation or (Path(root) / "CURRENT").read_text().strip()
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-v[0-9A-Za-z_]+-[0-9a-f]{10}", generation):
            raise ValueError(f"{generation[:80]!r} found, expected the id of a generation: <date>-v<version>-<10 hex digits>")
        self.folder = Path(root) / "generations" / generation
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        if self.manifest["format"] != 2:
            raise ValueError(f"{self.folder}: format {self.manifest['format']} found, this reads format 2")
        levels = range(self.manifest["levels"])
        self.sids, self.by_id, self.order = self._load("items/sid"), self._load("items/by_id"), self._load("trie/order")
        self.id_start, self.id_bytes = self._load("items/id.start"), self._load("items/id.bytes")
        self.token, self.start = [self._load(f"trie/token{i}") for i in levels], [self._load(f"trie/start{i}") for i in levels]
        self.child = [self._load(f"trie/child{i}") for i in levels[:-1]]

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def verify(self) -> None:
        """Compare every byte with the manifest, whose seal covers its own; nothing outside of the generation's folder is read."""
        rest = {key: value for key, value in self.manifest.items() if key != "seal"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        if hashlib.sha256(text).hexdigest() != self.manifest["seal"]:
            raise ValueError("manifest.json was changed")
        for name, entry in self.manifest["files"].items():
            path = self.folder.resolve() / name
            if path != path.resolve() or self.folder.resolve() not in path.parents:
                raise ValueError(f"{name!r} found in manifest.json, expected a plain file below {self.folder}")
            if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                raise ValueError(f"{name} was changed")

    def item(self, row: int) -> str:
        """Id of an item row."""
        return self.id_bytes[self.id_start[row] : self.id_start[row + 1]].tobytes().decode()

    def sid(self, item: str) -> tuple[int, ...] | None:
        """SID of an item, found by bisection over its id's UTF-8; None if the catalogue does not hold it."""
        low, high, wanted = 0, len(self.by_id), item.encode()
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.item(self.by_id[middle]).encode() < wanted else (low, middle)
        found = low < len(self.by_id) and self.item(self.by_id[low]) == item
        return tuple(self.sids[self.by_id[low]].tolist()) if found else None

    def next_codes(self, prefix: Sequence[int]) -> list[int]:
        """Codes that may follow a prefix (empty: the first codes); none after a whole SID or a prefix that does not exist."""
        first, last = self._below(prefix)
        return self.token[len(prefix)][first:last].tolist() if last > first else []

    def items(self, prefix: Sequence[int]) -> list[str]:
        """Items whose SID begins with a prefix, by SID: all for the empty one, for a whole SID its posting list, none for a longer one."""
        if not prefix:
            return [self.item(row) for row in self.order]
        if prefix[-1] not in self.next_codes(prefix[:-1]):
            return []
        first, last = self._below(prefix[:-1])
        node = first + np.searchsorted(self.token[len(prefix) - 1][first:last], prefix[-1])
        start = self.start[len(prefix) - 1]
        return [self.item(row) for row in self.order[start[node] : start[node + 1]]]

    def _below(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Range of the nodes that follow a prefix, in the level below it."""
        first, last = 0, len(self.token[0])
        for level, code in enumerate(prefix):
            node = first + int(np.searchsorted(self.token[level][first:last], code))
            if level + 1 == len(self.token) or node >= last or self.token[level][node] != code:
                return 0, 0
            first, last = int(self.child[level][node]), int(self.child[level][node + 1])
        return first, last


if __name__ == "__main__":
    index = Index(sys.argv[1])
    index.verify()
    for asked in sys.argv[2:]:
        sid = index.sid(asked)
        told = "is not in the catalogue" if sid is None else f"has the SID {sid}, as have {', '.join(index.items(sid))}"
        sys.stdout.write(f"{asked} {told}\n")
