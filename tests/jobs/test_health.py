"""A container is healthy if what it was started for is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from jobs import health
from jobs.config import ConfigError
from jobs.health import Unhealthy, airflow_process, check

JOB = ["/usr/bin/tini", "--", "python", "-m", "jobs.examples", "--date", "2017-11-15"]
SERVER = ["/usr/bin/tini", "--", "/opt/venv/bin/airflow", "api-server"]


class Answer(BaseHTTPRequestHandler):
    """Says of the metadata database what the server was told to say."""

    def do_GET(self) -> None:
        body = json.dumps({"metadatabase": {"status": self.server.status}}).encode()  # type: ignore[attr-defined]
        self.send_response(200 if self.path == "/api/v2/monitor/health" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    found = HTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.setenv("AIRFLOW__API__PORT", str(found.server_port))
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIG_PATHS__HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("command", "process"),
    [
        (SERVER, "api-server"),
        (["docker-init", "--", "/usr/bin/tini", "--", "airflow", "scheduler", "--skip-serve-logs"], "scheduler"),
        (JOB, None),
        (["airflow"], None),
        ([""], None),
    ],
)
def test_the_process_of_airflow_is_found_behind_any_init(command: list[str], process: str | None) -> None:
    assert airflow_process(command) == process


def test_a_job_needs_its_settings_and_a_home_it_can_write_to(home: Path) -> None:
    assert check(JOB) == "settings and home"
    assert list(home.iterdir()) == []


def test_a_home_that_cannot_be_written_to_is_named(home: Path) -> None:
    home.write_text("a file, not a folder")
    with pytest.raises(Unhealthy, match=rf"paths.home {home}: expected a folder that user {os.getuid()} can write to"):
        check(JOB)


def test_wrong_settings_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_TRAIN__RANKS", "0")
    with pytest.raises(ConfigError, match=r"train\.ranks"):
        check(JOB)


def test_the_api_server_is_asked_for_its_database(server: HTTPServer) -> None:
    server.status = "healthy"  # type: ignore[attr-defined]
    assert check(SERVER) == "settings, home and Airflow's api-server"
    server.status = "unhealthy"  # type: ignore[attr-defined]
    with pytest.raises(Unhealthy, match="metadata database is unhealthy"):
        check(SERVER)


def test_an_api_server_that_is_not_there_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__PORT", "1")
    with pytest.raises(Unhealthy, match="expected an answer"):
        check(SERVER)


@pytest.mark.slow
def test_a_scheduler_is_healthy_while_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real metadata database; the heartbeat is one that Airflow's own job record writes."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    monkeypatch.setattr(health, "TIMEOUT_SECONDS", 120)
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)
    command = ["/usr/bin/tini", "--", "airflow", "scheduler"]
    with pytest.raises(Unhealthy, match=r"SchedulerJob.*No alive jobs"):
        check(command)
    beat = (
        "from airflow.jobs.job import Job; from airflow.utils.session import create_session\n"
        "with create_session() as session:\n"
        "    job = Job()\n"
        "    job.job_type = 'SchedulerJob'\n"
        "    job.prepare_for_execution(session=session)"
    )
    subprocess.run([sys.executable, "-c", beat], check=True)
    assert check(command) == "settings, home and Airflow's scheduler"


def test_the_command_says_why_and_by_its_exit_status(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert health.main() == 0
    assert capsys.readouterr().out.startswith("healthy: settings and home")
    home.rmdir()
    home.write_text("")
    assert health.main() == 1
    assert capsys.readouterr().err.startswith("unhealthy: paths.home")
