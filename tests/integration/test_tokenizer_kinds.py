"""Each kind of tokenizer goes the whole way once: the real DAGs on a small data set, from its fit to the index that serves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_shop import write_tables, write_tiny_place

from dig_models.index.reader import IndexReader
from dig_models.items import ItemTable
from dig_models.tokenizers.registry import KINDS, load_tokenizer
from dig_models.tokenizers.settings import DIG, TokenizersConfig
from jobs import registry, runs, sids_inputs
from jobs.config import Config, load
from jobs.train_inputs import lake_inputs

PROJECT = Path(__file__).resolve().parents[2]
D = date(2024, 3, 28)
NEXT, LAST = D + timedelta(days=1), D + timedelta(days=2)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


MADE_BEFOREHAND = [kind for kind in KINDS if kind != DIG]


def quick(kind: str) -> list[str]:
    """Settings of a kind under which it is fitted in a moment."""
    own = TokenizersConfig().of(kind)  # type: ignore[arg-type]
    return [f"tokenizers.{kind}.epochs=2"] if own and "epochs" in type(own).model_fields else []


@dataclass(frozen=True)
class World:
    """A home of its own on the lake that all share."""

    conf: Path
    sets: tuple[str, ...]

    @property
    def config(self) -> Config:
        return load(self.conf, self.sets, environ={})

    def call(self, *command: str, sets: bool = True) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIG_", "AIRFLOW"))}
        options = [part for one in self.sets if sets for part in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-m", *command, "--config", str(self.conf), *options],
            cwd=self.conf.parent,
            env=kept | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tokenized(self, day: date) -> sids_inputs.Made:
        """What the champion was trained on."""
        champion = registry.find(self.config, registry.CHAMPION)
        assert champion is not None and champion.date == day
        return sids_inputs.read(registry.fetch(self.config, champion) / sids_inputs.PLACE)

    def published(self) -> dict[str, tuple[int, ...]]:
        """SIDs by item id, as a reader of the index finds them."""
        reader = IndexReader.open(Path(self.config.paths.at("index")), checksums=True)
        return {str(reader.bundle.items.id_N[row]): reader.sid(row) for row in range(1, len(reader.bundle.items))}

    def encoded(self, day: date) -> dict[str, tuple[int, ...]]:
        """SIDs by item id, as the champion's tokenizer gives them now to all items known on the day."""
        spec = self.config.dataset.spec()
        items = ItemTable.from_arrow(lake_inputs(self.config, day).items_known(), spec)
        code_NL = load_tokenizer(self.tokenized(day).folder, spec).encode(items)
        return {str(items.id_N[row]): tuple(code_NL[row].tolist()) for row in range(1, len(items))}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings whose lake has every day that a run for D reads; the raw tables are beside them, in ``raw``."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "raw").mkdir()
    conf = write_tiny_place(folder, write_tables(folder / "raw"))
    first = load(conf, environ={}).run_window(D).train_first
    World(conf, ()).call("jobs.backfill", "--from", first.isoformat(), "--to", D.isoformat())
    return conf


def world_of(shared: Path, home: Path, kind: str) -> World:
    lake = load(shared, environ={}).paths.at("lake")
    return World(shared, (f"paths.home={home}", f"paths.lake={lake}", f"tokenizer={kind}", *quick(kind)))


@pytest.mark.parametrize("kind", MADE_BEFOREHAND)
def test_the_daily_run_publishes_the_sids_of_the_tokenizer(shared: Path, tmp_path: Path, kind: str) -> None:
    world = world_of(shared, tmp_path, kind)
    world.call("dags.run", "--date", D.isoformat())
    published, encoded = world.published(), world.encoded(D)
    assert len(published) >= 15 and len(set(published.values())) > 3
    assert published == {item: encoded[item] for item in published}, "what serves is what the tokenizer says"

    report, train = (runs.read(world.config, D, name) for name in ("sids", "train"))
    assert (report["kind"], train["tokenizer"]["kind"], train["ancestor"]) == (kind, kind, None)
    champion = registry.find(world.config, registry.CHAMPION)
    assert champion is not None and champion.tags["tokenizer"].startswith(kind)
    assert champion.tags["tokenizer"].endswith(f", lineage {report['lineage'][:12]}")
    seconds = runs.read(world.config, D, "stages")["seconds"]
    assert seconds["tokenize"] > 0
    assert kind in (runs.run_dir(world.config, D) / "report.html").read_text()
    world.call("jobs.cli", "index", "verify")
    assert world.call("jobs.cli", "recommend", "--user", "u1", "-k", "3").count("Item ") >= 3


def test_the_day_after_keeps_the_tokenizer_a_new_item_gets_nearest_codes_and_a_rollback_goes_back(shared: Path, tmp_path: Path) -> None:
    world = world_of(shared, tmp_path, "rqvae")
    world.call("dags.run", "--date", D.isoformat())
    first, before = world.tokenized(D), world.published()
    world.call("dags.run", "--date", NEXT.isoformat())
    second, after = world.tokenized(NEXT), world.published()
    assert second.record["kept"] == {"version": "1", "lineage": first.lineage}
    assert (second.folder / "tokenizer.safetensors").read_bytes() == (first.folder / "tokenizer.safetensors").read_bytes()
    both = before.keys() & after.keys()
    assert len(both) >= 15 and all(after[item] == before[item] for item in both)
    assert runs.read(world.config, NEXT, "summary")["sid"]["churn"] == 0.0

    products = pq.read_table(shared.parent / "raw" / "products.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([*products, products[4] | {"sku": "fresh"}]), shared.parent / "raw" / "products.parquet")
    for job in ("arrivals", "fresh"):
        world.call(f"jobs.{job}", "--date", LAST.isoformat())
    refreshed = world.published()
    assert refreshed.keys() - after.keys() == {"fresh"} and all(refreshed[item] == after[item] for item in after)
    assert max(refreshed["fresh"]) < world.config.model.codes
    world.call("jobs.cli", "index", "verify")

    world.call("jobs.cli", "rollback", "--reason", "a test", "--who", "me")
    assert world.published() == before
    assert world.tokenized(D).lineage == first.lineage
