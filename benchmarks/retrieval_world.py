"""Synthetic catalogues for ``benchmarks.retrieval``: skewed SIDs, items with key values, users with a past, the default model on them.

The SIDs are drawn level by level: below every prefix the codes are in use by Zipf's law with exponent ``SKEW``, in an order of
the prefix's own. With 1.1 a catalogue of 7,787 items in 64^3 codes gets about the prefixes that the trained model of the data set
in ``conf/`` has (45, 1,135 and 5,214 by level). Departments, categories and types follow the prefix, as they do there;
manufacturers do not.

Shape suffixes: ``M`` items, ``N`` catalogue rows, ``L`` levels, ``E`` events, ``B`` requests.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dig_models.config import ModelConfig
from dig_models.cross_files import CrossWriter
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, FieldSpec, OfferSpec
from dig_models.items import ItemTable
from dig_models.retrieve.rerank import Retriever
from dig_models.retrieve.trie import Trie
from dig_models.train.data import RequestTable

Int64 = NDArray[np.int64]
SKEW = 1.1
USERS, PAST, HISTORY, SHOWN, OFFERS = 512, 150, 60, 2000, 16
DAY = 17_000
KEYS = {"item": 0, "type": 8192, "category": 1024, "manufacturer": 4096, "department": 64}


@dataclass(frozen=True, kw_only=True)
class Size:
    """A catalogue: items, SID length, codes a level."""

    items: int
    levels: int
    codes: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.items}-{self.codes}^{self.levels}"


def spec() -> FeatureSpec:
    """The widths of the data set in ``conf/datasets``: 42 model crosses, histories of 60."""
    return FeatureSpec(
        item_fields=(FieldSpec(name="item_id", buckets=32768), FieldSpec(name="category", buckets=1024)),
        user_fields=(FieldSpec(name="user_id", buckets=8192),),
        context_fields=(FieldSpec(name="weekday", buckets=16),),
        u2i_keys=tuple(KEYS),
        windows=(7, 30, 90),
        offers=(
            OfferSpec(name="display", values=tuple("1234567 9A".replace(" ", ""))),
            OfferSpec(name="mailer", values=tuple("ACDFHJLPXZ")),
        ),
        history_length=HISTORY,
    )


def zipf(rng: np.random.Generator, values: int, size: int, exponent: float = 1.0) -> Int64:
    """Draws from ``0..values-1`` by Zipf's law."""
    cumulated = np.cumsum(1.0 / np.arange(1, values + 1) ** exponent)
    drawn: Int64 = np.searchsorted(cumulated, rng.random(size) * cumulated[-1]).astype(np.int64)
    return drawn


