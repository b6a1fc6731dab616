"""The story of a schedule on a live Airflow: a day that comes up by itself, a backfill that leaves what serves alone, promotions by people.

One path, in the order of this file, on one stack: with the small data set whose newest day has just closed, or (``$DIG_E2E_HOME``) on
a stack that is up, whatever its data set is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from live import CHAIN, DEADLINE, Day, InForce, is_own, wait_for

from dig_models.index import generation as g
from jobs import registry
from jobs.index import index_root
from jobs.lake import MARKER
from jobs.promotion import INTENT
from jobs.promotion_log import Entry, entries
from jobs.staging import STAGING
from ops.airflow_servers import ADMIN
from ops.client import StackClient

JOB_TASKS = {"dig_retrain": ("train", "evaluate", "register", "gate"), "dig_publish": ("index", "promote", "summary", "report")}
SPARK_TASKS = ("ingest", "item_features", "u2i_crosses", "examples")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


def lake(stack: StackClient) -> Path:
    return Path(stack.config.paths.at("lake"))


def markers(stack: StackClient) -> dict[str, bytes]:
    """Every marker of the lake."""
    return {str(path.relative_to(lake(stack))): path.read_bytes() for path in lake(stack).glob(f"*/ds=*/{MARKER}")}


def log_of(stack: StackClient) -> list[Entry]:
    return entries(index_root(stack.config))


def job(stack: StackClient, *command: str) -> None:
    """Run a job as a person would in a shell with the environment of the stack."""
    done = subprocess.run([sys.executable, "-m", *command], env=stack.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- by the clock ----------------------------------------------------------------------------------------------------


def test_filling_past_days_trains_nothing_and_leaves_what_serves_alone(live: StackClient, released: Day) -> None:
    states = live.task_states("dig_backfill", released.filled)
    assert states == {"features": "success", "retrain": "skipped", "stale": "success", "sweep": "success"}
    assert live.xcom("dig_backfill", released.filled, "retrain", "skipped").startswith("retrain was not asked for")
    assert released.trained_by_filling == []
    assert released.after_filling == released.before


def test_the_newest_closed_day_comes_up_by_itself_and_ends_with_a_champion_and_its_index(live: StackClient, released: Day) -> None:
    for dag_id in CHAIN:
        run = live.run(dag_id, released.runs[dag_id])
        assert run["partition_key"] == (None if run["run_type"] == "manual" else released.day.isoformat())
        assert set(live.task_states(dag_id, run["dag_run_id"]).values()) == {"success"}
    types = {dag_id: live.run(dag_id, run_id)["run_type"] for dag_id, run_id in released.runs.items()}
    asked = "scheduled" if released.by_clock else "manual"
    assert types == {"dig_features": asked, "dig_retrain": "asset_triggered", "dig_publish": "asset_triggered"}
    champion, now = registry.find(live.config, registry.CHAMPION), InForce.of(live.config)
    assert champion is not None
    assert champion.date == released.day
    assert now.generation.startswith(f"{released.day}-v{champion.version}-")
    assert g.read_manifest(index_root(live.config), now.generation).model_version == champion.version
    assert not list((lake(live) / STAGING).glob("*/*"))


def test_logs_begin_with_what_a_task_reads_and_writes(live: StackClient, released: Day) -> None:
    told = {"dig_features": SPARK_TASKS, **JOB_TASKS}
    for dag_id, tasks in told.items():
        for task_id in tasks:
            lines = live.logs(dag_id, released.runs[dag_id], task_id)
            reads, writes = (next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("reads: ", "writes: "))
            assert writes == reads + 1
            assert str(released.day) in lines[reads] + lines[writes]
            begun = next(i for i, line in enumerate(lines) if line.startswith(("Running command:", "Spark-Submit cmd:")))
            assert writes < begun


def test_lineage_events_name_the_tables(live: StackClient, released: Day) -> None:
    text = (live.home / "stack" / "openlineage" / "events.jsonl").read_text()
    done = [event for event in map(json.loads, text.splitlines()) if event["eventType"] == "COMPLETE"]
    seen: dict[str, tuple[set[str], set[str]]] = {}
    for event in done:
        ins, outs = ({f"{one['namespace']}/{one['name']}" for one in event[side]} for side in ("inputs", "outputs"))
        known = seen.setdefault(event["job"]["name"], (set(), set()))
        seen[event["job"]["name"]] = (known[0] | ins, known[1] | outs)
    assert "dig://lake/interactions" in seen["dig_features.ingest"][1]
    assert "dig://lake/interactions" in seen["dig_features.item_features"][0]
    assert "dig://lake/examples" in seen["dig_features.examples"][1]
    assert "dig://lake/examples" in seen["dig_retrain.train"][0]
    assert "dig://index/CURRENT" in seen["dig_publish.promote"][1]
    assert {f"{dag_id}.{task}" for dag_id, tasks in JOB_TASKS.items() for task in tasks} <= seen.keys()


def test_every_task_is_explained_and_takes_its_pool(live: StackClient, released: Day) -> None:
    for dag_id in (*CHAIN, "dig_backfill", "dig_promote"):
        assert live.api("GET", f"/dags/{dag_id}/details")["doc_md"]
        assert [task["task_id"] for task in live.api("GET", f"/dags/{dag_id}/tasks")["tasks"] if not task["doc_md"]] in ([], ["request"])
    pools = {(dag_id, task["task_id"]): task["pool"] for dag_id in CHAIN for task in live.tasks(dag_id, released.runs[dag_id])}
    assert {pools["dig_features", task] for task in SPARK_TASKS} == {"dig_spark"}
    assert {pools["dig_retrain", task] for task in ("train", "evaluate")} == {"dig_train"}
    assert pools["dig_publish", "promote"] == "dig_promotion"


# ---- a backfill ------------------------------------------------------------------------------------------------------


def test_a_backfill_rebuilds_days_and_trains_on_none_of_them(live: StackClient, released: Day) -> None:
    days = [released.day - timedelta(days=back) for back in ((2,) if is_own(live) else (3, 2))]  # a minute and a half each
    before, rows = InForce.of(live.config), markers(live)
    known = {dag_id: {run["dag_run_id"] for run in live.runs(dag_id)} for dag_id in CHAIN}
    range_of = ["--from-date", days[0].isoformat(), "--to-date", f"{days[-1]}T23:59"]
    live.cli("backfill", "create", "--dag-id", "dig_features", *range_of, "--reprocess-behavior", "completed", "--max-active-runs", "1")
    for day in map(date.isoformat, days):
        run_id = live.await_run("dig_features", day, known=known["dig_features"])
        assert run_id.startswith("backfill__")
        live.wait("dig_features", run_id, DEADLINE)
        set_off = live.await_run("dig_retrain", day, known=known["dig_retrain"])
        live.wait("dig_retrain", set_off, DEADLINE)
        assert set(live.task_states("dig_retrain", set_off).values()) == {"skipped"}
        reason = live.xcom("dig_retrain", set_off, "train", "skipped")
        assert reason.startswith(f"set off by a backfill ({run_id})")
    assert {run["dag_run_id"] for run in live.runs("dig_publish")} == known["dig_publish"]
    assert InForce.of(live.config) == before
    now = markers(live)
    assert {name: now[name] for name in rows} == rows
    # A range makes the state of users for its last day alone; a day by itself is its own last.
    assert {name.partition("/")[0] for name in now.keys() - rows.keys()} <= {"user_state"}


# ---- by hand ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(live: StackClient, released: Day) -> str:
    """A generation of the day before, with the same version."""
    day, version = released.day - timedelta(days=1), InForce.of(live.config).champion
    job(live, "jobs.index", "--date", day.isoformat(), "--version", version, "--allow-older")
    found = [one for one in g.generations(index_root(live.config)) if one.startswith(f"{day}-v{version}-")]
    assert len(found) == 1
    return found[0]


def rollback(live: StackClient, reason: str) -> str:
    return live.trigger("dig_promote", {"version": "rollback", "reason": reason})


def test_a_person_moves_to_another_pair_and_back(live: StackClient, earlier: str) -> None:
    first, count = InForce.of(live.config), len(log_of(live))
    job(live, "jobs.promote", "--generation", earlier, "--reason", "a look at the day before", "--who", "jane")
    assert InForce.of(live.config).generation == earlier
    live.wait("dig_promote", rollback(live, "seen enough"))
    now = InForce.of(live.config)
    assert (now.champion, now.current) == (first.champion, first.current)
    there, back = log_of(live)[count:]
    assert (there.action, there.who, there.after.generation) == ("promote", "jane", earlier)
    assert (back.action, back.who, back.reason, back.outcome) == ("rollback", ADMIN, "seen enough", "promoted")
    assert (back.before, back.after) == (there.after, there.before)
    assert not (index_root(live.config) / INTENT).exists()


@contextmanager
def nobody_promotes(live: StackClient) -> Iterator[None]:
    """Promotions wait for their turn."""
    pool = {"pool": "dig_promotion", "include_deferred": False}
    slots = live.api("GET", "/pools/dig_promotion")["slots"]
    live.api("PATCH", "/pools/dig_promotion", pool | {"slots": 0}, update_mask="slots")
    try:
        yield
    finally:
        live.api("PATCH", "/pools/dig_promotion", pool | {"slots": slots}, update_mask="slots")


def test_of_two_who_roll_back_at_once_one_is_told_that_the_other_was_faster(live: StackClient, earlier: str) -> None:
    first = InForce.of(live.config)
    job(live, "jobs.promote", "--generation", earlier, "--reason", "once more")
    count = len(log_of(live))
    with nobody_promotes(live):
        both = [rollback(live, f"clicks fell, says {who}") for who in ("ann", "ben")]
        wait_for(lambda: all(live.task_states("dig_promote", run).get("request") == "success" for run in both), "both to have asked")
    ended = {"success": "", "failed": ""}
    wait_for(lambda: all(live.run("dig_promote", run)["state"] in ended for run in both), "both to end")
    for run in both:
        ended[live.run("dig_promote", run)["state"]] = run
    assert sorted(ended.values()) == sorted(both)
    said = "\n".join(live.logs("dig_promote", ended["failed"], "promote"))
    assert f"but since then {ADMIN} moved to version {first.champion} with generation {first.generation} at " in said
    assert {task["task_id"]: task["try_number"] for task in live.tasks("dig_promote", ended["failed"])}["promote"] == 1
    assert sorted(entry.outcome for entry in log_of(live)[count:]) == ["promoted", "refused"]
    assert InForce.of(live.config).current == first.current


# ---- approval --------------------------------------------------------------------------------------------------------


@pytest.fixture
def approval(live: StackClient, released: Day) -> Iterator[None]:
    """``airflow.approval`` is on."""
    if not is_own(live):
        pytest.skip("the settings file of a stack that tests did not lay out is not theirs to change")
    place = Path(live.state.config)
    kept = place.read_text()
    settings: dict[str, Any] = yaml.safe_load(kept)
    try:
        place.write_text(yaml.safe_dump(settings | {"airflow": settings.get("airflow", {}) | {"approval": True}}))
        reload(live, {"request", "approve", "promote"})
        yield
    finally:
        place.write_text(kept)
        reload(live, {"request", "promote"})


def reload(live: StackClient, tasks: set[str]) -> None:
    """Have the DAGs read anew, and wait until ``dig_promote`` has these tasks."""
    live.cli("dags", "reserialize")

    def there() -> bool:
        return {task["task_id"] for task in live.api("GET", "/dags/dig_promote/tasks")["tasks"]} == tasks

    wait_for(there, f"dig_promote to have the tasks {sorted(tasks)}")


def heartbeat(live: StackClient) -> str:
    return str(live.api("GET", "/monitor/health")["scheduler"]["latest_scheduler_heartbeat"])


def answer(live: StackClient, run_id: str, option: str) -> None:
    """Wait until a run asks, and answer as slowly as a person: Airflow fails a task that goes on before the scheduler saw it pause."""
    wait_for(lambda: live.task_states("dig_promote", run_id).get("approve") == "awaiting_input", "the run to ask")
    for _ in range(2):
        beat = heartbeat(live)
        wait_for(lambda beat=beat: heartbeat(live) != beat, "the scheduler to look around")  # type: ignore[misc]
    live.api("PATCH", f"/dags/dig_promote/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails", {"chosen_options": [option]})


def test_what_needs_approval_waits_and_a_rollback_does_not(live: StackClient, earlier: str, approval: None) -> None:
    first, count = InForce.of(live.config), len(log_of(live))
    job(live, "jobs.promote", "--generation", earlier, "--reason", "to have somewhere to go")
    before = InForce.of(live.config)
    conf = {"version": first.champion, "reason": "back to the newest", "who": "jane"}

    rejected = live.trigger("dig_promote", conf)
    answer(live, rejected, "Reject")
    live.wait("dig_promote", rejected, expect="failed")
    assert live.task_states("dig_promote", rejected) == {"request": "success", "approve": "failed", "promote": "upstream_failed"}
    assert InForce.of(live.config) == before

    approved = live.trigger("dig_promote", conf)
    answer(live, approved, "Approve")
    live.wait("dig_promote", approved)
    assert InForce.of(live.config).current == first.current
    last = log_of(live)[-1]
    assert last.who == f"jane (triggered by {ADMIN})"
    assert (last.reason, last.outcome) == (f"back to the newest (approved by {ADMIN})", "promoted")

    at_once = rollback(live, "nobody need be asked")
    live.wait("dig_promote", at_once)
    assert InForce.of(live.config).current == before.current
    live.wait("dig_promote", rollback(live, "and back"))
    assert InForce.of(live.config).current == first.current
    assert len(log_of(live)) == count + 4
