"""What does the server answer in a second, and what do index switches cost? ``wrk`` for the load, a checking client beside it.

Usage: ``python -m benchmarks.serving [--connections 1 8 32] [--seconds 20] [--switch 3]``, after ``make retrain``; needs ``wrk`` (a Debian
package). ``dig serve`` runs in a process of its own on a copy of the index (hard links). Every number of connections is measured at
rest and while ``CURRENT`` is switched every few seconds between two generations; the second one is the newest of another model version, or,
if the index holds none, one built here with weights that differ by 2% and without every tenth item. The checking client compares each
answer with what the generation that it names answers in this process: item by item, probability by probability, in this order. A line
counts only if it had answers to check and, with switches, if both generations were seen. Writes ``benchmarks/results/serving.json`` and
``serving.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
import torch

from dig_models.index import generation as g
from dig_models.index.reader import IndexReader
from dig_models.index.state import state_table
from dig_models.index.writer import Release, build, locked, switch
from dig_models.items import ItemTable
from dig_models.serve.service import Search, Service
from jobs.config import Config, load

RESULTS = Path(__file__).parent / "results"
SCRIPT = Path(__file__).with_name("serving.lua")
TOLERANCE = 1e-5
CHECKED_USERS = 200
WARM_SECONDS = 3
PATIENCE = 120.0


@dataclass
class Checked:
    """What the checking client saw: answers of each generation, and those that are not what that generation answers."""

    answers: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """For the results."""
        return {
            "answers": sum(self.answers.values()),
            "generations": len(self.answers),
            "wrong": len(self.wrong),
            "errors": len(self.errors),
        }


def linked(source: Path, target: Path) -> None:
    """A generation under another index, at no cost of space."""

    def link(one: str, other: str) -> str:
        with suppress(OSError):
            os.link(one, other)
            return other
        return str(shutil.copy2(one, other))

    shutil.copytree(source, target, copy_function=link)


def two_generations(source: Path, root: Path) -> tuple[str, str, str]:
    """Copy what serves and a second generation into an index of this benchmark's own; ids, and where the second is from."""
    first = g.require_current(source)
    (root / g.GENERATIONS).mkdir(parents=True)
    linked(g.generation_dir(source, first), root / g.GENERATIONS / first)
    switch(root, first)
    others = [one for one in g.generations(source) if g.id_version(one) != g.id_version(first)]
    if others:
        linked(g.generation_dir(source, others[-1]), root / g.GENERATIONS / others[-1])
        return first, others[-1], "another version of the index"
    return first, variant(root, first), "built here: weights differ by 2%, every tenth item is left out"


def variant(root: Path, generation: str) -> str:
    """A generation of the same day that answers differently."""
    reader = IndexReader.open(root, generation)
    model, generator = reader.bundle.model, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.02 * torch.randn(parameter.shape, generator=generator))
    whole = reader.bundle.items
    kept = np.array([row for row in range(len(whole)) if row == 0 or row % 10])
    items = ItemTable(
        hash_N=whole.hash_N[kept],
        id_N=whole.id_N[kept],
        name_N=whole.name_N[kept],
        fields={name: column[kept] for name, column in whole.fields.items()},
        numbers={name: column[kept] for name, column in whole.numbers.items()},
        key_KN=whole.key_KN[:, kept],
    )
    release = Release(
        day=reader.date,
        model_name=reader.manifest.model_name,
        model_version=f"{reader.manifest.model_version}_variant",
        bundle=reader.bundle,
        items=items,
        user_state=state_table(reader.folder / g.STATE, reader.bundle.spec, reader.manifest.users),
        cross_arrays=reader.folder / g.STATE / g.CROSS_ARRAYS,
    )
    with locked(root):
        return build(root, release)


