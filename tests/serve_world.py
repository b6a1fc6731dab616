"""A small index with two generations that answer differently, and a server on it: what tests of serving share."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import synthetic

from dig_models.features import FeatureSpec
from dig_models.index.writer import Release, build, locked, switch

PROJECT = Path(__file__).resolve().parent.parent
USERS = [f"u{i}" for i in range(8)]
ITEMS = [f"i{i}" for i in range(60)]
PATIENCE_SECONDS = 90.0


@dataclass
class ServeWorld:
    """An index folder; ``first`` is current, ``second`` is of the next day, of another model and lacks three items."""

    root: Path
    first: str
    second: str

    def switch(self, generation: str) -> None:
        switch(self.root, generation)


def make(home: Path, spec: FeatureSpec) -> ServeWorld:
    """Two verified generations, the first one current."""
    root, made = home / "index", []
    for number, ids in ((1, ITEMS), (2, [*ITEMS[3:], "new-1"])):
        day, items = synthetic.DAY + timedelta(days=number - 1), synthetic.make_items(spec, ids)
        release = Release(
            day=day,
            model_name="dig",
            model_version=str(number),
            bundle=synthetic.make_bundle(spec, items, seed=number),
            items=items,
            user_state=synthetic.user_state(spec, items, USERS, day),
            cross_arrays=synthetic.write_crosses(home / f"crosses-{number}", spec, items, USERS, day),
        )
        with locked(root):
            made.append(build(root, release))
    switch(root, made[0])
    return ServeWorld(root, *made)


@dataclass
class Process:
    """``dig serve`` in a process of its own, on a free port of loopback; stopped by its pid."""

    root: Path
    log: Path
    options: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    address: str = ""
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Process:
        command = [sys.executable, "-m", "jobs.cli", "serve", "--index", str(self.root), "--port", "0", *self.options]
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"} | self.environ
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=PROJECT)
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)
        return self

    def ready(self) -> bool:
        said = re.search(r" on (http://[^\s,]+)", self.log.read_text())
        if said is None:
            return False
        self.address = said[1]
        try:
            return httpx.get(f"{self.address}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, route: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/{route}", json=body, timeout=30, **more)

    def __exit__(self, *error: object) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)
