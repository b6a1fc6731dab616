"""The stack as a whole: which servers there are, and how they go up and down together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dig_models.files import exclusive
from jobs.config import Config
from jobs.processes import stop as stop_processes
from ops import client, environment, ports, postgres, programs, supervise
from ops.airflow_servers import Airflow, pools
from ops.http import HttpError
from ops.mlflow_server import Mlflow
from ops.postgres import Postgres
from ops.redis_server import Redis
from ops.service import Service, StackError
from ops.state import Started, State, load_state, private_folder, save_state

Tell = Callable[[str], None]
RECOVERS_WITHIN = 45.0
Health = Literal["healthy", "not healthy", "dead", "not started"]


@dataclass(frozen=True)
class Seen:
    """How a server is.

    Attributes:
        log: what it printed.
    """

    service: Service
    health: Health
    pid: int | None
    log: Path


class Stack:
    """The servers of one ``paths.home``.

    Args:
        config: settings in force.
        place: the settings file.
        sets: ``key=value`` overrides, handed on to the tasks.

    Raises:
        StackError: ``paths.home`` is no local folder.
    """

    def __init__(self, config: Config, place: Path, sets: list[str]) -> None:
        if "://" in config.paths.home:
            raise StackError(f"paths.home {config.paths.home}: the local stack needs a folder of this machine")
        self.config, self.place, self.sets = config, place, sets
        self.home = Path(config.paths.home).resolve()
        self.folder = self.home / "stack"
        self.released = self.home / "live"
        self.logs = self.folder / "logs"
        self.state: State | None = load_state(self.folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with exclusive(self.home / "stack.lock"):
            self.state = load_state(self.folder)
            yield

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _running(self, state: State) -> set[str]:
        return {name for name, process in state.processes.items() if supervise.alive(process)}

    def services(self, state: State, found: tuple[Path, Path] | None = None) -> tuple[list[Service], dict[str, str]]:
        """The servers in the order in which they start, and the environment that all of them get.

        Records in the state what their clients need.

        Args:
            state: ports and secrets.
            found: where PostgreSQL's programs and ``redis-server`` are; by default they are looked for, and installed where possible.
        """
        programs_of_postgres, program_of_redis = found or programs.databases()
        database = Postgres(programs_of_postgres, Path(state.postgres), state.ports["postgres"], state.secrets["postgres"])
        cache = Redis(program_of_redis, self.folder / "redis", state.ports["redis"], state.secrets["redis"])
        registry = Mlflow(self.folder / "mlflow", state.ports["mlflow"], database, state.secrets["postgres_mlflow"])
        airflow = Airflow(self.folder / "airflow", state.ports["airflow"], database, state, self.config, self.logs)
        base = {name: value for name, value in os.environ.items() if name != "DIG_PROGRESS"}
        mine = environment.pipeline(
            base,
            config=self.place,
            home=self.home,
            sets=self.sets,
            mlflow=registry.url,
            redis=cache.uri,
            java=base.get("JAVA_HOME") or state.environment.get("JAVA_HOME") or programs.java_home(),
        )
        # Versions of the stack's registry are not those of another: what names them lies apart from that of runs without a server.
        for name in ("index", "runs"):
            if not getattr(self.config.paths, name):
                mine[f"DIG_PATHS__{name.upper()}"] = str(self.released / name)
        state.environment = mine | airflow.settings(self.folder / "openlineage" / "events.jsonl")
        # Titles of processes would otherwise be written over the environment, and with it the marker.
        shared = {**base, **state.environment, supervise.MARKER: state.marker, "SPT_NOENV": "1"}
        return [database.service(), cache.service(), registry.service(), *airflow.services(shared)], shared

    def up(self, tell: Tell) -> None:
        """Start what does not run, wait until everything is healthy, and say where it is.

        Raises:
            StackError: a server does not start, with the end of its log; the others keep running.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with self._alone():
            state = self._laid_out()
            services, shared = self.services(state)
            save_state(self.folder, state)
            before = dict(state.processes)
            for service in services:
                self._start(service, services, shared, state, tell)
            for service in services:
                self._await(service, services, shared, state, tell, fresh=state.processes[service.name] != before.get(service.name))
            self._make_pools()
            self._tell_where(services, state, tell)

    def _laid_out(self) -> State:
        # Open to be passed through, for PostgreSQL's own user; nothing but that user's folder is open inside.
        private_folder(self.folder, 0o711)
        for name in ("logs", "openlineage"):
            private_folder(self.folder / name)
        state = self.state = self.state or State()
        state.config = str(self.place.resolve())
        for dead in (process for process in state.processes.values() if not supervise.alive(process)):
            stop_processes(supervise.left_by(dead, state.marker))
        state.ports = ports.choose(self.config.stack, state.ports, self._holding(state))
        state.postgres = state.postgres or str(postgres.choose_folder(self.folder, state.marker))
        save_state(self.folder, state)
        return state

    def _holding(self, state: State) -> set[str]:
        running = self._running(state)
        return {"airflow" if name == "api-server" else name for name in running}

    def _start(self, service: Service, services: list[Service], shared: Mapping[str, str], state: State, tell: Tell) -> None:
        process = state.processes.get(service.name)
        if process is not None and supervise.alive(process):
            tell(f"{service.name} runs already (pid {process.pid})")
            return
        for needed in services:
            if needed.name in service.needs:
                supervise.await_health(needed, state.processes[needed.name], self._log(needed.name))
        service.prepare()
        state.processes[service.name] = supervise.spawn(service, self._log(service.name), shared, self._cwd(service))
        save_state(self.folder, state)
        tell(f"{service.name} starts (pid {state.processes[service.name].pid})")

    def _await(
        self, service: Service, services: list[Service], shared: Mapping[str, str], state: State, tell: Tell, *, fresh: bool
    ) -> None:
        """Wait until a server is healthy; one from before that does not recover from what it lost is started again."""
        process, log = state.processes[service.name], self._log(service.name)
        try:
            supervise.await_health(service, process, log, supervise.HEALTHY_WITHIN if fresh else RECOVERS_WITHIN)
        except StackError:
            if fresh:
                raise
            tell(f"{service.name} (pid {process.pid}) does not recover: stopping it")
            for _ in supervise.stop({service.name: process}):
                pass
            self._start(service, services, shared, state, tell)
            supervise.await_health(service, state.processes[service.name], log)

    def _cwd(self, service: Service) -> Path:
        # Tasks resolve relative paths of the settings as the caller would; another user may not get there.
        return Path("/") if service.account else Path.cwd()

    def _make_pools(self) -> None:
        airflow = client.StackClient.at(self.home)
        try:
            there = {pool["name"]: pool["slots"] for pool in airflow.api("GET", "/pools", limit=100)["pools"]}
            for name, (slots, description) in pools(self.config).items():
                body = {"slots": slots, "description": description, "include_deferred": False}
                if name not in there:
                    airflow.api("POST", "/pools", {"name": name, **body})
                elif there[name] != slots:
                    airflow.api("PATCH", f"/pools/{name}", {"pool": name, **body})
        except (HttpError, OSError) as error:
            raise StackError(f"Airflow's pools cannot be set: {error}") from None

    def _tell_where(self, services: list[Service], state: State, tell: Tell) -> None:
        tell("")
        for service in services:
            if service.url:
                tell(f"{'airflow' if service.name == 'api-server' else service.name:<10}{service.url}")
        tell(f"login     admin / {state.secrets['admin']}")
        tell(f"index     {state.environment.get('DIG_PATHS__INDEX') or self.config.paths.at('index')}")
        tell(f"logs      {self.logs}")
        tell('a shell   eval "$(python -m ops env)" and then airflow …, dig …')

    def down(self, tell: Tell, *, purge: bool = False) -> None:
        """Stop what ``up`` has started, what others need last, and what that has started.

        Args:
            tell: hears what happens.
            purge: remove the stack's folder too: databases, registry and its artifacts, Airflow's history, logs, secrets; and
                what names versions of that registry: index and records of runs.
        """
        if not self.folder.is_dir():
            tell(f"no stack under {self.home}")
            return
        with self._alone():
            state = self.state
            if state is not None:
                self._stop_all(state, tell)
                if purge and state.postgres:
                    shutil.rmtree(state.postgres, ignore_errors=True)
            if purge:
                shutil.rmtree(self.released, ignore_errors=True)
                shutil.rmtree(self.folder)
                tell(f"{self.folder} and {self.released} removed")

    def _stop_all(self, state: State, tell: Tell) -> None:
        left = dict(state.processes)
        while left:
            needed = {name for process in left.values() for name in process.needs}
            wave = {name: left.pop(name) for name in set(left) - needed}
            for name in supervise.stop(wave):
                tell(f"{name} stopped (pid {wave[name].pid})")
        orphans = supervise.marked(state.marker)
        if orphans:
            tell(f"stopping what dead servers left: {', '.join(f'{process.name()} (pid {process.pid})' for process in orphans)}")
            stop_processes(orphans)
        state.processes = {}
        save_state(self.folder, state)

    def status(self) -> list[Seen]:
        """How each server is; empty if the stack has never been up."""
        state = self.state
        if state is None:
            return []
        return [self._seen(service, state.processes.get(service.name)) for service in self.services(state)[0]]

    def _seen(self, service: Service, process: Started | None) -> Seen:
        log = self._log(service.name)
        if process is None:
            return Seen(service, "not started", None, log)
        if not supervise.alive(process):
            return Seen(service, "dead", process.pid, log)
        return Seen(service, "healthy" if service.healthy(process.at) else "not healthy", process.pid, log)

    def environment(self) -> Mapping[str, str]:
        """What a client of the stack needs.

        Raises:
            StackError: there is no stack.
        """
        if self.state is None or not self.state.environment:
            raise StackError(f"no stack under {self.home}: start it (make up)")
        return self.state.environment
