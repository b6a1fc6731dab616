"""A small, whole world for evaluation: a lake with examples and cross arrays of real shape, and trained bundles.

Forty users visit a shop every few days; each has ten favourites that he mostly buys again. A third of the catalogue is on
offer on a day. The crosses of the examples come from the same store that evaluation looks crosses up in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dig_models.affinity import Neighbours
from dig_models.bundle import save_bundle
from dig_models.config import ModelConfig
from dig_models.cross_files import CrossWriter
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, bucket_of, hash_id
from dig_models.items import ItemTable
from dig_models.train.data import RequestTable, collate, pair_lookup
from jobs.config import Config, load
from jobs.dates import days_between
from jobs.lake import Lake, Marker, digest_of

DAY = date(2017, 11, 15)
USERS, ITEMS, SHARDS, HISTORY_DAYS = 40, 80, 2, 150
SMALL: dict[str, Any] = {"dim": 8, "levels": 3, "codes": 6, "encoder_hidden": 16, "heads": 2, "cross_rank": 4, "experts": 2}
SMALL |= {"expert_hidden": 8, "affinity": {"enabled": False}}  # this lake has no u2i_daily, that of affinity_world has


def settings(home: Path, *sets: str) -> Config:
    """The local settings with a home of their own and a small model."""
    small = [f"model.{k}={v}" for k, v in SMALL.items()]
    return load(sets=[f"paths.home={home}", "evaluate.bootstrap=20", "gate.min_items=10", *small, *sets], environ={})


def epoch_day(day: date) -> int:
    return (day - date(1970, 1, 1)).days


@dataclass
class World:
    """What was built; ``events`` are (user, item, ts) with users and items by number, ts ascending."""

    config: Config
    spec: FeatureSpec
    table: pa.Table
    items: ItemTable
    events: np.ndarray
    store: CrossStore

    @property
    def user_hash(self) -> np.ndarray:
        return np.array([hash_id(f"user-{u}") for u in range(USERS)])

    @property
    def item_hash(self) -> np.ndarray:
        return np.array([hash_id(f"item-{i}") for i in range(ITEMS)])

    def requests(self, days: list[date]) -> RequestTable:
        lake = Lake(self.config.paths.at("lake"))
        return RequestTable.from_arrow(lake.read_arrow("examples", days), self.spec, self.items)


def build(home: Path, *sets: str, day: date = DAY, seed: int = 0) -> World:
    """Write the lake of a run for ``day`` and return the world."""
    config = settings(home, *sets)
    spec = config.dataset.spec()
    table = item_features(spec)
    items = ItemTable.from_arrow(table, spec)
    events = simulate(day, seed)
    lake = Lake(config.paths.at("lake"))
    with lake.stage_files("cross_arrays", day) as stage:
        write_crosses(stage.path, spec, items, events, day)
        stage.commit(rows=len(events), job="test", code="", config="", inputs={})
    store = CrossStore.open(lake.folder("cross_arrays", day), spec, items)
    world = World(config, spec, table, items, events, store)
    window = config.run_window(day)
    for of in days_between(window.eval_first - timedelta(days=7), window.eval_last):
        commit(lake, "examples", of, examples(world, of))
    return world


def item_features(spec: FeatureSpec) -> pa.Table:
    """``ITEMS`` items of eight types in four departments."""
    columns: dict[str, object] = {
        "item_id": [f"item-{i}" for i in range(ITEMS)],
        "item_hash": [hash_id(f"item-{i}") for i in range(ITEMS)],
        "name": [f"Product {i} & <co>" for i in range(ITEMS)],
    }
    for field in spec.item_fields:
        values = [f"{field.name}-{i if field.name == 'item_id' else i % 8}" for i in range(ITEMS)]
        buckets = [bucket_of(v, field.buckets) for v in values]
        if field.kind == "text":
            columns[field.column] = pa.array([[b] for b in buckets], pa.list_(pa.int32()))
        else:
            columns[field.column] = pa.array(buckets, pa.int32())
    for key in spec.u2i_keys:
        columns[f"k_{key}"] = [hash_id(f"item-{i}") if key == "item" else hash_id(f"{key}-{i % 8}") for i in range(ITEMS)]
    return pa.table(columns)


def simulate(day: date, seed: int) -> np.ndarray:
    """Purchases, ``(events, 3)``: user, item, ts."""
    rng = np.random.default_rng(seed)
    popular = rng.zipf(1.6, ITEMS).astype(float)
    popular = np.minimum(popular, 30) / np.minimum(popular, 30).sum()
    favourites = np.stack([rng.choice(ITEMS, 10, replace=False, p=popular) for _ in range(USERS)])
    rows = []
    first = epoch_day(day) - HISTORY_DAYS
    for user in range(USERS):
        for visit in np.flatnonzero(rng.random(HISTORY_DAYS + 1) < 0.25):
            ts = (first + int(visit)) * SECONDS_PER_DAY + int(rng.integers(8 * 3600, 20 * 3600))
            bought = {*rng.choice(favourites[user], 3), *rng.choice(ITEMS, 1, p=popular)}
            rows += [(user, int(item), ts) for item in sorted(bought)]
    return np.array(sorted(rows, key=lambda r: r[2]), dtype=np.int64)


def write_crosses(path: Path, spec: FeatureSpec, items: ItemTable, events: np.ndarray, day: date) -> None:
    """Cross arrays of all events up to ``day``."""
    first, last = epoch_day(day) - HISTORY_DAYS, epoch_day(day)
    writer = CrossWriter(path, first_day=first, last_day=last)
    user = np.array([hash_id(f"user-{u}") for u in events[:, 0]])
    row = items.rows(np.array([hash_id(f"item-{i}") for i in events[:, 1]]))
    for k, name in enumerate(spec.u2i_keys):
        whole = np.stack([user, items.key_KN[k, row], events[:, 2]], axis=1)
        rows, count = np.unique(whole, axis=0, return_counts=True)
        for shard in range(SHARDS):
            part = rows[:, 0] % SHARDS == shard
            writer.put_u2i(name, shard, rows[part, 0], rows[part, 1], rows[part, 2], count[part].astype(float))
    daily = np.zeros((last - first + 1, len(items)))
    np.add.at(daily, (events[:, 2] // SECONDS_PER_DAY - first, row), 1)
    total = np.cumsum(daily, axis=0)
    windows = {w: (total - np.concatenate([np.zeros((w, len(items))), total])[: len(total)])[:, 1:] for w in spec.windows}
    writer.put_pop(np.arange(first, last + 1), items.hash_N[1:], {w: p.astype(np.float32) for w, p in windows.items()})
    offer, item = zip(*((hash_id(f"offer-{d}"), items.hash_N[1 + i]) for d in range(7) for i in range(d % 3, ITEMS, 3)), strict=True)
    codes = {o.name: np.ones(len(offer), np.int16) for o in spec.offers}
    writer.put_offers(np.array(offer), np.array(item), codes)
    writer.close(spec, pop_first_day=first, shards=SHARDS)


def examples(world: World, day: date) -> pa.Table:
    """Examples of one day: the visits of the day, each with the offered third of the catalogue and what was bought beside it."""
    spec, items = world.spec, world.items
    user, item, ts = world.events[world.events[:, 2] // SECONDS_PER_DAY == epoch_day(day)].T
    rows = []
    for who, when in sorted({(int(u), int(t)) for u, t in zip(user, ts, strict=True)}):
        bought = {hash_id(f"item-{i}") for i in item[(user == who) & (ts == when)]}
        offered = {int(h) for i, h in enumerate(items.hash_N[1:]) if i % 3 == epoch_day(day) % 7 % 3}
        row_hash = np.array([*sorted(offered), *sorted(bought - offered)], dtype=np.int64)
        offer_hash = hash_id(f"offer-{epoch_day(day) % 7}")
        size = len(row_hash)
        cross = world.store.pairs(
            np.full(size, hash_id(f"user-{who}")), np.full(size, when), np.full(size, offer_hash), items.rows(row_hash)
        )
        past = world.events[(world.events[:, 0] == who) & (world.events[:, 2] < when)][::-1][: spec.history_length]
        rows.append(
            {
                "request_id": f"user-{who}@{day}",
                "user_id": f"user-{who}",
                "user_hash": hash_id(f"user-{who}"),
                "ts": when,
                "offer_key": f"offer-{epoch_day(day) % 7}",
                "offer_hash": offer_hash,
                "ds": day.isoformat(),
                **{f"u_{f.name}": bucket_of(f"user-{who}", f.buckets) for f in spec.user_fields},
                **{f"c_{f.name}": bucket_of(str(day.weekday()), f.buckets) for f in spec.context_fields},
                "hist_item": [hash_id(f"item-{i}") for i in past[:, 1]],
                "hist_ts": past[:, 2].tolist(),
                "item": row_hash.tolist(),
                "label": [int(h in bought) for h in row_hash.tolist()],
                "source": [int(h not in offered) for h in row_hash.tolist()],
                "weight": [1.0] * size,
                "cross": cross.ravel().tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=example_schema(spec))


def without_positives(world: World) -> None:
    """Commit the evaluation days again with every label 0 and without what was bought beside the offers."""
    lake, window = Lake(world.config.paths.at("lake")), world.config.run_window(DAY)
    for day in days_between(window.eval_first, window.eval_last):
        rows = examples(world, day).to_pylist()
        for row in rows:
            kept = [at for at, source in enumerate(row["source"]) if source == 0]
            row["cross"] = np.array(row["cross"]).reshape(len(row["item"]), -1)[kept].ravel().tolist()
            row |= {name: [row[name][at] for at in kept] for name in ("item", "source", "weight")} | {"label": [0] * len(kept)}
        commit(lake, "examples", day, pa.Table.from_pylist(rows, schema=example_schema(world.spec)))


def example_schema(spec: FeatureSpec) -> pa.Schema:
    columns = {"request_id": pa.string(), "user_id": pa.string(), "user_hash": pa.int64(), "ts": pa.int64(), "offer_key": pa.string()}
    columns |= {"offer_hash": pa.int64(), "ds": pa.string()}
    columns |= {f"u_{f.name}": pa.int32() for f in spec.user_fields} | {f"c_{f.name}": pa.int32() for f in spec.context_fields}
    columns |= {"hist_item": pa.list_(pa.int64()), "hist_ts": pa.list_(pa.int64()), "item": pa.list_(pa.int64())}
    columns |= {
        "label": pa.list_(pa.int8()),
        "source": pa.list_(pa.int8()),
        "weight": pa.list_(pa.float32()),
        "cross": pa.list_(pa.float32()),
    }
    return pa.schema(list(columns.items()))


def commit(lake: Lake, table: str, day: date, rows: pa.Table) -> None:
    """Commit a partition without Spark."""
    staged = lake.root / "_test" / f"{table}-{day}"
    staged.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, staged / "part-0.parquet")
    content = hashlib.sha256((staged / "part-0.parquet").read_bytes()).hexdigest()[:16]
    columns = {f.name: str(f.type) for f in rows.schema}
    lake.publish(
        Marker(
            table=table,
            ds=day.isoformat(),
            data=f"data-{content[:12]}",
            rows=len(rows),
            content=content,
            schema=digest_of(columns),
            columns=columns,
            code="",
            config="",
            inputs={},
            stats={},
            job="test",
        ),
        staged,
    )


def train(
    world: World,
    day: date = DAY,
    *,
    steps: int = 30,
    seed: int = 0,
    lineage: str = "",
    neighbours: Neighbours | None = None,
    **changes: Any,
) -> Path:
    """A bundle for ``day`` in the checkpoints folder: a few real steps of both phases on the week before the evaluation days.

    ``changes`` are of the model's settings; with ``neighbours`` it reads the affinity.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Dig(ModelConfig(**SMALL | {"affinity": {"enabled": neighbours is not None}} | changes), world.spec, seed=seed)
    model.neighbours = neighbours
    model.set_items(world.items)
    window = world.config.run_window(day)
    requests = world.requests(days_between(window.eval_first - timedelta(days=7), window.train_last))
    lookup = pair_lookup(world.store, world.spec)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for step in range(steps):
        if step == steps // 3:
            model.build_codebooks(seed)
        index = rng.integers(0, len(requests), 16)
        batch = collate(
            requests, index, spec=world.spec, items=world.items, lookup=lookup, keep_rate=1.0, random_negatives=20, rng=rng,
            affinity=model.affinity,
        )  # fmt: skip
        optimizer.zero_grad()
        model(batch, "warmup" if step < steps // 3 else "joint", lookup)["total"].backward()
        optimizer.step()
        model.update_codebooks()
    model.eval()
    info = {"date": day.isoformat(), "lineage": lineage or f"{seed:064x}", "keep_rate": 1.0, "seed": seed}
    return save_bundle(Path(world.config.paths.at("checkpoints")) / day.isoformat() / "bundle", model, world.items, info)


def publishable(world: World, day: date = DAY) -> None:
    """Commit what publication reads beside the cross arrays: the catalogue of the day, and the state of every user at its end."""
    lake = Lake(world.config.paths.at("lake"))
    window = world.config.run_window(day)
    commit(lake, "item_features", day, world.table)
    columns = [n for n in example_schema(world.spec).names if n not in ("request_id", "item", "label", "source", "weight", "cross")]
    seen = lake.read_arrow("examples", days_between(window.eval_first, window.eval_last), columns=columns)
    newest = {row["user_id"]: row for row in seen.to_pylist()}  # days ascend
    end = (epoch_day(day) + 1) * SECONDS_PER_DAY
    state = []
    for row in newest.values():
        kept = [at for at, ts in enumerate(row["hist_ts"]) if ts >= end - world.spec.history_days * SECONDS_PER_DAY]
        history = {name: [row[name][at] for at in kept] for name in ("hist_item", "hist_ts")}
        state.append(row | history | {"ts": end, "ds": day.isoformat()})
    commit(lake, "user_state", day, pa.Table.from_pylist(state, schema=seen.schema))
