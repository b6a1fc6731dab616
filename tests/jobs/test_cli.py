"""The command `dig`: what it prints, what it refuses, how fast it answers, and that Ctrl-C stops what it started."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

from jobs import cli
from jobs.closing import figure_table, stage_table
from jobs.display import Bars, Event, Lines, Tail, display_for, figures_text
from jobs.tables import answer_table, history_line, lake_rows

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("DIG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "--help")
    assert status == 0
    for command in ("retrain", "recommend", "rank", "serve", "config", "lake", "index", "version"):
        assert f" {command} " in out


@pytest.mark.parametrize(
    "command",
    [
        *("retrain", "recommend", "rank", "promote", "rollback", "config show", "lake show", "lake stale", "lake refresh"),
        *("index show", "index verify", "index diff", "index log", "index push", "index pull", "index package", "serve"),
    ],
)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = said(capsys, *command.split(), "--help")
    assert status == 0
    assert "--config" in out
    assert "--set" in out


def test_help_loads_nothing_heavy() -> None:
    script = """
import sys
from jobs import cli
cli.main(["--help"])
print([name for name in ("torch", "pyspark", "numpy", "pandas", "mlflow", "airflow", "pydantic", "pyarrow") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_answers_at_once() -> None:
    script = "import time; t = time.process_time()\nfrom jobs import cli\ncli.main(['--help']); print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert float(done.stdout.splitlines()[-1]) < 0.5


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "version") == (0, "0.1.0\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("frobnicate", "No such command 'frobnicate'"),
        ("retrain --dat 2017-11-15", "No such option: --dat"),
        ("retrain --date 15.11.2017", "--date 15.11.2017: expected a date, YYYY-MM-DD"),
        ("retrain --date 2018-11-15", "date 2018-11-15 is outside data set 'complete_journey'"),
        ("retrain --set train.lrr=1", "--set train.lrr: train.lrr: unknown key; did you mean 'lr'?"),
        ("retrain --set train.lr", "--set train.lr: expected key=value"),
        ("retrain --config nowhere.yaml", "nowhere.yaml: configuration not found"),
        ("config show --set model.dim=x", "--set model.dim: model.dim: Input should be a valid integer, found 'x'"),
        ("recommend", "Missing option '--user'"),
        ("recommend --user 1 -k 0", "Invalid value for '-k'"),
        ("recommend --user 1 -k few", "Invalid value for '-k'"),
        ("recommend --user 1", "no index was published yet"),
        ("rank --user 1", "Missing option '--items'"),
        ("rank --user 1 --items ,", "expected item ids separated by commas"),
        ("rank --user 1 --items a,b", "no index was published yet"),
        ("index show", "no index was published yet"),
        ("index verify", "no index was published yet"),
        ("index diff A B", "no index generation"),
        ("promote --version 1", "Missing option '--reason'"),
        ("promote --reason r", "give either --version or --generation"),
        ("promote --reason r --version 1 --generation x", "give either --version or --generation"),
        ("promote --reason r --generation x", "no index generation"),
        ("rollback", "Missing option '--reason'"),
        ("index push memory://nowhere", "no index was published yet"),
        ("index push", "nowhere to push to"),
        ("index push --generation A", "nowhere to push to"),
        ("index push --generation A --set index.mirrors=[memory://nowhere]", "give the URL of one mirror"),
        ("index push --set index.mirrors=[s3://key:secret@bucket]", "credentials belong into the environment"),
        ("index push --set index.mirrors=[/a/folder]", "a URL such as s3://bucket/index expected, found '/a/folder'"),
        ("index pull memory://nowhere", "mirror memory://nowhere serves nothing yet"),
        ("index pull nowhere://x", "mirror nowhere://x: "),
        ("index show --set paths.index=s3://bucket/x", "paths.index s3://bucket/x: expected a folder"),
        ("lake show --set paths.lake=s3://bucket/x", "paths.lake s3://bucket/x: expected a folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: str, message: str) -> None:
    status, out, err = said(capsys, *argv.split())
    assert status == 2
    assert out == ""
    assert err.startswith("dig: ")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / ".dig").exists()


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("jobs.layers.Layers.leaves", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["config", "show"])


def test_config_show_gives_every_leaf_with_value_and_origin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIG_TRAIN__EPOCHS", "5")
    status, out, _ = said(capsys, "config", "show", "--json", "--set", "model.dim=16")
    shown = json.loads(out)
    assert status == 0
    assert shown["model.dim"] == {"value": 16, "origin": "--set model.dim"}
    assert shown["train.epochs"] == {"value": 5, "origin": "environment DIG_TRAIN__EPOCHS"}
    assert shown["train.seed"]["origin"] == "default"
    assert shown["dataset.first_date"]["value"] == "2017-01-01"
    status, out, _ = said(capsys, "config", "show", "--set", "model.dim=16")
    assert any(line.split() == ["model.dim", "16", "--set", "model.dim"] for line in out.splitlines())


def test_an_empty_lake_is_said_to_be_empty(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = said(capsys, "lake", "show", "--set", f"paths.home={tmp_path}")
    assert (status, out) == (0, f"{tmp_path}/lake holds no partition yet; `dig retrain` builds it\n")


def marker(lake: Path, table: str, day: str, rows: int) -> None:
    folder = lake / table / f"ds={day}"
    (folder / "data-x").mkdir(parents=True)
    text = {
        "table": table,
        "ds": day,
        "data": "data-x",
        "rows": rows,
        "content": "c",
        "schema": "s",
        "columns": {},
        "code": "c",
        "config": "c",
    }
    (folder / "_MARKER.json").write_text(json.dumps({**text, "inputs": {}, "stats": {}, "job": "j"}))


def test_lake_show_counts_days_gaps_and_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for day, rows in (("2017-11-01", 5), ("2017-11-02", 0), ("2017-11-05", 7)):
        marker(tmp_path / "lake", "requests", day, rows)
    (tmp_path / "lake" / "_staging" / "x" / "requests").mkdir(parents=True)
    expected = {"requests": {"days": 3, "first": "2017-11-01", "last": "2017-11-05", "missing": 2, "rows": 12}}
    assert lake_rows(str(tmp_path / "lake")) == expected
    status, out, _ = said(capsys, "lake", "show", "--json", "--set", f"paths.home={tmp_path}")
    assert (status, json.loads(out)) == (0, expected)
    status, out, _ = said(capsys, "lake", "show", "--set", f"paths.home={tmp_path}")
    assert out.splitlines()[1].split() == ["requests", "3", "2017-11-01", "2017-11-05", "2", "12"]


def test_a_damaged_marker_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    marker(tmp_path / "lake", "requests", "2017-11-01", 5)
    (tmp_path / "lake" / "requests" / "ds=2017-11-01" / "_MARKER.json").write_text("{")
    status, _, err = said(capsys, "lake", "show", "--set", f"paths.home={tmp_path}")
    assert status == 2
    assert "not a marker" in err


# ------------------------------------------------------------------------------------------------------------ progress


def line(stage: str, done: float, total: float, **more: Any) -> str:
    return json.dumps({"stage": stage, "done": done, "total": total, **more}) + "\n"


EVENTS = [
    line("airflow", 0, 1, event="plan", stages="ingest,train"),
    line("ingest", 0, 1, event="start"),
    line("ingest", 1, 4, table="requests"),
    line("ingest", 1, 1, event="finish", seconds=1.5),
    line("train", 0, 1, event="start"),
    line("launch", 3, 10, examples_per_s=12345.6, loss=0.12345),
    line("train", 1, 1, event="fail", seconds=2.0, reason="no rows", log="/x"),
    line("airflow", 1, 1, event="fail", reason="task train failed"),
]


def test_only_whole_lines_are_read_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    tail = Tail(path)
    assert list(tail.read()) == []
    path.write_text(EVENTS[0] + EVENTS[1][:10])
    assert [event.event for event in tail.read()] == ["plan"]
    path.write_text("".join(EVENTS[:3]))
    assert [event.event for event in tail.read()] == ["start", ""]
    assert list(tail.read()) == []


def test_figures_are_what_the_line_adds() -> None:
    event = Event.parse(EVENTS[5])
    assert event.figures == {"examples_per_s": 12345.6, "loss": 0.12345}
    assert figures_text(event.figures) == "12,346 examples/s  loss 0.1235"


def test_elsewhere_than_on_a_terminal_a_stage_is_a_line_when_it_starts_and_ends() -> None:
    out = io.StringIO()
    display = display_for(Console(file=out, width=120))
    assert isinstance(display, Lines)
    with display:
        for event in EVENTS:
            display.show(Event.parse(event))
    assert out.getvalue().splitlines() == [
        "ingest: started",
        "ingest: done in 1.5 s  table requests",
        "train: started",
        "train: FAILED in 2.0 s  12,346 examples/s  loss 0.1235",
    ]


def test_on_a_terminal_every_stage_has_a_bar_with_its_state_and_figures() -> None:
    out = io.StringIO()
    display = display_for(Console(file=out, width=120, force_terminal=True))
    assert isinstance(display, Bars)
    with display:
        for event in EVENTS[:6]:
            display.show(Event.parse(event))
    last = out.getvalue().split("✓")[-1]
    assert "ingest" in last
    assert "train" in last
    assert "12,346 examples/s" in last


# -------------------------------------------------------------------------------------------------------------- closing


def printed(renderable: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(renderable)
    return out.getvalue()


SUMMARY = {
    "date": "2017-11-15",
    "dataset": "complete_journey",
    "examples": 1000,
    "ranking": {"auc": 0.81234, "auc_ci": [0.8, 0.82], "gauc": 0.7, "logloss": 0.1, "calibration": 1.02},
    "retrieval": {
        variant: {
            **{"recall@10": 0.2, "recall@50": 0.4, "ndcg@10": 0.1},
            "popularity": {"recall@10": 0.05, "recall@50": 0.1, "ndcg@10": 0.02},
            "own_frequency": {"recall@10": None, "recall@50": 0.3, "ndcg@10": 0.09},
        }
        for variant in ("all", "new")
    },
    "sid": {"collision_rate": 0.03, "levels": [{"codes": 64, "used": 60, "perplexity": 50.2}], "churn": None},
    "model": {"name": "dig", "version": "3", "alias": "champion"},
    "index": {"generation": "2017-11-15-v3-0123456789", "items": 4321, "path": "/x"},
    "seconds": {"airflow": 5.0, "train": 120.5, "ingest": 55.0},
    "peak_rss_bytes": 4_200_000_000,
}


def test_the_closing_tables_show_times_memory_and_figures_beside_their_baselines() -> None:
    stages, figures = printed(stage_table(SUMMARY)), printed(figure_table(SUMMARY))
    assert "180.5" in stages
    assert "4.20 GB" in stages
    assert [row.split()[0] for row in stages.splitlines() if row.split()[1:]][1:] == ["ingest", "train", "airflow", "total", "peak"]
    row = next(r for r in figures.splitlines() if r.startswith("recall@10, all items"))
    assert row.split()[-3:] == ["0.2000", "0.0500", "n/a"]
    for text in ("0.8123", "0.8000 – 0.8200", "60/64 (50)", "dig v3 (champion)", "2017-11-15-v3-0123456789", "4,321 items"):
        assert text in figures


def test_an_answer_shows_names_as_they_are_and_the_history_before() -> None:
    item = SimpleNamespace(place=1, item_id="i1", name="MILK [1/2 gal]", sid=(1, 2, 3), probability=0.25)
    past = SimpleNamespace(day=date(2017, 11, 14), item_id="i2", name="BREAD")
    answer: Any = SimpleNamespace(
        user="7",
        known=True,
        note="",
        items=(item,),
        history=(past,) * 8,
        generation="g",
        day=date(2017, 11, 15),
        model_name="dig",
        model_version="1",
    )
    assert "MILK [1/2 gal]" in printed(answer_table(answer))
    assert "1-2-3" in printed(answer_table(answer))
    assert str(history_line(answer)).startswith("user 7 bought BREAD (14 Nov), ")
    assert str(history_line(answer)).endswith(", and 2 more")


# ------------------------------------------------------------------------------------------------------------ interrupt


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_every_process_of_the_run(tmp_path: Path, sent: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "retrain",
        "--date",
        "2017-11-15",
        "--set",
        f"paths.home={tmp_path}",
        "--set",
        "spark.driver_memory=1g",
    ]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    log = tmp_path / "runs" / "2017-11-15" / "logs" / "ingest.log"
    deadline = time.monotonic() + 120
    while not (log.is_file() and "Spark-Submit cmd" in log.read_text()):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    started = psutil.Process(run.pid).children(recursive=True)
    assert len(started) >= 2
    run.send_signal(sent)
    out, _ = run.communicate(timeout=180)
    assert run.returncode == 130
    assert "dig: interrupted" in out
    assert "Traceback" not in out
    assert [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
