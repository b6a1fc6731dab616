"""A registry with versions and an index with generations, small and quick to make: what promotions move between."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import synthetic

from dig_models.index import generation as g
from dig_models.index.writer import Release, build, locked
from jobs import registry
from jobs.config import Config, load
from jobs.promotion_log import Pair, Request

DAY = synthetic.DAY
USERS = [f"u{i}" for i in range(5)]
ITEMS = [f"i{i}" for i in range(40)]
AT = "2017-11-20T08:00:00+00:00"


@dataclass(frozen=True)
class ReleaseWorld:
    """Three versions, one a day, each with a generation of its day; nothing is promoted."""

    config: Config
    pairs: tuple[Pair, ...]

    @property
    def root(self) -> Path:
        return Path(self.config.paths.at("index"))

    @property
    def aliases(self) -> dict[str, str]:
        found = {name: registry.find(self.config, name) for name in (registry.CHAMPION, registry.PREVIOUS)}
        return {name: ref.version for name, ref in found.items() if ref}

    @property
    def current(self) -> str | None:
        return g.current(self.root)

    def tags(self, version: str) -> dict[str, str]:
        return dict(registry.get(self.config, version).tags)


def settings(home: Path, *sets: str) -> Config:
    """The local settings with a home of their own."""
    return load(sets=[f"paths.home={home}", *sets], environ={})


def make(home: Path, versions: int = 3) -> ReleaseWorld:
    """Versions 1, 2, … of consecutive days, all past the gate, and their generations."""
    config = settings(home)
    spec = config.dataset.spec()
    items = synthetic.make_items(spec, ITEMS)
    store = registry.client(config)
    store.create_registered_model(config.mlflow.model_name)
    root = Path(config.paths.at("index"))
    pairs = []
    for number in range(1, versions + 1):
        day = DAY + timedelta(days=number - 1)
        tags = {registry.RUN_DATE: day.isoformat(), registry.GATE: registry.PASSED, registry.LINEAGE: f"{number}" * 64}
        made = store.create_model_version(config.mlflow.model_name, (home / f"bundle-{number}").as_uri(), tags=tags)
        release = Release(
            day=day,
            model_name=config.mlflow.model_name,
            model_version=str(made.version),
            bundle=synthetic.make_bundle(spec, items, seed=number),
            items=items,
            user_state=synthetic.user_state(spec, items, USERS, day),
            cross_arrays=synthetic.write_crosses(home / f"crosses-{number}", spec, items, USERS, day),
        )
        with locked(root):
            pairs.append(Pair(version=str(made.version), generation=build(root, release)))
    return ReleaseWorld(config, tuple(pairs))


def day_of(number: int) -> date:
    """Day of a version."""
    return DAY + timedelta(days=number - 1)


def asks(action: str = "promote", who: str = "ann", reason: str = "because", **more: object) -> Request:
    """A request for a move."""
    return Request(action=action, who=who, reason=reason, **({"at": AT, "begun": AT} | more))  # type: ignore[arg-type]
