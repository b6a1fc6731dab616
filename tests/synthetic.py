"""Small synthetic artefacts of the contracts, for tests: crosses, user state, a model with codebooks, an index release."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dig_models.bundle import Bundle
from dig_models.config import ModelConfig
from dig_models.cross_files import CrossWriter
from dig_models.dig import Dig
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, hash_id
from dig_models.items import ItemTable

DAY = date(2017, 3, 20)
DAYS = 40
SHARDS = 2


def day_number(day: date) -> int:
    return (day - date(1970, 1, 1)).days


def make_items(spec: FeatureSpec, ids: list[str], seed: int = 0) -> ItemTable:
    """Items whose buckets follow their id, so that an item keeps its features whatever else is in the table."""
    ids = sorted(ids, key=hash_id)

    def draw(item: str, field: str, size: int, high: int) -> np.ndarray:
        return np.random.default_rng([seed, hash_id(f"{item}/{field}") % 2**32]).integers(1, high, size)

    fields, numbers = {}, {}
    for field in spec.item_fields:
        if field.kind == "numeric":
            numbers[field.name] = np.r_[0, [draw(i, field.name, 1, 100)[0] / 10 for i in ids]].astype(np.float32)
        elif field.kind == "categorical":
            fields[field.name] = np.r_[0, [draw(i, field.name, 1, field.buckets)[0] for i in ids]].astype(np.int64)
        else:
            fields[field.name] = np.vstack([np.zeros((1, 3)), [draw(i, field.name, 3, field.buckets) for i in ids]]).astype(np.int64)
    keys = [[hash_id(i) if k == "item" else int(draw(i, k, 1, 9)[0]) for i in ids] for k in spec.u2i_keys]
    return ItemTable(
        hash_N=np.array([np.iinfo(np.int64).min, *map(hash_id, ids)], dtype=np.int64),
        id_N=np.array(["", *ids], dtype=object),
        name_N=np.array(["(unknown)", *(f"Product {i}" for i in ids)], dtype=object),
        fields=fields,
        numbers=numbers,
        key_KN=np.stack([np.r_[0, k] for k in keys]).astype(np.int64),
    )


def write_crosses(path: Path, spec: FeatureSpec, items: ItemTable, users: list[str], last: date = DAY, seed: int = 1) -> Path:
    """Random events of the users on the last ``DAYS`` days, the popularity that follows, and offers under two keys."""
    rng = np.random.default_rng(seed)
    first_day, last_day = day_number(last) - DAYS + 1, day_number(last)
    writer = CrossWriter(path, first_day=first_day, last_day=last_day)
    count = 30 * len(users)
    user_E = np.array([hash_id(u) for u in users], dtype=np.int64)[rng.integers(0, len(users), count)]
    item_E = rng.integers(1, len(items), count)
    ts_E = rng.integers(first_day * SECONDS_PER_DAY, (last_day + 1) * SECONDS_PER_DAY, count)
    for k, key in enumerate(spec.u2i_keys):
        for shard in range(SHARDS):
            mine = (user_E % SHARDS == shard) & (items.key_KN[k, item_E] != 0)
            rows = np.stack([user_E[mine], items.key_KN[k, item_E[mine]], ts_E[mine]], axis=1)
            distinct, number = np.unique(rows, axis=0, return_counts=True)
            writer.put_u2i(key, shard, distinct[:, 0], distinct[:, 1], distinct[:, 2], number.astype(float))
    days = np.arange(first_day, last_day + 1)
    day_E = ts_E // SECONDS_PER_DAY
    pop = {
        w: np.stack([np.bincount(item_E[(day_E > d - w) & (day_E <= d)], minlength=len(items))[1:] for d in days]).astype(np.float32)
        for w in spec.windows
    }
    writer.put_pop(days, items.hash_N[1:], pop)
    offer_O = np.repeat(np.array([hash_id("offer-a"), hash_id("offer-b")]), 5)
    item_O = np.concatenate([items.hash_N[1:6], items.hash_N[3:8]])
    writer.put_offers(offer_O, item_O, {o.name: rng.integers(1, len(o.values) + 1, 10).astype(np.int16) for o in spec.offers})
    writer.close(spec, pop_first_day=first_day, shards=SHARDS)
    return path


def user_state(spec: FeatureSpec, items: ItemTable, users: list[str], last: date = DAY, seed: int = 2) -> pa.Table:
    """Rows of ``user_state`` as of the end of ``last``; the first user has no history within reach."""
    rng = np.random.default_rng(seed)
    ts = (day_number(last) + 1) * SECONDS_PER_DAY
    lengths = [0, *rng.integers(1, spec.history_length + 1, len(users) - 1)][: len(users)]
    histories = [items.hash_N[rng.integers(1, len(items), n)].tolist() for n in lengths]
    times = [sorted((ts - rng.integers(1, 20 * SECONDS_PER_DAY, n)).tolist(), reverse=True) for n in lengths]
    offers = [["offer-a", "offer-b", ""][i % 3] for i in range(len(users))]
    columns = {
        "request_id": [f"state-{u}" for u in users],
        "user_id": users,
        "user_hash": pa.array([hash_id(u) for u in users], pa.int64()),
        "ts": pa.array([ts] * len(users), pa.int64()),
        "offer_key": offers,
        "offer_hash": pa.array([hash_id(o) for o in offers], pa.int64()),
        "hist_item": pa.array(histories, pa.list_(pa.int64())),
        "hist_ts": pa.array(times, pa.list_(pa.int64())),
        "ds": [last.isoformat()] * len(users),
    }
    columns |= {f"u_{f.name}": pa.array(rng.integers(0, f.buckets, len(users)), pa.int32()) for f in spec.user_fields}
    columns |= {f"c_{f.name}": pa.array(rng.integers(0, f.buckets, len(users)), pa.int32()) for f in spec.context_fields}
    return pa.table(columns)


def make_model(spec: FeatureSpec, items: ItemTable, *, seed: int = 3, **settings: object) -> Dig:
    """A small random model with codebooks and with weights large enough that scores differ."""
    torch.manual_seed(seed)
    sizes: dict[str, object] = {"dim": 8, "levels": 3, "codes": 6, "encoder_hidden": 8, "heads": 2, "experts": 2, "expert_hidden": 8}
    model = Dig(ModelConfig.model_validate({**sizes, "cross_rank": 4, **settings}), spec, seed=seed)
    model.set_items(items)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.build_codebooks(seed)
    return model.eval()


def make_bundle(spec: FeatureSpec, items: ItemTable, **settings: object) -> Bundle:
    """A bundle as training would leave it."""
    model = make_model(spec, items, **settings)
    return Bundle(model, spec, items, model.code_NL.numpy().copy(), {"date": DAY.isoformat(), "keep_rate": 0.1})
