"""A tiny world to train on: a catalogue, cross arrays and a few days of examples in Parquet; also the program that torchrun starts."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import synthetic
import torch
from numpy.typing import NDArray

from dig_models.config import ModelConfig, TrainConfig
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, FieldSpec, OfferSpec, hash_id
from dig_models.items import ItemTable
from dig_models.train.data import pair_lookup
from dig_models.train.distributed import World, process_group
from dig_models.train.loop import Record, Setup, Told, fit
from dig_models.train.stream import ExampleStream, row_groups

USERS = [f"u{i}" for i in range(12)]
KEEP_RATE = 0.25
SHAPE = {"dim": 8, "levels": 2, "codes": 6, "encoder_hidden": 8, "heads": 2, "cross_rank": 4, "experts": 2, "expert_hidden": 8}
SETTINGS = {"epochs": 2, "requests_per_batch": 4, "random_negatives": 5, "shuffle_row_groups": 2, "checkpoint_steps": 4, "lr": 0.01}


def make_spec() -> FeatureSpec:
    return FeatureSpec(
        item_fields=(FieldSpec(name="item_id", buckets=128), FieldSpec(name="brand", buckets=16)),
        user_fields=(FieldSpec(name="user_id", buckets=32),),
        context_fields=(FieldSpec(name="weekday", buckets=8),),
        u2i_keys=("item", "brand"),
        windows=(7, 30),
        offers=(OfferSpec(name="display", values=("1", "2")),),
        history_length=6,
    )


def example_table(spec: FeatureSpec, items: ItemTable, store: CrossStore, day: date, requests: int, seed: int = 0) -> pa.Table:
    """Requests of one day, each with nine exposed and two organic rows; what a user had before is clicked more often."""
    rng = np.random.default_rng([seed, day.toordinal()])
    midnight = synthetic.day_number(day) * SECONDS_PER_DAY
    rows = []
    for number in range(requests):
        user, ts = USERS[int(rng.integers(len(USERS)))], midnight + int(rng.integers(SECONDS_PER_DAY))
        offer = hash_id(["offer-a", "offer-b"][number % 2])
        item = np.sort(rng.choice(np.arange(1, len(items)), 11, replace=False))
        raw = store.pairs(np.full(11, hash_id(user)), np.full(11, ts), np.full(11, offer), item)
        chance = 1 / (1 + np.exp(1.5 - 2.0 * (raw[:, 1] > 0) - 1.0 * (raw[:, 4] > 1)))
        label = (rng.random(11) < chance).astype(int)
        source = np.r_[np.zeros(9, int), np.ones(2, int)]
        label[9:] = 1
        past = int(rng.integers(0, spec.history_length + 1))
        rows.append(
            {
                "user_hash": hash_id(user),
                "ts": ts,
                "offer_hash": offer,
                "u_user_id": hash_id(user) % 31 + 1,
                "c_weekday": day.weekday() + 1,
                "hist_item": items.hash_N[rng.integers(1, len(items), past)].tolist(),
                "hist_ts": sorted((ts - rng.integers(1, 20 * SECONDS_PER_DAY, past)).tolist(), reverse=True),
                "item": items.hash_N[item].tolist(),
                "label": label.tolist(),
                "source": source.tolist(),
                "weight": np.where((source == 0) & (label == 0), 1 / KEEP_RATE, 1.0).tolist(),
                "cross": raw.ravel().tolist(),
            }
        )
    lists = {"hist_item": pa.int64(), "hist_ts": pa.int64(), "item": pa.int64(), "label": pa.int8(), "source": pa.int8()}
    lists |= {"weight": pa.float32(), "cross": pa.float32()}
    plain = {"user_hash": pa.int64(), "ts": pa.int64(), "offer_hash": pa.int64(), "u_user_id": pa.int32(), "c_weekday": pa.int32()}
    schema = pa.schema([*plain.items(), *((k, pa.list_(v)) for k, v in lists.items())])
    return pa.Table.from_pylist(rows, schema=schema)


@dataclass(frozen=True)
class Tiny:
    """What is on disk under ``home``."""

    home: Path
    spec: FeatureSpec
    items: ItemTable
    store: CrossStore

    @classmethod
    def open(cls, home: Path) -> Tiny:
        spec = make_spec()
        items = synthetic.make_items(spec, [f"i{n}" for n in range(60)])
        if not (home / "crosses").is_dir():
            synthetic.write_crosses(home / "crosses", spec, items, USERS)
        return cls(home, spec, items, CrossStore.open(home / "crosses", spec, items))

    @classmethod
    def build(cls, home: Path, *, days: int = 6, requests: int = 13) -> Tiny:
        """Examples of ``days`` days up to ``synthetic.DAY``, one row group for every five requests; the last day validates."""
        tiny = cls.open(home)
        for back in range(days):
            day = synthetic.DAY - timedelta(days=back)
            tiny.write(day, example_table(tiny.spec, tiny.items, tiny.store, day, requests), validation=back == 0)
        return tiny

    def write(self, day: date, table: pa.Table, *, validation: bool = False, rows: int = 5) -> Path:
        folder = self.home / ("validation" if validation else "fit") / day.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "part-0.parquet", row_group_size=rows)
        return folder

    def folders(self, kind: str = "fit") -> list[str]:
        return [str(p) for p in sorted((self.home / kind).iterdir())]

    @property
    def lookup(self) -> Callable[..., NDArray[np.float32]]:
        return pair_lookup(self.store, self.spec)

    def stream(self, kind: str = "fit", *, rank: int = 0, world: int = 1, **changes: object) -> ExampleStream:
        made = ExampleStream(
            groups=row_groups(self.folders(kind)),
            spec=self.spec,
            items=self.items,
            lookup=self.lookup,
            keep_rate=KEEP_RATE,
            random_negatives=5,
            open_positives="all",
            seed=2017,
            rank=rank,
            world=world,
            requests_per_batch=4,
            shuffle_row_groups=2,
        )
        return replace(made, **changes)  # type: ignore[arg-type]

    def model(self, **changes: object) -> Dig:
        torch.manual_seed(1)
        model = Dig(ModelConfig.model_validate({**SHAPE, "dead_code_steps": 3, **changes}), self.spec, seed=1)
        model.set_items(self.items)
        return model

    def setup(self, world: World, *, model: Dig | None = None, checkpoints: str = "steps", **changes: object) -> Setup:
        return Setup(
            model=model or self.model(),
            config=TrainConfig.model_validate({**SETTINGS, **changes}),
            train=self.stream(rank=world.rank, world=world.size),
            validation=self.stream("validation", rank=world.rank, world=world.size),
            checkpoints=self.home / checkpoints,
            lineage="l1",
            warm=False,
        )


def state(model: Dig) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that differ in any bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def untimed(record: Record) -> dict[str, object]:
    return {k: v for k, v in vars(record).items() if not k.endswith("seconds")}


def main() -> None:
    """What a rank does: train, slowly if asked, then leave its weights and record behind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--checkpoints", default="steps")
    parser.add_argument("--out", required=True)
    parser.add_argument("--pause-at", type=int, default=0, help="from this step on, say who is there and wait to be killed")
    args = parser.parse_args()
    tiny = Tiny.open(args.home)
    with process_group("gloo", 1) as world:
        setup = tiny.setup(world, checkpoints=args.checkpoints)
        out = args.home / f"{args.out}-{world.rank}"

        first: list[int] = []

        def tell(told: Told) -> None:
            first.append(told.step)
            if args.pause_at and told.step >= args.pause_at:
                (args.home / f"{args.out}.pid").write_text(str(os.getpid()))
                while True:
                    torch.zeros(1).add_(1)

        record = fit(setup, world, tell)
        torch.save(setup.model.state_dict(), f"{out}.pt")
        Path(f"{out}.json").write_text(json.dumps(untimed(record)))
        if world.leads:
            Path(f"{out}.first").write_text(str(first[0]))


if __name__ == "__main__":
    main()
