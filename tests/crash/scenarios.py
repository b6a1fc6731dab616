"""Every scenario of the crash tests. A protocol gets its own by a list in a module of this folder, added here."""

from __future__ import annotations

from tests.crash import fetching, index, lake, promotion, registration, spark_jobs, training
from tests.crash.harness import Scenario

SCENARIOS: list[Scenario] = [
    *lake.SCENARIOS,
    *index.SCENARIOS,
    *training.SCENARIOS,
    *registration.SCENARIOS,
    *fetching.SCENARIOS,
    *promotion.SCENARIOS,
    *spark_jobs.SCENARIOS,
]
