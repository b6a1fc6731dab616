"""The DAGs as Airflow parses them, with an Airflow home of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Airflow makes its home when it is imported, which the test modules do before any fixture runs.
HOME = tempfile.mkdtemp(prefix="airflow-")
os.environ |= {
    "AIRFLOW_HOME": HOME,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
}

DAGS = Path(__file__).resolve().parents[2] / "dags"


@pytest.fixture(scope="session")
def dags() -> Iterator[dict[str, Any]]:
    from airflow.dag_processing.dagbag import DagBag

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("DIG_")]:
            patch.delenv(name)
        bag = DagBag(DAGS)
        assert not bag.import_errors
        yield dict(bag.dags)
