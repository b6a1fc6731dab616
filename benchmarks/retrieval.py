"""What does retrieval cost, and does it grow with the catalogue? Beam search beside four other ways and its arithmetic floor.

Usage: ``python -m benchmarks.retrieval [--catalogues 10k,100k,1m,10m] [--batch 1,32,256] [--quick] [--fresh]``; needs nothing but the
package, and ``faiss-cpu`` for HNSW. Catalogues are synthetic (``benchmarks.retrieval_world``) and kept under ``--work``, 2 GB for ten
million items. Every case runs in a process of its own, which gives its peak memory; cases that ``retrieval.json`` holds are not run again.

Codes: the default model's 64^3 hold 10k items, 26 times as many SIDs; from 100k on the paper's scale, 256 codes of 4 levels, so that
SIDs stay nearly distinct. Beam 50, 2 threads, the best 100 items of a request. Prefix crosses come from MLP_u2t wherever methods are
compared, for it is defined for prefixes that do not exist; ``exact`` is the default model's way, which pays for them from the store.

- ``mlp``, ``exact``: this project. (a) ``dense``: ``Dig.recall_logit`` of all K codes of each kept prefix and a mask. (b) ``dict``: nested
  Python dictionaries, the project's scorer. (c) ``exhaustive``: every SID. (d) ``hnsw``: FAISS over two-tower vectors of 32 numbers, its
  ``efSearch`` the smallest power of two at which it finds as much of the exact inner-product list as the beam finds of the exhaustive list
  of its own model (recall of the best 100). (e) ``floor``: the matrix products of the scored rows alone. ``dict``, ``exhaustive`` and
  ``hnsw`` stop at a million items, for their memory; (a) differs from this project in both the trie and the factored scorer.
- Growth is shown for three families, each with codes and beam that stay as they are from 100k to 10M items: the default 64^3, the paper's
  256^4, and 16^4, whose prefixes nearly all exist at 100k already. At most K + (L - 1) x beam x K rows are scored, and how many of them
  exist is a matter of how full the codes are: ``rows`` says how many were scored, by level.
- The mask step alone is compared with STATIC (``benchmarks.retrieval_static``).

Before a method is timed its lists are compared with this project's. Writes ``benchmarks/results/retrieval.json`` and two plots.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.retrieval_methods import LIMIT, Dense, DictTrie, Exhaustive, Factored, Floor, Method, rows_by_level
from benchmarks.retrieval_plots import draw
from benchmarks.retrieval_static import CsrMask, DictMask, StaticMask, agree
from benchmarks.retrieval_towers import hnsw
from benchmarks.retrieval_world import USERS, Size, build, open_world
from dig_models.retrieve.beam import Retrieved
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable

RESULTS = Path(__file__).parent / "results"
BEAM = 50
FITTING = {10_000: (3, 64), 100_000: (4, 256), 1_000_000: (4, 256), 10_000_000: (4, 256)}
FAMILIES = ((3, 64), (4, 256), (4, 16))
CHECKED = 4
RECALLED = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process: a method on a catalogue, at several batch sizes."""

    size: Size
    method: str
    batches: tuple[int, ...]
    beam: int
    rerank: int = 0
    repeats: int = 20
    seconds: float = 15.0
    threads: int = 2
    recall: float | None = None

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.size.name}/{self.method}/beam {self.beam}" + (f"/rerank {self.rerank}" if self.rerank else "")

    @property
    def measured_as(self) -> dict[str, Any]:
        """What a kept result must agree in to stand for this case."""
        return {"repeats": self.repeats, "seconds": self.seconds, "threads": self.threads, "code": _code()}


def main() -> None:
    """Run what is missing, then write results and plots."""
    args = _arguments()
    if args.case:
        asked = json.loads(args.case)
        case = Case(**{**asked, "size": Size(**asked["size"]), "batches": tuple(asked["batches"])})
        print(json.dumps(run(case, args.work)))
        return
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / (args.name + ".json")
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() and not args.fresh else {"cases": {}}
    results |= {"question": "wall seconds of a call by batch size", "machine": _machine(), "threads": args.threads}
    cases = list(_cases(args))
    for at, case in enumerate(cases, 1):
        known = results["cases"].get(case.key, {})
        if known and set(map(str, case.batches)) <= set(known["batches"]) and known["measured_as"] == case.measured_as:
            continue
        if case.method == "hnsw":
            recall = results["cases"].get(f"{case.size.name}/recall/beam {case.beam}", {}).get("recall")
            case = replace(case, recall=recall)
        print(f"{at}/{len(cases)} {case.key}", file=sys.stderr, flush=True)
        build(case.size, args.work)
        results["cases"][case.key] = _child(case, args)
        file.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, RESULTS, args.name)
    print(table(results))
    print("\n".join(verdicts(results)))


