"""Ports: the wanted one or none, a free one kept for good, and never somebody else's."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from jobs.config import StackConfig
from ops import ports
from ops.service import StackError

FREE = StackConfig(mlflow_port=0, airflow_port=0)


@pytest.fixture
def foreign() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_zero_gives_four_different_free_ports():
    chosen = ports.choose(FREE, {}, set())
    assert set(chosen) == {"postgres", "redis", "mlflow", "airflow"}
    assert len(set(chosen.values())) == 4
    assert not any(ports.taken(port) for port in chosen.values())


def test_a_port_that_was_picked_is_kept():
    chosen = ports.choose(FREE, {}, set())
    assert ports.choose(FREE, chosen, set()) == chosen


def test_a_picked_port_that_was_taken_meanwhile_is_picked_anew_while_nothing_runs(foreign):
    chosen = ports.choose(FREE, {"redis": foreign}, set())
    assert chosen["redis"] != foreign


def test_a_picked_port_that_was_taken_is_an_error_while_others_rely_on_it(foreign):
    kept = ports.choose(FREE, {}, set()) | {"mlflow": foreign}
    with pytest.raises(StackError, match=rf"port {foreign} for mlflow .* stack\.mlflow_port"):
        ports.choose(FREE, kept, {"airflow"})


def test_a_fixed_port_that_somebody_else_holds_is_named_with_its_setting(foreign):
    with pytest.raises(StackError, match=rf"port {foreign} for airflow is taken .* stack\.airflow_port"):
        ports.choose(StackConfig(mlflow_port=0, airflow_port=foreign), {}, set())


def test_our_own_server_may_hold_its_port(foreign):
    kept = ports.choose(FREE, {}, set()) | {"airflow": foreign}
    assert ports.choose(FREE, kept, {"airflow"}) == kept


def test_a_port_cannot_be_changed_under_a_running_stack():
    kept = ports.choose(FREE, {}, set())
    with pytest.raises(StackError, match=r"stack\.mlflow_port is 5999, but the stack that runs uses \d+: stop it first"):
        ports.choose(StackConfig(mlflow_port=5999, airflow_port=0), kept, {"redis"})
