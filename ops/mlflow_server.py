"""MLflow over HTTP: records in PostgreSQL, artifacts through the server into the stack's folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from ops.http import answers
from ops.postgres import Postgres
from ops.service import LOOPBACK, Service
from ops.state import private_folder


@dataclass(frozen=True)
class Mlflow:
    """A server's folder, address and database."""

    folder: Path
    port: int
    postgres: Postgres
    password: str

    @property
    def url(self) -> str:
        """Tracking and registry URI."""
        return f"http://{LOOPBACK}:{self.port}"

    def service(self) -> Service:
        """The server; the database's address holds a password, so it comes by environment and not by command line."""
        hosts = ",".join(f"{name}{port}" for name in (LOOPBACK, "localhost") for port in ("", f":{self.port}"))
        options = {
            "--host": LOOPBACK,
            "--port": str(self.port),
            "--workers": "1",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--allowed-hosts": hosts,
        }
        return Service(
            name="mlflow",
            command=(sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *(part for pair in options.items() for part in pair)),
            environment={
                "MLFLOW_BACKEND_STORE_URI": self.postgres.uri("mlflow", self.password),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            prepare=self.prepare,
            healthy=lambda since: answers(f"{self.url}/health") == "OK",
            needs=("postgres",),
            url=self.url,
        )

    def prepare(self) -> None:
        """Folder and database."""
        private_folder(self.folder)
        private_folder(self.folder / "artifacts")
        self.postgres.ensure_database("mlflow", self.password)
