"""Crash scenarios of the index: the real job on a lake of real shape, then the switch as a promotion makes it; the champion is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from dig_models.bundle import items_to_arrow, save_bundle
from dig_models.index import generation as g
from dig_models.index.diff import Sids
from dig_models.index.reader import IndexReader
from dig_models.index.writer import locked, retain, switch
from jobs import index as job
from jobs import registry, runs
from jobs.config import Config, load
from jobs.entry import Invocation, run
from jobs.lake import Lake
from tests import synthetic
from tests.crash.harness import Scenario, files_of

DAY = date(2017, 11, 15)
USERS = [f"u{i}" for i in range(6)]
ITEMS = [f"i{i}" for i in range(50)]


def config_of(root: Path) -> Config:
    return load("conf/local.yaml", [f"paths.home={root}"])


def world(root: Path, *, days: int = 3) -> None:
    """The lake of some days, each with other items, and the champion's bundle."""
    config = config_of(root)
    spec, lake = config.dataset.spec(), Lake(config.paths.at("lake"))
    for day in range(days):
        at, items = DAY + timedelta(days=day), synthetic.make_items(spec, [*ITEMS[day:], f"cold{day}"])
        features = items_to_arrow(items, spec, np.zeros((len(items), 0), dtype=np.int64))
        for table, rows in (("item_features", features), ("user_state", synthetic.user_state(spec, items, USERS, at))):
            with lake.stage_files(table, at) as stage:
                pq.write_table(rows, stage.path / "part-0.parquet")
                stage.commit(rows=len(rows), job="test", code="", config="", inputs={})
        with lake.stage_files("cross_arrays", at) as stage:
            synthetic.write_crosses(stage.path, spec, items, USERS, at)
            stage.commit(rows=1, job="test", code="", config="", inputs={})
    items = synthetic.make_items(spec, ITEMS)
    save_bundle(root / "bundle", synthetic.make_model(spec, items, seed=1), items, {"date": DAY.isoformat()})


def step(root: Path, *, day: int = 0, keep: int = 3) -> int:
    """``python -m jobs.index`` of a day, and the switch to what it built."""
    champion = registry.ModelRef(name="dig", version="1", run_id="r", tags={"date": DAY.isoformat()})
    registry.find = lambda config, alias: champion  # type: ignore[assignment]
    registry.fetch = lambda config, ref: root / "bundle"  # type: ignore[assignment]
    options = ["--date", str(DAY + timedelta(days=day)), "--config", "conf/local.yaml"]
    return run("index", build_and_switch, [*options, "--set", f"paths.home={root}", "--set", f"index.keep={keep}"], options=job._options)


def build_and_switch(call: Invocation) -> None:
    """The job, and the part of a promotion that concerns the index."""
    job.main(call)
    index = job.index_root(call.config)
    with locked(index):
        switch(index, runs.read(call.config, call.date, "index")["index"]["generation"])
        retain(index, call.config.index.keep)


def published(root: Path, *, days: int) -> None:
    """A world whose first days are published, in order."""
    world(root)
    for day in range(days):
        assert step(root, day=day) == 0


def damaged(root: Path) -> None:
    """The generation that is current lost bytes."""
    published(root, days=2)
    index = job.index_root(config_of(root))
    file = index / g.GENERATIONS / g.require_current(index) / g.SID_TO_ITEMS
    file.write_bytes(file.read_bytes()[:-1])


def look(root: Path) -> Mapping[str, str]:
    """The generation that serves; it is opened, every byte of it."""
    try:
        return {"current": IndexReader.open(job.index_root(config_of(root))).manifest.id}
    except g.IndexMissing as error:
        return {"current": "none" if "no index was published" in str(error) else "unreadable"}
    except g.IndexCorrupt:
        return {"current": "unreadable"}


def read(root: Path) -> tuple[str, ...]:
    """One request to the index as serving makes it: generation, model version and SIDs, which belong together.

    Raises:
        IndexMissing, IndexCorrupt: there is none that can be read.
    """
    return answer(job.index_root(config_of(root)))


def answer(index: Path) -> tuple[str, ...]:
    """See ``read``."""
    reader = IndexReader.open(index)
    found = reader.retriever.retrieve(reader.state, np.arange(1), k=3, beam=5, rerank=5)
    assert (found.item_GJ > 0).any()
    code_ML = Sids.read(reader.folder, reader.manifest.id).code_ML
    sids = "the bundle's" if np.array_equal(code_ML, reader.bundle.codes_NL[1:]) else "others"
    return reader.manifest.id, reader.manifest.model_version, sids, hashlib.sha256(code_ML.tobytes()).hexdigest()


def leaves(root: Path) -> Mapping[str, object]:
    """Every file of the index and of the runs."""
    return files_of(root, but=("lake/", "bundle/"))


def _scenario(
    situation: str,
    prepare: Callable[[Path], None],
    points: tuple[str, ...],
    step: Callable[[Path], int],
    full: tuple[str, ...] = (),
    *,
    poll: bool = True,
) -> Scenario:
    def named(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name if "." in name else f"index.{name}" for name in names)

    return Scenario(
        area="index",
        situation=situation,
        prepare=prepare,
        step=step,
        look=look,
        leaves=leaves,
        points=named(points),
        full=named(full),
        poll=read if poll else None,
    )


WRITING = ("model_written", "maps_written", "arrays_written", "state_written")
# The second file that is replaced is the manifest, the third index.json, the fourth CURRENT.
BUILT = ("delta_written", "manifest_written", "file.written@2", "synced", "renamed", "installed", "file.written@3")
SWITCH = (*BUILT, "verified", "file.written@4", "switched")
SCENARIOS = [
    _scenario("first generation", world, ("cleared", *WRITING, "bundle.weights_written", *SWITCH), step),
    _scenario(
        "next day, one generation too many",
        partial(published, days=2),
        ("cleared", *WRITING, "bundle.weights_written", *SWITCH, "file.replaced@4", "retired", "retention_done"),
        partial(step, day=2, keep=2),
        ("cleared", *WRITING, "bundle.weights_written", "delta_written", "file.written@2", "file.written@3", "file.written@4"),
    ),
    _scenario("current generation damaged", damaged, ("damaged_moved_aside", "renamed", "installed"), partial(step, day=1), poll=False),
]
