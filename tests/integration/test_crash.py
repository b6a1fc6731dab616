"""Every fault point: killed there, readers see the old state or the new one, whole; run again, all is as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from pyspark.sql import SparkSession

from dig_models.faults import POINTS
from tests.crash import harness
from tests.crash.harness import Scenario, World
from tests.crash.scenarios import SCENARIOS
from tests.crash.table import visited
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


def test_every_listed_point_was_visited() -> None:
    assert sorted(POINTS.keys() - visited()) == []
