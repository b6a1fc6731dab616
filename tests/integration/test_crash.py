"""Every fault point: killed there, readers see the old state or the new one, whole; run again, all is as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dig_models.faults import POINTS
from tests.crash import harness, index, lake, training
from tests.crash.harness import Scenario, World
from tests.crash.scenarios import SCENARIOS
from tests.crash.table import visited
from tests.jobs import train_world as tw
from tests.mlflow_server import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gateway(spark: SparkSession) -> str:
    """Port and secret of the Java side of the tests' session, which the processes of a scenario share."""
    parameters = spark.sparkContext._gateway.gateway_parameters  # type: ignore[union-attr]
    return json.dumps([parameters.port, parameters.auth_token])


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server."""
    server = Server(tmp_path_factory.mktemp("mlflow") / "server")
    try:
        server.start()
        server.ready()
        yield server.address
    finally:
        server.stop()


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[Scenario], World]:
    """The world of a scenario, built when first asked for."""
    built: dict[str, World] = {}

    def world(scenario: Scenario) -> World:
        if scenario.name not in built:
            needs = request.getfixturevalue(scenario.needs) if scenario.needs else ""
            built[scenario.name] = World(scenario, tmp_path_factory.mktemp(scenario.area), needs)
        return built[scenario.name]

    return world


def visits(points: str) -> pytest.MarkDecorator:
    """Each point of each scenario, scenario after scenario."""
    found = [(scenario, point) for scenario in SCENARIOS for point in getattr(scenario, points)]
    return pytest.mark.parametrize(("scenario", "point"), found, ids=[f"{s.name}: {p}" for s, p in found])


@visits("points")
def test_a_kill_leaves_the_old_state_or_the_new_one_and_a_rerun_ends_as_ever(
    world_of: Callable[[Scenario], World], scenario: Scenario, point: str
) -> None:
    harness.kill(world_of(scenario), point)


@visits("full")
def test_a_full_disk_is_said_in_one_line_and_a_rerun_with_space_ends_as_ever(
    world_of: Callable[[Scenario], World], scenario: Scenario, point: str
) -> None:
    harness.full(world_of(scenario), point)


def mounted(folder: Path, size: str) -> AbstractContextManager[object]:
    """A small disk of its own below a folder, gone afterwards."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    stack = ExitStack()
    stack.callback(subprocess.run, ["umount", folder], check=True)
    return stack


def fill(folder: Path) -> Path:
    """Take all the space there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(65_536))
    with path.open("ab", buffering=0) as out, suppress(OSError):
        while True:
            out.write(b"0")
    return path


ON_SMALL_DISK = [s for s in SCENARIOS if s.name in ("partition, day replaced", "index, next day, one generation too many")]


@pytest.mark.parametrize("free", [0, 8_192, 30_000])
@pytest.mark.parametrize("scenario", ON_SMALL_DISK, ids=lambda scenario: scenario.area)
def test_a_disk_that_is_really_full_is_said_in_one_line_and_space_mends_it(scenario: Scenario, free: int, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    with mounted(place, "24m"):
        world = World(scenario, place, log=tmp_path / "log")
        world.restore()
        filler = fill(place)
        os.truncate(filler, filler.stat().st_size - free)
        status, said = world.end(scenario.step), world.log.read_text()
        assert status == 1 and "no space left to write it" in said and str(world.root) in said and "Traceback" not in said, said
        assert set(world.look().items()) <= set(world.before.items()) | set(world.after.items())
        filler.unlink()
        world.run(scenario.step)
        assert harness.compare(world) == "as undisturbed"


def test_two_runs_of_a_date_do_not_meet_in_the_lake(tmp_path: Path) -> None:
    first = lake.step
    process = harness.start(first, tmp_path, fault=f"partition.staged=pause:{tmp_path}", log=tmp_path / "first.log")
    harness.until((tmp_path / "partition.staged").exists, "the first run to stage")
    second = harness.start(first, tmp_path, log=tmp_path / "second.log")
    assert harness.ended(second) == 1  # to be tried again: the first may end well
    said = (tmp_path / "second.log").read_text()
    assert f"held by another run that builds the same days (process {process.pid} on " in said and "Traceback" not in said
    (tmp_path / "partition.staged").unlink()
    assert harness.ended(process) == 0
    assert lake.look(tmp_path) == {str(day): "2" for day in lake.DAYS}


def test_two_publications_wait_for_each_other_and_end_with_one_generation(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    assert harness.ended(harness.start(index.world, world, log=tmp_path / "world.log")) == 0
    first = harness.start(index.step, world, fault=f"index.synced=pause:{tmp_path}", log=tmp_path / "first.log")
    harness.until((tmp_path / "index.synced").exists, "the first publication to stage")
    second, log = harness.start(index.step, world, log=tmp_path / "second.log"), tmp_path / "second.log"
    harness.until(lambda: f"held by process {first.pid} on " in log.read_text(), "the second to say whom it waits for")
    (tmp_path / "index.synced").unlink()
    assert (harness.ended(first), harness.ended(second)) == (0, 0)
    assert len(list((world / "index" / "generations").iterdir())) == 1
    assert "is there already" in log.read_text()


def test_two_trainings_of_a_date_do_not_meet(world_of: Callable[[Scenario], World], tmp_path: Path) -> None:
    world = world_of(next(s for s in SCENARIOS if s.area == "training"))
    world.restore()
    first = harness.start(training.fit, world.root, fault=f"training.fitted=pause:{tmp_path}", log=tmp_path / "first.log")
    harness.until((tmp_path / "training.fitted").exists, "the first training to end")
    assert harness.ended(harness.start(training.fit, world.root, log=tmp_path / "second.log")) == 1
    assert f"(process {first.pid} on " in (tmp_path / "second.log").read_text()
    (tmp_path / "training.fitted").unlink()
    assert harness.ended(first) == 0
    assert harness.compare(world) == "as undisturbed"


def torchrun(root: Path, fault: str = "") -> int:
    """A real training by two ranks."""
    environment = os.environ | ({"DIG_FAULT": fault} if fault else {})
    sets = [f"paths.home={root}", *(f"model.{k}={v}" for k, v in tw.ew.SMALL.items()), *tw.SETS, "train.ranks=2"]
    command = [sys.executable, "-m", "jobs.launch", "--config", "conf/local.yaml", "--date", str(tw.DAY)]
    command += [part for one in sets for part in ("--set", one)]
    with (root / "torchrun.log").open("ab") as log:
        return subprocess.run(command, env=environment, stdout=log, stderr=log).returncode


def test_a_rank_that_is_killed_ends_torchrun_and_the_rerun_gives_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for name, fault in (("whole", ""), ("killed", "checkpoint.renamed=kill")):
        root = tmp_path / name
        root.mkdir()
        tw.build(root)
        if fault:
            assert torchrun(root, fault) == 1
            assert "SIGKILL" in (root / "torchrun.log").read_text()
            assert len(list((training.home(root) / "steps").glob("step-*"))) == 1
        assert torchrun(root) == 0, (root / "torchrun.log").read_text()
        assert ("resuming from" in (root / "torchrun.log").read_text()) == bool(fault)
        weights.append((training.home(root) / "bundle" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_every_listed_point_was_visited() -> None:
    assert sorted(POINTS.keys() - visited()) == []
