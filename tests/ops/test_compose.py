"""``compose.yaml``: the same stack for containers, with the same variables, no password in it, and nothing published beyond loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.config import load
from ops import airflow_servers, environment
from ops.state import SECRETS, State

PROJECT = Path(__file__).resolve().parents[2]
ONE_SHOT = {"airflow-init"}
#: What a container has of its own: its programs, and no proxy between the servers.
OF_THE_MACHINE = {"PATH", "PYTHONPATH", "JAVA_HOME", "NO_PROXY", "no_proxy"}
#: Settings that the local stack hands on by its settings file.
OF_COMPOSE = {"DIG_AIRFLOW__SPARK_SLOTS", "DIG_AIRFLOW__TRAIN_SLOTS"}
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")


@pytest.fixture(scope="module")
def text() -> str:
    return (PROJECT / "compose.yaml").read_text()


@pytest.fixture(scope="module")
def services(text) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(text)["services"])


@pytest.fixture
def variables(tiny_conf, tiny_config) -> dict[str, str]:
    """What the local stack gives its servers."""
    ours = environment.pipeline({}, config=tiny_conf, home=Path("/home"), sets=[], mlflow="m", redis="r", java="j")
    place = {"home": "h", "dags": "d", "database": "db", "host": "127.0.0.1", "port": 1, "events": "e"}
    return ours | airflow_servers.settings(tiny_config, State().secrets, **place)


def test_it_has_the_servers_of_the_local_stack(services):
    assert set(services) - ONE_SHOT == {"postgres", "redis", "mlflow", *AIRFLOW}


def test_every_server_has_a_health_check(services):
    assert {name for name, service in services.items() if "healthcheck" not in service} == ONE_SHOT
    waited = {name: need["condition"] for service in services.values() for name, need in service.get("depends_on", {}).items()}
    assert all(condition == "service_healthy" for name, condition in waited.items() if name not in ONE_SHOT)
    assert waited["airflow-init"] == "service_completed_successfully"


@pytest.mark.parametrize("name", AIRFLOW)
def test_airflow_and_its_tasks_get_the_variables_of_the_local_stack(services, variables, name):
    assert set(services[name]["environment"]) - OF_COMPOSE == set(variables) - OF_THE_MACHINE


def test_what_does_not_depend_on_the_place_is_the_same(services, variables):
    there = services["scheduler"]["environment"]
    same = ["EXECUTOR", "LOAD_EXAMPLES", "SIMPLE_AUTH_MANAGER_USERS", "SIMPLE_AUTH_MANAGER_ALL_ADMINS"]
    names = [
        *(f"AIRFLOW__CORE__{name}" for name in same),
        "AIRFLOW__OPENLINEAGE__NAMESPACE",
        "AIRFLOW__API__WORKERS",
        *environment.PATIENT_MLFLOW,
    ]
    assert {name: there[name] for name in names} == {name: variables[name] for name in names}


def test_the_pools_are_those_of_the_local_stack(services):
    made = re.findall(r"airflow pools set (\w+) (\S+) '(.+)'", services["airflow-init"]["command"][-1])
    ours = airflow_servers.pools(load(PROJECT / "conf" / "local.yaml", environ={}))
    assert {name: about for name, _, about in made} == {name: about for name, (_, about) in ours.items()}
    assert {name: slots for name, slots, _ in made}["dig_promotion"] == "1"


def test_every_secret_is_asked_for_and_none_has_a_default(text):
    assert set(environment.COMPOSE) == set(SECRETS)
    for name in environment.COMPOSE.values():
        uses = re.findall(rf"\$\{{{name}(.)(.)", text)
        assert uses, name
        assert set(uses) == {(":", "?")}, name
    odd = [line for line in text.splitlines() if re.search(r"(PASSWORD|SECRET|FERNET_KEY)[A-Z_]*: ", line) and ":?" not in line]
    assert odd == ["    AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE: /var/lib/dig/stack/airflow/passwords.json"]


def test_no_command_line_holds_a_secret(services):
    for service in services.values():
        assert not set(re.findall(r"\$\{(\w+)", str(service.get("command")))) & set(environment.COMPOSE.values())


def test_what_is_published_is_published_on_loopback(services):
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"redis", "mlflow", "api-server"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


@pytest.mark.slow
def test_the_secrets_that_it_asks_for_can_be_drawn():
    command = [sys.executable, "-m", "ops", "secrets"]
    drawn = [subprocess.run(command, cwd=PROJECT, env=os.environ, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    one, other = (dict(line.split("=", 1) for line in lines.splitlines()) for lines in drawn)
    assert set(one) == set(other) == set(environment.COMPOSE.values())
    assert not set(one.values()) & set(other.values())