def run(case: Case, work: Path) -> dict[str, Any]:
    """One case, in this process."""
    torch.set_num_threads(case.threads)
    if case.method == "hnsw":
        return hnsw(case.size, work, case.batches, case.recall, LIMIT, lambda call, batch: _timed(call, batch, case))
    before = _peak()
    retriever, requests = open_world(case.size, work)
    index_B = np.arange(USERS, dtype=np.int64)
    if case.method == "mask":
        return {"batches": {str(b): _masks(retriever, case, b) for b in case.batches}}
    if case.method == "recall":
        return _recall(retriever, requests, case)
    out: dict[str, Any] = {"batches": {}, "before_mb": before}
    if case.method == "floor":
        for batch in case.batches:
            floor = Floor(retriever, requests, case.beam, index_B[:batch])
            out["batches"][str(batch)] = _timed(partial(_ignoring, floor.run), batch, case) | {"rows": floor.run() / batch}
        return out
    method = _method(case, retriever, requests)
    began = time.perf_counter()
    method.answer(index_B[:CHECKED])
    out["first_answer_s"] = round(time.perf_counter() - began, 3)
    if case.method in ("dense", "dict"):
        out["agreement"] = _agreement(method, Factored(retriever, requests, case.beam, "mlp"), index_B[:CHECKED])
    for batch in case.batches:
        out["batches"][str(batch)] = _timed(method.answer, batch, case)
    out["rows"] = [float(np.mean(level)) for level in rows_by_level(retriever, requests, case.beam, index_B[:32])]
    out["nodes"] = [retriever.trie.nodes(level) for level in range(retriever.trie.levels)]
    return out


def _method(case: Case, retriever: Retriever, requests: RequestTable) -> Method:
    if case.method == "dense":
        return Dense(retriever, requests, case.beam)
    if case.method == "dict":
        return DictTrie(retriever, requests, case.beam)
    if case.method == "exhaustive":
        return Exhaustive(retriever, requests)
    return Factored(retriever, requests, case.beam, case.method, case.rerank)


def _timed(call: Callable[[Any], object], batch: int, case: Case) -> dict[str, float]:
    """Wall seconds of calls with ever other requests, until there are ``repeats`` or the time is up; at least two."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < case.repeats and (len(times) < 2 or time.perf_counter() - began < case.seconds):
        index_B = (np.arange(batch, dtype=np.int64) + len(times) * batch) % USERS
        start = time.perf_counter()
        call(index_B)
        times.append(time.perf_counter() - start)
    p50 = statistics.median(times)
    return {
        "p50_ms": round(1e3 * p50, 4),
        "p95_ms": round(1e3 * float(np.quantile(times, 0.95)), 4),
        "users_per_s": round(batch / p50, 2),
        "calls": len(times),
        "peak_mb": _peak(),
    }


def _ignoring(call: Callable[[], object], _: object) -> object:
    return call()


def _agreement(method: Method, own: Method, index_B: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Share of items that two methods have in common; equal scores may fall on either side of the last place.

    Raises:
        RuntimeError: scores differ, or lists by more than rounding explains.
    """
    other, mine = method.answer(index_B), own.answer(index_B)
    if not np.allclose(other.score_GJ, mine.score_GJ, rtol=1e-4, atol=1e-4):
        raise RuntimeError(f"scores differ by up to {np.nanmax(np.abs(other.score_GJ - mine.score_GJ)):.3g}")
    share = _overlap(other, mine)
    if share < 0.99:
        raise RuntimeError(f"only {share:.1%} of the items are the same")
    return share


def _overlap(found: Retrieved, wanted: Retrieved) -> float:
    """Share of the wanted items that were found."""
    shares = [
        len(np.intersect1d(f[f > 0], w[w > 0])) / max(int((w > 0).sum()), 1) for f, w in zip(found.item_GJ, wanted.item_GJ, strict=True)
    ]
    return float(np.mean(shares))


