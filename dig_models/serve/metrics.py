"""What a server counts, in the text format of Prometheus. Labels hold routes, statuses and generations, never a user."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from dig_models.serve.service import Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("dig_serve_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self._seconds = Histogram("dig_serve_request_seconds", "Time to answer", ("route",), registry=self.registry, buckets=SECONDS)
        self._batch = Histogram("dig_serve_batch_users", "Users answered together", registry=self.registry, buckets=USERS)
        self._switches = Counter("dig_serve_switches", "Generations that began to serve", registry=self.registry)
        self._failures = Counter("dig_serve_open_failures", "Tries to open a generation that failed", registry=self.registry)
        self._open = Gauge("dig_serve_generations_open", "Generations in memory", registry=self.registry)
        self._open_seconds = Gauge("dig_serve_open_seconds", "Time to open and warm what serves", registry=self.registry)
        self._loaded = Gauge("dig_serve_generation_loaded_timestamp_seconds", "When what serves began to", registry=self.registry)
        self._date = Gauge(
            "dig_serve_generation_date_timestamp_seconds", "Midnight (UTC) of the day that is served", registry=self.registry
        )
        self._age = Gauge("dig_serve_generation_age_seconds", "Time since the day that is served was over (UTC)", registry=self.registry)
        self._generation = Info("dig_serve_generation", "What serves", registry=self.registry)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Show the length of a queue."""
        Gauge("dig_serve_waiting", "Questions that wait for a thread", registry=self.registry).set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; ``route`` is a path of the application, not what the client sent."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batched(self, users: int) -> None:
        """So many users were answered together."""
        self._batch.observe(users)

    def switched(self, service: Service, seconds: float) -> None:
        """A generation begins to serve."""
        source = service.source
        midnight = datetime(source.day.year, source.day.month, source.day.day, tzinfo=UTC).timestamp()
        self._switches.inc()
        self._open.inc()
        self._open_seconds.set(seconds)
        self._loaded.set(time.time())
        self._date.set(midnight)
        self._age.set_function(lambda: time.time() - midnight - 86_400)
        self._generation.info(
            {"generation": source.generation, "date": source.day.isoformat(), "model": source.model_name, "version": source.model_version}
        )

    def failed(self) -> None:
        """A generation could not be opened."""
        self._failures.inc()

    def released(self) -> None:
        """A generation that served is out of memory."""
        self._open.dec()

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
