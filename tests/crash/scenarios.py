"""Every scenario of the crash tests. A protocol gets its own by a list in a module of this folder, added here."""

from __future__ import annotations

from tests.crash import fetching, index, lake, mirror, promotion, refresh, registration, sids, spark_jobs, training
from tests.crash.harness import Scenario

PROTOCOLS = (lake, spark_jobs, index, sids, training, registration, fetching, promotion, mirror, refresh)
SCENARIOS: list[Scenario] = [scenario for protocol in PROTOCOLS for scenario in protocol.SCENARIOS]
