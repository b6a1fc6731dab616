"""Airflow as it runs every day: four processes on PostgreSQL, with one administrator whose password was drawn at random."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from jobs.config import Config
from ops.http import answers
from ops.postgres import Postgres
from ops.programs import PROJECT
from ops.service import LOOPBACK, Service, StackError
from ops.state import State, private_folder, write_private
from ops.supervise import tail

ADMIN = "admin"
COMMANDS = {
    "api-server": (),
    "dag-processor": (),
    "triggerer": ("--skip-serve-logs",),  # the log servers would bind every interface; the api-server reads the same folder
    "scheduler": ("--skip-serve-logs",),
}
#: The scheduler comes last and goes first: a task that finds one of these away loses an attempt.
NEEDS_OF_TASKS = ("postgres", "redis", "mlflow", "api-server")


def pools(config: Config) -> dict[str, tuple[int, str]]:
    """Slots and description of each pool."""
    return {
        "dig_spark": (config.airflow.spark_slots, "Spark applications at once"),
        "dig_train": (config.airflow.train_slots, "trainings at once"),
        "dig_promotion": (1, "what moves the champion or the index: one at a time"),
    }


def settings(
    config: Config, secrets: Mapping[str, str], *, home: str, dags: str, database: str, host: str, port: int, events: str
) -> dict[str, str]:
    """Airflow's settings as environment variables: the one list of them, for this stack and for ``compose.yaml``.

    Args:
        config: settings in force.
        secrets: ``fernet``, ``jwt`` and ``api``.
        home: folder of Airflow.
        dags: folder of the DAGs.
        database: SQLAlchemy address of the metadata.
        host: where the api-server is reached and what it binds.
        port: its port.
        events: file that OpenLineage events are appended to.
    """
    spark = {"conn_type": "spark", "host": config.spark.master}
    return {
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__DAGS_FOLDER": dags,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(config.stack.parallelism),
        "AIRFLOW__CORE__FERNET_KEY": secrets["fernet"],
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{host}:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:ADMIN",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": f"{home}/passwords.json",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "AIRFLOW__API__HOST": host,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://{host}:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": secrets["api"],
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets["jwt"],
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": f"{home}/logs",
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "dig",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": events, "append": True}),
        f"AIRFLOW_CONN_{config.spark.connection_id.upper()}": json.dumps(spark),
    }


@dataclass(frozen=True)
class Airflow:
    """The four servers' folder, address and database."""

    folder: Path
    port: int
    postgres: Postgres
    state: State
    config: Config
    logs: Path

    @property
    def url(self) -> str:
        """Address of the user interface and the API."""
        return f"http://{LOOPBACK}:{self.port}"

    def settings(self, events: Path) -> dict[str, str]:
        """See ``settings``."""
        return settings(
            self.config,
            self.state.secrets,
            home=str(self.folder),
            dags=str(PROJECT / "dags"),
            database=self.postgres.uri("airflow", self.state.secrets["postgres_airflow"]),
            host=LOOPBACK,
            port=self.port,
            events=str(events),
        )

    def services(self, environment: Mapping[str, str]) -> list[Service]:
        """The servers, the first of which migrates the metadata; ``environment`` is that of all servers."""
        return [
            Service(
                name=name,
                command=(sys.executable, "-m", "airflow", name, *options),
                prepare=lambda: self.migrate(environment),
                healthy=lambda since, name=name: self.healthy(name, since),  # type: ignore[misc]
                needs=NEEDS_OF_TASKS if name == "scheduler" else ("postgres",),
                patience=5.0 if name == "triggerer" else Service.patience,  # it lingers for ten, and holds nothing but its post
                url=self.url if name == "api-server" else "",
            )
            for name, options in COMMANDS.items()
        ]

    def migrate(self, environment: Mapping[str, str]) -> None:
        """Folder, password file, database, and its tables as this release of Airflow wants them.

        Raises:
            StackError: the migration failed; with the end of its log.
        """
        private_folder(self.folder)
        write_private(self.folder / "passwords.json", json.dumps({ADMIN: self.state.secrets["admin"]}) + "\n")
        release = version("apache-airflow")
        if self.state.migrated == release:
            return
        self.postgres.ensure_database("airflow", self.state.secrets["postgres_airflow"])
        log = self.logs / "airflow-migrate.log"
        with log.open("ab") as out:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, check=False)
        if done.returncode:
            raise StackError(f"airflow db migrate ended with exit status {done.returncode}; the end of {log}:\n{tail(log)}")
        self.state.migrated = release

    def healthy(self, name: str, since: float) -> bool:
        """Whether a server answers (api-server) or has told the metadata that it lives since it was started (the others)."""
        found = answers(f"{self.url}/api/v2/monitor/health")
        if not isinstance(found, dict):
            return False
        if name == "api-server":
            return bool(found["metadatabase"]["status"] == "healthy")
        key = name.replace("-", "_")
        about = found.get(key) or {}
        beat = about.get(f"latest_{key}_heartbeat")
        return about.get("status") == "healthy" and beat is not None and datetime.fromisoformat(beat).timestamp() >= since
