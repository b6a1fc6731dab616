"""A day on a live Airflow: asked for by REST, from source data to a champion and its index, by asset links alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import registry
from ops.client import StackClient

CHAIN = ("dig_features", "dig_retrain", "dig_publish")
DEADLINE = 3600.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


@pytest.fixture(scope="module")
def unpaused(live: StackClient):
    """The stack with every DAG unpaused; paused again at the end are those that were."""
    live.await_dags(CHAIN)
    paused = [dag_id for dag_id, is_paused in live.dags().items() if is_paused]
    live.unpause(*paused)
    yield live
    live.pause(*paused)


def test_a_day_asked_for_by_rest_ends_with_a_champion_and_its_index(unpaused: StackClient) -> None:
    stack, config = unpaused, unpaused.config
    day = config.dataset.default_date.isoformat()
    known = {dag_id: {run["dag_run_id"] for run in stack.runs(dag_id)} for dag_id in CHAIN}
    run_id = stack.trigger("dig_features", {"date": day, "fill": True})
    stack.wait("dig_features", run_id, DEADLINE)
    for dag_id in CHAIN[1:]:
        stack.wait(dag_id, stack.await_run(dag_id, day, known=known[dag_id]), DEADLINE)
    champion = registry.find(config, registry.CHAMPION)
    assert champion is not None
    assert champion.date == config.dataset.default_date
    current = (Path(config.paths.at("index")) / "CURRENT").read_text().strip()
    assert current.startswith(f"{day}-v{champion.version}-")
