"""A small lake of raw tables, and slow readings of what the feature jobs must make of it.

Nothing here uses Spark to compute an expectation: every figure is read off the events one by one, as the contracts define it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from dig_models.features import SECONDS_PER_DAY, bucket_of, hash_id
from jobs.config import Config
from jobs.dates import days_between
from jobs.lake import Lake

FIRST, LAST = date(2017, 1, 1), date(2017, 1, 14)
DAYS = days_between(FIRST, LAST)
QUIET = date(2017, 1, 8)  # nobody came
DATASET = {
    "name": "small",
    "source": {"kind": "tables", "interactions": {"path": "unused"}},
    "first_date": FIRST,
    "default_date": LAST,
    "last_date": LAST,
    "catalogue": {"window_days": 6, "min_events": 2, "max_items": 6},
    "item_fields": [
        {"name": "item_id", "buckets": 64},
        {"name": "kind", "buckets": 8},
        {"name": "tags", "kind": "multi", "buckets": 16},
        {"name": "words", "column": "title", "kind": "text", "buckets": 32},
        {"name": "price", "kind": "numeric"},
    ],
    "user_fields": [{"name": "user_id", "buckets": 32}, {"name": "age", "buckets": 8}],
    "context_fields": [{"name": "store", "column": "store_id", "buckets": 8}],
    "offers": [{"name": "display", "column": "shown", "values": ["1", "2"]}, {"name": "mailer", "values": ["A"]}],
    "u2i": {"keys": [{"name": "item", "column": "item_id"}, {"name": "kind", "column": "kind"}], "windows": [2, 5], "shards": 3},
    "history": {"length": 4, "days": 3},
    "sampling": {"exposed_negative_rate": 0.5, "seed": 7},
}


def config_of(home: Path, **dataset: Any) -> Config:
    """Settings of the world; ``dataset`` overrides single keys."""
    return Config.model_validate(
        {
            "dataset": DATASET | dataset,
            "paths": {"home": str(home)},
            "window": {"eval_days": 2, "train_days": 4, "validation_days": 1},
            "checks": {"enabled": False},
        }
    )


def seconds(moment: datetime) -> int:
    return round((moment - datetime(1970, 1, 1)).total_seconds())


@dataclass
class World:
    """Raw tables as lists of dicts, with ``ds`` and ``ts`` (datetime)."""

    interactions: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    offers: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    users: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def make(cls, seed: int = 0) -> World:
        """Visits with purchases, several a day for some users, at midnight and the second before it too."""
        rng, world = np.random.default_rng(seed), cls()
        for day in DAYS:
            world._snapshots(day)
            if day == QUIET:
                continue
            for user in range(6):
                for visit in range(int(rng.integers(0, 3))):
                    world._visit(rng, day, f"u{user}", visit)
        return world

    def _snapshots(self, day: date) -> None:
        ds = day.isoformat()
        for i in range(9):  # i9 is bought, but in no snapshot
            kind = None if i == 4 else f"kind{i % 3}" if day < date(2017, 1, 11) or i else "kind2"  # i0 changes its kind
            self.items.append(
                {
                    **{"item_id": f"i{i}", "kind": kind, "tags": [None, "", "a|b| a|", "c"][i % 4]},
                    **{"title": [None, "Ground Beef, 80%", "beef-GROUND"][i % 3], "price": [None, "1.5", "NaN", "cheap"][i % 4]},
                    **{"name": f"Item {i}", "ds": ds},
                }
            )
        self.users += [{"user_id": f"u{u}", "age": None if u % 2 else f"a{u}", "ds": ds} for u in range(5)]  # u5 is unknown
        for key in ("s0", "s1"):
            for i in range(10):
                if (i + len(key) + int(key[1])) % 3:
                    self.offers.append(
                        {"offer_key": key, "item_id": f"i{i}", "shown": [None, "1", "2", "?"][i % 4], "mailer": "A", "ds": ds}
                    )
        self.offers.append({"offer_key": "s0", "item_id": "i1", "shown": None, "mailer": None, "ds": ds})  # offered twice

    def _visit(self, rng: np.random.Generator, day: date, user: str, visit: int) -> None:
        second = int(rng.choice([0, SECONDS_PER_DAY - 1, rng.integers(0, SECONDS_PER_DAY)]))
        ts, ds = datetime(day.year, day.month, day.day) + timedelta(seconds=second), day.isoformat()
        # The same id on two days: a session that crosses midnight is a request on either.
        request, store = f"{user}|{visit}|{day.toordinal() // 2}", f"s{rng.integers(0, 3)}"
        if any(r["user_id"] == user and r["ts"] == ts for r in self.requests):
            return
        self.requests.append(
            {"request_id": request, "user_id": user, "ts": ts, "offer_key": store, "store_id": None if visit else store, "ds": ds}
        )
        for i in rng.choice(10, int(rng.integers(0, 5)), replace=False):
            one = {"request_id": request, "user_id": user, "item_id": f"i{i}", "ts": ts, "quantity": 1.0, "value": 2.5, "ds": ds}
            self.interactions.append(one)

    def write(self, spark: SparkSession, lake: Lake, days: Iterable[date] = DAYS) -> None:
        """Commit the raw tables."""
        schemas = {
            "interactions": "request_id string, user_id string, item_id string, ts timestamp, quantity double, value double, ds string",
            "requests": "request_id string, user_id string, ts timestamp, offer_key string, store_id string, ds string",
            "offers": "offer_key string, item_id string, shown string, mailer string, ds string",
            "items": "item_id string, kind string, tags string, title string, price string, name string, ds string",
            "users": "user_id string, age string, ds string",
        }
        days = list(days)
        for table, schema in schemas.items():
            rows = [r for r in getattr(self, table) if date.fromisoformat(r["ds"]) in days]
            with lake.stage(table, "raw") as stage:
                stage.write(spark.createDataFrame(rows, schema), days)
                stage.commit(spark, days, job="raw", code="", config="", inputs=lambda day: {})

    # ---- slow readings

    def events_of(self, item: str, last: date, window: int) -> int:
        """Events of an item in the last ``window`` days, ``last`` included."""
        days = {(last - timedelta(days=i)).isoformat() for i in range(window)}
        return sum(r["item_id"] == item and r["ds"] in days for r in self.interactions)

    def catalogue(self, last: date) -> set[str]:
        """Items of ``item_features/ds=last``."""
        bought = {r["item_id"] for r in self.interactions}
        events = sorted((-self.events_of(i, last, 6), i) for i in bought if self.events_of(i, last, 6) >= 2)
        return {i for _, i in events[:6]}

    def key(self, name: str, item: str, ds: str) -> int:
        """Key hash of an item on a day; 0 = missing."""
        if name == "item":
            return hash_id(item)
        kind = next((r["kind"] for r in self.items if r["item_id"] == item and r["ds"] == ds), None)
        return hash_id(kind) if kind else 0

    def u2i(self, user: str, key_name: str, key: int, ts: int, closed: bool = False) -> list[float]:
        """Counts of each window and the last second (-1 if never) of a user and key before ``ts``."""
        start = ts // SECONDS_PER_DAY * SECONDS_PER_DAY
        end = start if closed else ts
        times = [
            seconds(r["ts"])
            for r in self.interactions
            if key and r["user_id"] == user and self.key(key_name, r["item_id"], r["ds"]) == key and seconds(r["ts"]) < end
        ]
        counts = [float(sum(t >= start - w * SECONDS_PER_DAY for t in times)) for w in (2, 5)]
        return [*counts, float(max((t for t in times if t >= start - 5 * SECONDS_PER_DAY), default=-1))]

    def cross(self, request: dict[str, Any], item: str) -> list[float]:
        """Raw crosses of a request and an item of its catalogue."""
        ts, before, out = seconds(request["ts"]), request["ts"].date() - timedelta(days=1), []
        for name in ("item", "kind"):
            *counts, last = self.u2i(request["user_id"], name, self.key(name, item, before.isoformat()), ts)
            out += [*counts, (ts - last) / SECONDS_PER_DAY if last >= 0 else -1.0]
        out += [float(self.events_of(item, before, w)) for w in (2, 5)]
        offered = [r for r in self.offers if r["ds"] == request["ds"] and r["offer_key"] == request["offer_key"] and r["item_id"] == item]
        out.append(float(max(({"1": 1, "2": 2}.get(r["shown"], 0) for r in offered), default=0)))
        out.append(float(max((int(r["mailer"] == "A") for r in offered), default=0)))
        return out

    def rows(self, request: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """Rows of a request before sampling: ``{item: (label, source)}``."""
        shown = {r["item_id"] for r in self.offers if r["ds"] == request["ds"] and r["offer_key"] == request["offer_key"]}
        bought = {r["item_id"] for r in self.interactions if (r["request_id"], r["ds"]) == (request["request_id"], request["ds"])}
        known = self.catalogue(request["ts"].date() - timedelta(days=1))
        return {i: (int(i in bought), int(i not in shown)) for i in (shown | bought) & known}

    def history(self, user: str, ts: int) -> list[tuple[int, int]]:
        """``(ts, item hash)``, newest first."""
        start = ts // SECONDS_PER_DAY * SECONDS_PER_DAY - 3 * SECONDS_PER_DAY
        events = [(seconds(r["ts"]), hash_id(r["item_id"])) for r in self.interactions if r["user_id"] == user]
        return sorted(((t, i) for t, i in events if start <= t < ts), key=lambda e: (-e[0], e[1]))[:4]

    def profile(self, user: str) -> tuple[int, int]:
        """Buckets of user_id and age; 0 for the unknown user."""
        if user == "u5":
            return 0, 0
        age = None if int(user[1:]) % 2 else f"a{user[1:]}"
        return bucket_of(user, 32), bucket_of(age, 8)
