"""The code digest of each job covers every project module that its output depends on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

from dig_models.tokenizers.registry import KINDS
from jobs.provenance import SHARED_CODE
from jobs.sids_inputs import CODE

PLUMBING = {
    "dig_models.config",  # types of settings; their values are in the settings' digest
    "dig_models.tokenizers.settings",
    "jobs.checks",  # gates look at rows, they change none
    "dig_models.faults",  # these two write what they are given
    "dig_models.files",
    "jobs.config",
    "jobs.entry",
    "jobs.files",
    "jobs.lake",
    "jobs.progress",
    "jobs.provenance",  # names the modules of each digest, so a change there changes the digest
    "jobs.registry",
    "jobs.runs",
    "jobs.spark",
    "jobs.tracking",
}


def source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a name imported from a module, not a module of a package
        return None
    return Path(spec.origin) if spec and spec.origin else None


def imported(module: str) -> set[str]:
    """Project modules that a module imports, wherever in it."""
    file = source(module)
    assert file is not None, module
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith(("jobs.", "dig_models.", "benchmarks.")) and source(name)}


def reached(job: str) -> set[str]:
    found: set[str] = set()
    left = [job]
    while left:
        module = left.pop()
        if module not in found | PLUMBING:
            found.add(module)
            left += imported(module)
    return found


def covered(module: str, code: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in code)


@pytest.mark.parametrize(
    ("job", "listed", "shared"),
    [
        ("jobs.ingest", "jobs.ingest:SOURCES", ()),
        ("jobs.item_features", "jobs.item_features:CODE", SHARED_CODE),
        ("jobs.u2i_crosses", "jobs.u2i_crosses:CODE", SHARED_CODE),
        ("jobs.examples", "jobs.examples:CODE", SHARED_CODE),
        ("jobs.train", "jobs.train_inputs:CODE", ()),
        ("jobs.tokenizing", "jobs.sids_inputs:CODE", ()),
        ("benchmarks.baseline_runs", "benchmarks.baseline_runs:CODE", ()),
    ],
)
def test_a_jobs_code_digest_covers_what_it_imports(job: str, listed: str, shared: tuple[str, ...]) -> None:
    module, _, name = listed.partition(":")
    code = (*getattr(importlib.import_module(module), name), *shared)
    assert sorted(m for m in reached(job) if not covered(m, code)) == []


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"dig"}))
def test_the_code_digest_of_sids_covers_what_their_tokenizer_imports(kind: str) -> None:
    module = f"dig_models.tokenizers.{KINDS[kind].split('.')[0]}"
    if source(module) is None:
        pytest.skip(f"no module of {kind} yet")
    assert sorted(m for m in reached(module) if not covered(m, CODE)) == []


def test_a_module_that_a_job_imports_indirectly_is_found() -> None:
    assert {"jobs.cross_arrays", "dig_models.cross_files", "jobs.hashing"} <= reached("jobs.u2i_crosses")
    assert "jobs.config" not in reached("jobs.u2i_crosses")
    runs = reached("benchmarks.baseline_runs")
    assert {"benchmarks.baseline_trees", "dig_models.evaluate.lists", "dig_models.retrieve.trie"} <= runs


def test_what_makes_the_table_of_the_baselines_makes_no_run_anew() -> None:
    table = {f"benchmarks.{name}" for name in ("baselines", "baselines_table", "intervals", "ablation_samples", "quality")}
    assert table & reached("benchmarks.baseline_runs") == set()
    assert table - {"benchmarks.quality"} <= reached("benchmarks.baselines"), "else the first line says nothing"
