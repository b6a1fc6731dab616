"""Variables that a process needs to belong to the stack: a server, a task, or a user's shell."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.layers import SETS, inherited
from ops.programs import PROJECT
from ops.service import LOOPBACK
from ops.state import new_secret

#: A registry that is away for two minutes heals: waits of 0, 4, 8, 16, 32 and 64 s between the tries.
PATIENT_MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "6",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}


def pipeline(
    base: Mapping[str, str], *, config: Path, home: Path, sets: Sequence[str], mlflow: str, redis: str, java: str
) -> dict[str, str]:
    """What the jobs need: settings, addresses, and programs that are found by name.

    Args:
        base: environment of the caller; its ``DIG_…`` and ``AIRFLOW…`` variables stay in force where the stack does not decide.
        config: settings file.
        home: ``paths.home``; absolute, since tasks have working folders of their own.
        sets: ``key=value`` overrides.
        mlflow: tracking URI.
        redis: address with password.
        java: home of Java.
    """
    mine = {name: value for name, value in base.items() if name.startswith(("DIG_", "AIRFLOW")) and name != "DIG_PROGRESS"}
    mine |= {
        "DIG_CONFIG": str(config.resolve()),
        "DIG_PATHS__HOME": str(home),
        "DIG_MLFLOW__TRACKING_URI": mlflow,
        "REDIS_URL": redis,
        "JAVA_HOME": java,
        "PATH": _before(str(Path(sys.executable).parent), base.get("PATH", os.defpath)),
        "PYTHONPATH": _before(str(PROJECT), base.get("PYTHONPATH", "")),
        **{name: base.get(name, value) for name, value in PATIENT_MLFLOW.items()},
    }
    if sets:
        mine[SETS] = json.dumps([*inherited(base), *sets])
    for name in ("NO_PROXY", "no_proxy"):
        mine[name] = _before(LOOPBACK, _before("localhost", base.get(name, ""), ","), ",")
    return mine


def _before(first: str, rest: str, between: str = os.pathsep) -> str:
    return between.join([first, *(part for part in rest.split(between) if part and part != first)])


#: Name of each secret in ``compose.yaml``.
COMPOSE = {
    "postgres": "POSTGRES_PASSWORD",
    "postgres_airflow": "POSTGRES_AIRFLOW_PASSWORD",
    "postgres_mlflow": "POSTGRES_MLFLOW_PASSWORD",
    "redis": "REDIS_PASSWORD",
    "admin": "AIRFLOW_ADMIN_PASSWORD",
    "fernet": "AIRFLOW_FERNET_KEY",
    "jwt": "AIRFLOW_JWT_SECRET",
    "api": "AIRFLOW_API_SECRET",
}


def compose_secrets() -> str:
    """Secrets for ``compose.yaml``, drawn anew, as lines of its ``.env``."""
    return "".join(f"{name}={new_secret(secret)}\n" for secret, name in COMPOSE.items())


def exports(environment: Mapping[str, str]) -> str:
    """Lines for ``eval`` in a shell."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))