def skewed_codes(size: Size, seed: int = 0) -> Int64:
    """SIDs of the catalogue rows, int64 ``(N, L)``; row 0 is -1."""
    rng, codes = np.random.default_rng(seed), np.uint64(size.codes)
    prefix_M, out_NL = np.zeros(size.items, dtype=np.uint64), np.full((size.items + 1, size.levels), -1, dtype=np.int64)
    for level in range(size.levels):
        rank_M = zipf(rng, size.codes, size.items, SKEW).astype(np.uint64)
        mixed_M = (prefix_M * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
        odd_M = np.uint64(2) * (mixed_M % codes) + np.uint64(1)  # odd against a power of two: a permutation of the codes
        token_M = (rank_M * odd_M + (mixed_M >> np.uint64(8))) % codes
        out_NL[1:, level] = token_M
        prefix_M = prefix_M * codes + token_M + np.uint64(1)
    return out_NL


def build(size: Size, root: Path) -> Path:
    """Write a catalogue's trie, item keys and crosses under ``root``, once; returns its folder."""
    folder, staging = root / size.name, root / f".{size.name}"
    if (folder / "size.json").is_file():
        return folder
    shutil.rmtree(staging, ignore_errors=True)
    (staging / "trie").mkdir(parents=True)
    rng, code_NL = np.random.default_rng(1), skewed_codes(size)
    Trie.build(code_NL).save(staging / "trie")
    hash_N = np.concatenate([[np.iinfo(np.int64).min], np.sort(rng.integers(-(2**62), 2**62, size.items))])
    key_KN = _keys(code_NL, hash_N, rng)
    np.save(staging / "keys.npy", key_KN)
    np.save(staging / "hashes.npy", hash_N)
    np.save(staging / "category.npy", key_KN[2] % 1024)
    _crosses(staging / "crosses", hash_N, key_KN, rng)
    (staging / "size.json").write_text(json.dumps(asdict(size)) + "\n")
    staging.rename(folder)
    return folder


def _keys(code_NL: Int64, hash_N: Int64, rng: np.random.Generator) -> Int64:
    """Values of the u2i keys ``(K, N)``, 0 in row 0; a tenth of what follows the SID does not."""
    rows, codes = len(code_NL), int(code_NL.max()) + 1
    first_N, second_N = code_NL[:, 0], code_NL[:, 0] * codes + code_NL[:, min(1, code_NL.shape[1] - 1)]
    follows = {"department": first_N % 24, "category": (first_N * 7 + second_N // 8) % 300, "type": second_N * 31 % 2000}
    out_KN = np.empty((len(KEYS), rows), dtype=np.int64)
    for k, (key, values) in enumerate(KEYS.items()):
        if key == "item":
            out_KN[k] = hash_N
            continue
        drawn_N = zipf(rng, values // 4, rows)
        out_KN[k] = np.where(rng.random(rows) < 0.1, drawn_N, follows.get(key, drawn_N)) + 1
    out_KN[:, 0] = 0
    return out_KN


def _crosses(path: Path, hash_N: Int64, key_KN: Int64, rng: np.random.Generator) -> None:
    """Events of the users, popularity of one day, and offers, as the feature jobs would export them."""
    writer = CrossWriter(path, first_day=DAY - 100, last_day=DAY)
    user_E = np.repeat(np.arange(1, USERS + 1, dtype=np.int64), PAST)
    item_E = 1 + zipf(rng, len(hash_N) - 1, len(user_E), 0.7)
    ts_E = rng.integers((DAY - 99) * SECONDS_PER_DAY, (DAY + 1) * SECONDS_PER_DAY, len(user_E))
    for k, key in enumerate(KEYS):
        rows = np.stack([user_E, key_KN[k, item_E], ts_E], axis=1)
        distinct, number = np.unique(rows, axis=0, return_counts=True)
        writer.put_u2i(key, 0, distinct[:, 0], distinct[:, 1], distinct[:, 2], number.astype(float))
    pop_N = (50.0 * rng.pareto(1.2, len(hash_N) - 1)).astype(np.float32)
    writer.put_pop(np.array([DAY]), hash_N[1:], {w: np.floor(pop_N * w / 90)[None, :] for w in (7, 30, 90)})
    shown = min(SHOWN, (len(hash_N) - 1) // 2)
    item_O = np.concatenate([1 + rng.choice(len(hash_N) - 1, shown, replace=False) for _ in range(OFFERS)])
    offer_O = np.repeat(np.arange(1, OFFERS + 1, dtype=np.int64), shown)
    codes = {o.name: rng.integers(0, len(o.values) + 1, len(item_O)).astype(np.int16) for o in spec().offers}
    writer.put_offers(offer_O, hash_N[item_O], codes)
    writer.close(spec(), pop_first_day=DAY, shards=1)


def model(size: Size) -> Dig:
    """The default model with as many levels and codes, random weights, and semantic tables that shrink by level."""
    torch.manual_seed(7)
    network = Dig(ModelConfig(levels=size.levels, codes=size.codes), spec(), seed=7)
    with torch.no_grad():
        scale = torch.logspace(0, -0.25 * (size.levels - 1), size.levels).repeat_interleave(size.codes)
        network.quantizer.semantic.weight.copy_(torch.randn_like(network.quantizer.semantic.weight) * scale.unsqueeze(1))
        network.mixer.wide.weight.normal_(std=0.05)
        network.quantizer.built.fill_(True)
    return network.eval()


def open_world(size: Size, root: Path) -> tuple[Retriever, RequestTable]:
    """A retriever on a catalogue that was built before, and ``USERS`` requests."""
    folder = root / size.name
    hash_N, key_KN = np.load(folder / "hashes.npy", mmap_mode="r"), np.load(folder / "keys.npy", mmap_mode="r")
    item_id_N = np.arange(len(hash_N)) % 32767 + 1
    item_id_N[0] = 0
    blank_N = np.broadcast_to(np.array("", dtype=object), (len(hash_N),))
    fields = {"item_id": item_id_N, "category": np.asarray(np.load(folder / "category.npy"))}
    items = ItemTable(hash_N=hash_N, id_N=blank_N, name_N=blank_N, fields=fields, numbers={}, key_KN=key_KN)
    store = CrossStore.open(folder / "crosses", spec(), items)
    retriever = Retriever.of(model(size), spec(), items, store, trie=Trie.load(folder / "trie", size.levels))
    return retriever, requests(len(hash_N))


def requests(rows: int) -> RequestTable:
    """Requests of all users on the day after the last one, with full histories."""
    rng = np.random.default_rng(2)
    ts_B = np.full(USERS, (DAY + 1) * SECONDS_PER_DAY, dtype=np.int64)
    age = np.sort(rng.integers(1, 60 * SECONDS_PER_DAY, (USERS, HISTORY)), axis=1)
    empty, none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int8)
    return RequestTable(
        user_B=np.arange(1, USERS + 1, dtype=np.int64),
        ts_B=ts_B,
        offer_B=np.arange(USERS, dtype=np.int64) % OFFERS + 1,
        user_BF=np.stack([np.arange(USERS) % 8192, np.full(USERS, 3)], axis=1).astype(np.int64),
        history_start=np.arange(USERS + 1, dtype=np.int64) * HISTORY,
        history_item=1 + zipf(rng, rows - 1, USERS * HISTORY, 0.7),
        history_ts=(ts_B[:, None] - age).ravel(),
        row_start=np.zeros(USERS + 1, dtype=np.int64),
        item_R=empty,
        label_R=none,
        source_R=none,
        weight_R=np.zeros(0, dtype=np.float32),
        cross_RW=np.zeros((0, spec().cross_width_raw), dtype=np.float32),
    )