def expected(
    config: Config, root: Path, generations: Sequence[str], users: Sequence[str], k: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Probability of the best ``2 k`` items of each user, by generation."""
    found = {}
    for generation in generations:
        reply = Service.open(root, generation, settings=config.retrieve).retrieve(users, Search(k=2 * k))
        found[generation] = {answer.user: {i.item_id: i.probability for i in answer.items} for answer in reply.answers}
    return found


@contextmanager
def served(root: Path, log: Path, sets: Sequence[str]) -> Iterator[tuple[str, psutil.Process]]:
    """``dig serve`` on a free port: its address and its process; stopped by its pid."""
    options = [part for one in ["serve.poll_seconds=0.2", "serve.access_log=false", *sets] for part in ("--set", one)]
    command = [sys.executable, "-m", "jobs.cli", "serve", "--index", str(root), "--port", "0", *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            said = re.search(r" on (http://[^\s,]+)", log.read_text())
            with suppress(httpx.TransportError):
                if said and httpx.get(f"{said[1]}/ready", timeout=5).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield said[1], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def load_of(address: str, users: Path, connections: int, seconds: float, k: int) -> dict[str, Any]:
    """One run of ``wrk``: requests, latencies, errors."""
    threads = min(2, connections)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "15s", "-s", str(SCRIPT), address]
    done = subprocess.run([*command, "--", str(users), str(k), "7"], capture_output=True, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"requests_per_s": round(figures["requests"] / figures["seconds"], 1)}


def check(address: str, known: dict[str, dict[str, dict[str, float]]], k: int, stop: threading.Event, seen: Checked) -> None:
    """Ask for one user after the other until told to stop, and compare each answer with its generation's own."""
    users = list(next(iter(known.values())))
    with httpx.Client(base_url=address, timeout=30) as client:
        at = 0
        while not stop.wait(0.02):
            pair = [users[at % len(users)], users[(at + 1) % len(users)]]
            at += 2
            try:
                answer = client.post("/v1/retrieve", json={"users": pair, "k": k})
            except httpx.HTTPError as error:
                seen.errors.append(f"{type(error).__name__}: {error}")
                continue
            if answer.status_code != 200:
                seen.errors.append(answer.text)
                continue
            body = answer.json()
            if body["generation"] not in known:
                seen.wrong.append(f"{body['generation']}: not one of {', '.join(known)}")
                continue
            seen.answers[body["generation"]] = seen.answers.get(body["generation"], 0) + 1
            fits = body["model"]["version"] == g.id_version(body["generation"])
            for one in body["answers"]:
                if not fits or not same(one["items"], known[body["generation"]][one["user"]], k):
                    seen.wrong.append(f"{body['generation']} {one['user']} {one['items'][:2]}")


def same(items: Sequence[dict[str, Any]], own: dict[str, float], k: int) -> bool:
    """Whether a list is the best ``k`` of ``own``, best first; items whose probabilities are equal may change places."""
    best = sorted(own.values(), reverse=True)[:k]
    found = [item["probability"] for item in items]
    each = [own.get(item["item_id"], np.inf) for item in items]
    return len(found) == k and np.allclose(found, best, rtol=0, atol=TOLERANCE) and np.allclose(found, each, rtol=0, atol=TOLERANCE)


def sound(row: dict[str, Any]) -> bool:
    """Whether a line had something to check and nothing failed."""
    checked = row["checked"]
    seen = checked["answers"] > 0 and (not row["switch_seconds"] or (row["switches_followed"] > 0 and checked["generations"] > 1))
    return bool(seen and not sum(row["errors"].values()) and not checked["wrong"] and not checked["errors"])


def measured(
    address: str,
    server: psutil.Process,
    root: Path,
    pair: tuple[str, str],
    known: Any,
    users: Path,
    args: argparse.Namespace,
    connections: int,
    every: float,
) -> dict[str, Any]:
    """One line of the table: load, with switches every so many seconds (0: none), and the checking client beside it."""
    stop, seen, switches = threading.Event(), Checked(), 0
    checking = threading.Thread(target=check, args=(address, known, args.k, stop, seen))

    def switching() -> None:
        nonlocal switches
        while not stop.wait(every):
            switches += 1
            switch(root, pair[switches % 2])

    turning = threading.Thread(target=switching)
    settled(address, root, pair[0])
    before = followed(address)
    checking.start()
    if every:
        turning.start()
    try:
        figures = load_of(address, users, connections, args.seconds, args.k)
    finally:
        stop.set()
        checking.join()
        if every:
            turning.join()
    return {
        "connections": connections,
        "switch_seconds": every,
        **figures,
        "switches_asked": switches,
        "switches_followed": followed(address) - before,
        "checked": seen.report(),
        "examples_of_wrong": seen.wrong[:3] + seen.errors[:3],
        "rss_mb": round(server.memory_info().rss / 1e6),
    }


def settled(address: str, root: Path, generation: str) -> None:
    """Make a generation current and wait until it serves."""
    switch(root, generation)
    until = time.monotonic() + PATIENCE
    while httpx.get(f"{address}/v1/generation", timeout=30).json()["generation"] != generation:
        if time.monotonic() > until:
            raise RuntimeError(f"{address} does not follow CURRENT to {generation}")
        time.sleep(0.1)


def followed(address: str) -> int:
    """Switches that the server has made."""
    found = re.search(r"^dig_serve_switches_total (\S+)", httpx.get(f"{address}/metrics", timeout=30).text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Requests a second and latencies by connections, at rest and with switches."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for coalesce in sorted({row["coalesce"] for row in rows}):
        for every, style in ((0.0, "-"), (max(row["switch_seconds"] for row in rows), "--")):
            own = [row for row in rows if row["coalesce"] == coalesce and row["switch_seconds"] == every]
            name = f"coalesce {coalesce}" + (f", a switch every {every:g} s" if every else "")
            at = [row["connections"] for row in own]
            left.plot(at, [row["requests_per_s"] for row in own], style, marker="o", label=name)
            right.plot(at, [row["p99_ms"] for row in own], style, marker="o", label=f"p99, {name}")
            right.plot(at, [row["p50_ms"] for row in own], style, marker=".", alpha=0.5, label=f"p50, {name}")
    for axes, title in ((left, "requests a second"), (right, "latency, ms")):
        axes.set(xlabel="connections", title=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=130)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table."""
    names = ("coalesce", "conns", "switches", "req/s", "p50 ms", "p99 ms", "max ms", "errors", "checked", "wrong")
    print(" ".join(f"{name:>8}" for name in names))
    for row in rows:
        errors = sum(row["errors"].values()) + row["checked"]["errors"]
        load = [row["coalesce"], row["connections"], row["switches_followed"], row["requests_per_s"]]
        load += [f"{row[name]:.1f}" for name in ("p50_ms", "p99_ms", "max_ms")]
        print(" ".join(f"{value:>8}" for value in (*load, errors, row["checked"]["answers"], row["checked"]["wrong"])))


def main() -> int:
    """Measure, print and keep; exit status 1 if an answer was wrong, a request failed or a line checked nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting; may be repeated")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--coalesce", type=int, nargs="+", default=[1, 16], help="values of serve.coalesce to compare")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--switch", type=float, default=3.0, help="seconds between switches")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of serving.json and serving.png")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (apt-get install wrk)")
    config = load(None, args.set)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    source = Path(config.paths.at("index"))
    args.results.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=source.parent) as scratch:
        root, users = Path(scratch) / "index", Path(scratch) / "users"
        first, second, origin = two_generations(source, root)
        reader = IndexReader.open(root, first, checksums=False)
        everyone = list(reader.user_ids)
        users.write_text("".join(f"{user}\n" for user in everyone))
        some = [everyone[at] for at in np.random.default_rng(0).permutation(len(everyone))[:CHECKED_USERS]]
        known = expected(config, root, (first, second), some, args.k)
        for coalesce in args.coalesce:
            sets = [*args.set, f"serve.coalesce={coalesce}"]
            with served(root, Path(scratch) / "log", sets) as (address, server):
                load_of(address, users, 4, WARM_SECONDS, args.k)
                for connections in args.connections:
                    for every in (0.0, args.switch):
                        row = measured(address, server, root, (first, second), known, users, args, connections, every)
                        rows.append({"coalesce": coalesce, **row})
                        show(rows[-1:])
        about = {"items": reader.manifest.items, "users": len(everyone), "first": first, "second": second, "second_is": origin}
    settings = {"k": args.k, "seconds": args.seconds, "beam": config.retrieve.beam, "rerank": config.retrieve.rerank}
    settings |= {name: getattr(config.serve, name) for name in ("workers", "torch_threads", "waiting", "checksums")}
    results = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0], "index": about, "settings": settings, "rows": rows}
    (args.results / "serving.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(rows, args.results / "serving.png")
    show(rows)
    unsound = [row for row in rows if not sound(row)]
    for row in unsound:
        line = f"{row['connections']} connections, a switch every {row['switch_seconds']:g} s"
        print(f"not sound: {line}: {row['checked']} {row['examples_of_wrong']}")
    return int(bool(unsound))


if __name__ == "__main__":
    sys.exit(main())
