"""What is started: on loopback alone, without a secret where every user of the machine could read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import load
from ops import airflow_servers, environment, postgres
from ops.service import StackError
from ops.stack import Stack
from ops.state import State


@pytest.fixture
def stack(tiny_conf, monkeypatch) -> Stack:
    for name in [name for name in os.environ if name.startswith(("DIG_", "AIRFLOW"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAVA_HOME", "/java")
    return Stack(load(tiny_conf), tiny_conf, [])


@pytest.fixture
def state() -> State:
    ports = {"postgres": 15432, "redis": 16379, "mlflow": 15000, "airflow": 18080}
    return State(ports=ports, postgres="/data")


@pytest.fixture
def services(stack, state):
    return {service.name: service for service in stack.services(state, (Path("/postgres/bin"), Path("/redis-server")))[0]}


def test_the_servers_start_after_what_they_need(services):
    names = list(services)
    assert names == ["postgres", "redis", "mlflow", "api-server", "dag-processor", "triggerer", "scheduler"]
    assert all(names.index(need) < names.index(name) for name, service in services.items() for need in service.needs)
    assert "api-server" in services["scheduler"].needs, "tasks report to it"


def test_every_server_that_listens_binds_loopback(services, state):
    options = list(services["postgres"].command)
    assert "listen_addresses=127.0.0.1" in options
    assert "unix_socket_directories=" in options
    assert "--host 127.0.0.1 --port 15000" in " ".join(services["mlflow"].command)
    assert state.environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert state.environment["AIRFLOW__API__PORT"] == "18080"
    # The log servers of these two would bind every interface.
    assert "--skip-serve-logs" in services["scheduler"].command
    assert "--skip-serve-logs" in services["triggerer"].command


def test_redis_gets_address_and_password_from_a_private_file(stack, state, services):
    stack.folder.mkdir(parents=True)
    services["redis"].prepare()
    conf = stack.folder / "redis" / "redis.conf"
    assert conf.stat().st_mode & 0o777 == 0o600
    lines = conf.read_text().splitlines()
    assert {"bind 127.0.0.1", "port 16379", f"requirepass {state.secrets['redis']}", "daemonize no"} <= set(lines)


def test_no_command_line_and_no_address_to_show_holds_a_secret(services, state):
    shown = " ".join(" ".join((*service.command, service.url)) for service in services.values())
    assert not [name for name, secret in state.secrets.items() if secret in shown]


def test_airflow_has_one_administrator_with_a_password(stack, state, services):
    env = state.environment
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:ADMIN"
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS"] == "False"
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:18080/execution/"
    assert json.loads(env["AIRFLOW_CONN_SPARK_DEFAULT"]) == {"conn_type": "spark", "host": "local[2]"}
    events = json.loads(env["AIRFLOW__OPENLINEAGE__TRANSPORT"])
    assert events == {"type": "file", "log_file_path": str(stack.folder / "openlineage" / "events.jsonl"), "append": True}


def test_promotions_are_one_at_a_time_whatever_the_settings(stack):
    config = load(stack.place, ["airflow.spark_slots=3", "airflow.train_slots=2"])
    assert {name: slots for name, (slots, _) in airflow_servers.pools(config).items()} == {
        "dig_spark": 3,
        "dig_train": 2,
        "dig_promotion": 1,
    }


def test_tasks_find_settings_registry_and_programs(stack, state, services):
    env = state.environment
    assert env["DIG_CONFIG"] == str(stack.place)
    assert env["DIG_PATHS__HOME"] == str(stack.home)
    assert env["DIG_MLFLOW__TRACKING_URI"] == "http://127.0.0.1:15000"
    assert env["JAVA_HOME"] == "/java"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert (Path(env["PYTHONPATH"].split(os.pathsep)[0]) / "dags").is_dir()
    config = load(env["DIG_CONFIG"], environ=env)
    assert config.tracking_uri() == "http://127.0.0.1:15000"
    assert config.paths.at("index") == str(stack.home / "live" / "index")
    assert config.paths.at("lake") == str(stack.home / "lake"), "the rows are the same for all"


def test_an_index_that_was_given_a_place_keeps_it(tiny_conf, state):
    config = load(tiny_conf, ["paths.index=/mnt/index"], environ={})
    Stack(config, tiny_conf, ["paths.index=/mnt/index"]).services(state, (Path("/postgres/bin"), Path("/redis-server")))
    assert "DIG_PATHS__INDEX" not in state.environment
    assert load(state.environment["DIG_CONFIG"], environ=state.environment).paths.at("index") == "/mnt/index"


def test_the_callers_settings_stay_in_force_but_not_over_the_stacks_own(tiny_conf):
    base = {"DIG_TRAIN__EPOCHS": "3", "DIG_MLFLOW__TRACKING_URI": "http://elsewhere", "DIG_PROGRESS": "p", "OTHER": "x", "NO_PROXY": "a,b"}
    mine = environment.pipeline(
        base, config=tiny_conf, home=Path("/home"), sets=["train.epochs=4"], mlflow="http://here", redis="redis://", java="/java"
    )
    assert mine["DIG_TRAIN__EPOCHS"] == "3"
    assert mine["DIG_MLFLOW__TRACKING_URI"] == "http://here"
    assert json.loads(mine["DIG_SET"]) == ["train.epochs=4"]
    assert mine["NO_PROXY"] == "127.0.0.1,localhost,a,b"
    assert not {"DIG_PROGRESS", "OTHER"} & set(mine)


def test_a_shell_takes_the_exports_as_they_are_meant():
    value = 'it\'s $HOME; `date` "x"'
    lines = environment.exports({"ODD": value})
    done = subprocess.run(["bash", "-c", f'{lines}\nprintf %s "$ODD"'], capture_output=True, text=True, check=True)
    assert done.stdout == value


def test_a_home_that_is_no_folder_of_this_machine_is_refused(tiny_conf):
    config = load(tiny_conf, ["paths.home=s3://bucket/dig"])
    with pytest.raises(StackError, match=r"paths\.home s3://bucket/dig: .* folder of this machine"):
        Stack(config, tiny_conf, [])


def test_commands_on_a_stack_that_never_was_say_so(stack):
    told: list[str] = []
    stack.down(told.append)
    assert told == [f"no stack under {stack.home}"]
    assert stack.status() == []
    with pytest.raises(StackError, match="make up"):
        stack.environment()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_postgres_data_lie_where_its_user_gets_to(tmp_path):
    tmp_path.chmod(0o700)
    hidden = tmp_path / "stack"
    hidden.mkdir(mode=0o711)
    assert postgres.choose_folder(hidden, "abc").name == "dig-abc"
    assert postgres.reaches("postgres", postgres.choose_folder(hidden, "abc").parent)
    assert postgres.choose_folder(Path("/tmp"), "abc") == Path("/tmp/postgres")


@pytest.mark.skipif(os.geteuid() == 0, reason="root runs PostgreSQL as somebody else")
def test_everybody_else_keeps_the_data_in_the_stack(tmp_path):
    assert postgres.account() is None
    assert postgres.choose_folder(tmp_path, "abc") == tmp_path / "postgres"