def _recall(retriever: Retriever, requests: RequestTable, case: Case) -> dict[str, Any]:
    """How much of the exhaustive lists the beam finds."""
    index_B = np.arange(RECALLED, dtype=np.int64)
    wanted = Exhaustive(retriever, requests).answer(index_B)
    found = Factored(retriever, requests, case.beam, "mlp").answer(index_B)
    best = [w[0] in f for w, f in zip(wanted.item_GJ, found.item_GJ, strict=True)]
    return {
        "batches": {str(b): {} for b in case.batches},
        "recall": _overlap(found, wanted),
        "winner": float(np.mean(best)),
        "users": RECALLED,
    }


def _masks(retriever: Retriever, case: Case, batch: int) -> dict[str, Any]:
    """The mask step from each level to the next, for the beams of a batch, by method."""
    trie, codes, rng = retriever.trie, retriever.model.config.codes, np.random.default_rng(0)
    out: dict[str, Any] = {}
    for level in range(1, trie.levels):
        score_XK = torch.randn(batch * case.beam, codes)
        node_X = np.sort(rng.integers(0, trie.nodes(level - 1), (batch, case.beam)), axis=1).ravel()
        csr = CsrMask(trie, level)
        wanted = csr.step(node_X, score_XK)
        methods: dict[str, Any] = {"csr": csr, "static": StaticMask(trie, level, codes)}
        if trie.items <= 1_000_000:
            methods["dict"] = DictMask(trie, level)
        for name, method in methods.items():
            if not agree(wanted, method.step(node_X, score_XK), trie.token[level][wanted[1]]):
                raise RuntimeError(f"mask step {name}, level {level + 1}: other children or scores")
            timed = _timed(partial(_ignoring, partial(method.step, node_X, score_XK)), batch, case)
            out[f"level {level + 1} {name}"] = timed | {"children": len(wanted[1])}
    return out


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    """What is to be measured, the default model first."""
    common: dict[str, Any] = {"repeats": args.repeats, "seconds": args.seconds, "threads": args.threads}
    sizes = [Size(items=n, levels=FITTING[n][0], codes=FITTING[n][1]) for n in args.catalogues]
    if 10_000 in args.catalogues:
        for beam in (BEAM, 200):
            for rerank in (0, 400):
                yield Case(
                    size=sizes[args.catalogues.index(10_000)], method="exact", batches=args.batch, beam=beam, rerank=rerank, **common
                )
    for size in sizes:
        yield Case(size=size, method="mlp", batches=args.batch, beam=BEAM, **common)
        yield Case(size=size, method="floor", batches=args.batch, beam=BEAM, **common)
        yield Case(size=size, method="dense", batches=args.batch, beam=BEAM, **common)
        yield Case(size=size, method="exact", batches=args.batch, beam=BEAM, **common)
        yield Case(size=size, method="mask", batches=args.batch, beam=BEAM, **common)
        if size.items <= 1_000_000:
            yield Case(size=size, method="dict", batches=args.batch, beam=BEAM, **common)
            yield Case(size=size, method="exhaustive", batches=args.batch[:1], beam=BEAM, **common)
            yield Case(size=size, method="recall", batches=args.batch[:1], beam=BEAM, **common)
            yield Case(size=size, method="hnsw", batches=args.batch, beam=BEAM, **common)
    for levels, codes in FAMILIES:
        for n in args.catalogues:
            if n >= 100_000:
                for method in ("mlp", "exact"):
                    yield Case(size=Size(items=n, levels=levels, codes=codes), method=method, batches=args.batch[1:2], beam=BEAM, **common)


def _child(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Run a case in a process of its own.

    Raises:
        RuntimeError: it failed; what it said is shown.
    """
    command = [sys.executable, "-m", "benchmarks.retrieval", "--work", str(args.work), "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": str(args.threads)})
    if done.returncode:
        raise RuntimeError(f"{case.key}: the process ended with status {done.returncode}")
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out | {"load_average": round(os.getloadavg()[0], 2), "measured_as": case.measured_as}


@cache
def _code() -> str:
    """Digest of the sources that decide what is timed."""
    root = Path(__file__).parents[1]
    files = [*(root / "dig_models" / "retrieve").glob("*.py"), *(root / "dig_models" / "nn").glob("*.py"), root / "dig_models" / "dig.py"]
    files += [Path(__file__).with_name(f"retrieval_{part}.py") for part in ("methods", "static", "towers", "world")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:16]


def verdicts(results: dict[str, Any]) -> list[str]:
    """A line for each figure that was aimed at: what came out, and whether it is reached."""
    cases = results["cases"]

    def p50(name: str, method: str, batch: int) -> float:
        batches = cases.get(f"{name}/{method}/beam {BEAM}", {}).get("batches", {})
        return float(batches.get(str(batch), {}).get("p50_ms", math.nan))

    def rows(name: str, method: str) -> float:
        return float(sum(cases.get(f"{name}/{method}/beam {BEAM}", {}).get("rows", [math.nan])))

    sizes = [Size(items=n, levels=levels, codes=codes).name for n, (levels, codes) in FITTING.items()]
    asked = [
        (f"dense over this project, {sizes[1]}, batch {b}", p50(sizes[1], "dense", b) / p50(sizes[1], "mlp", b), 10.0) for b in (1, 32, 256)
    ]
    asked += [
        (f"this project over its matrix products, {size}, batch 256", p50(size, "mlp", 256) / p50(size, "floor", 256), -2.0)
        for size in sizes
    ]
    asked += [(f"batch 1 at the default model, {sizes[0]}, ms", p50(sizes[0], "exact", 1), -10.0)]
    for levels, codes in FAMILIES:
        small, large = (Size(items=n, levels=levels, codes=codes).name for n in (100_000, 10_000_000))
        for method in ("mlp", "exact"):
            grown = p50(large, method, 32) / p50(small, method, 32)
            asked.append((f"10M items over 100k, {codes}^{levels}, {method} u2t, batch 32", grown, -1.3))
            asked.append(("  the same for each row scored", grown / (rows(large, method) / rows(small, method)), -1.3))
    lines = []
    for what, found, limit in asked:
        if not math.isnan(found):
            reached = found >= limit if limit > 0 else found <= -limit
            lines.append(
                f"{what}: {found:.2f}, {'at least' if limit > 0 else 'at most'} {abs(limit):g}: {'reached' if reached else 'NOT reached'}"
            )
    return lines


def table(results: dict[str, Any]) -> str:
    """All timings as text."""
    lines = [f"{'case':58s}{'batch':>6s}{'p50 ms':>12s}{'p95 ms':>12s}{'users/s':>10s}{'peak MB':>9s}"]
    for key, case in results["cases"].items():
        for batch, timed in case["batches"].items():
            for name, row in ({"": timed} if "p50_ms" in timed else timed).items():
                label = f"{key} {name}".strip()
                lines.append(
                    f"{label:58s}{batch:>6s}{row['p50_ms']:12.3f}{row['p95_ms']:12.3f}{row['users_per_s']:10.1f}{row['peak_mb']:9.0f}"
                )
    return "\n".join(lines)


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "torch": torch.__version__, "numpy": np.__version__}


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _catalogues(text: str) -> list[int]:
    unit = {"k": 1_000, "m": 1_000_000}
    sizes = [int(part[:-1]) * unit[part[-1].lower()] for part in text.split(",")]
    unknown = [size for size in sizes if size not in FITTING]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} items: expected some of 10k,100k,1m,10m")
    return sizes


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--catalogues", type=_catalogues, default=_catalogues("10k,100k,1m,10m"))
    parser.add_argument("--batch", type=_counts, default=(1, 32, 256))
    parser.add_argument("--repeats", type=int, default=30, help="calls of a case and batch size, at most")
    parser.add_argument("--seconds", type=float, default=15.0, help="after which a case and batch size has been called often enough")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="10k and 100k items, batches of 1 and 32, a second each, results apart")
    parser.add_argument("--fresh", action="store_true", help="run every case again")
    parser.add_argument("--work", type=Path, default=Path(".dig") / "benchmarks", help="where catalogues are kept")
    parser.add_argument("--name", default="retrieval", help="name of the result files")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.quick:
        args.catalogues, args.batch, args.seconds, args.name = _catalogues("10k,100k"), (1, 32), min(args.seconds, 1.0), "retrieval-quick"
    if not math.isfinite(args.seconds) or args.repeats < 1:
        parser.error("--seconds and --repeats must be positive")
    return args


if __name__ == "__main__":
    main()
