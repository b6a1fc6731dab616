"""``dig retrain``: starts the embedded run in a process of its own, draws its progress, and closes with what came out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from jobs.cli_options import settings_file
from jobs.config import Config, ConfigError, load
from jobs.display import Tail, display_for
from jobs.processes import stop, tree
from jobs.runs import run_dir

INTERRUPTED = 130
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 15.0


def parse_date(text: str | None, config: Config) -> date:
    """The date asked for, or the data set's default.

    Raises:
        ConfigError: it is no date, or the settings have no window for it.
    """
    try:
        day = date.fromisoformat(text) if text else config.dataset.default_date
    except ValueError:
        raise ConfigError(f"--date {text}: expected a date, YYYY-MM-DD") from None
    config.run_window(day)
    return day


def retrain(asked: str | None, place: Path | None, sets: list[str]) -> int:
    """Run the DAGs for a date.

    Returns:
        Exit status of the run.

    Raises:
        ConfigError: settings or date cannot be used; nothing was started.
    """
    file = settings_file(place)
    config = load(file, sets)
    day = parse_date(asked, config)
    console = Console()
    folder = run_dir(config, day)
    console.print(Text.assemble(("dig retrain ", "bold"), f"{config.dataset.name} {day}  logs: {folder / 'logs'}"), soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="dig-") as scratch, Path(scratch, "errors").open("w+") as errors:
        status = _watch(_command(file, sets, day), Path(scratch, "progress.jsonl"), console, errors)
        if status == 0:
            from jobs.closing import close

            close(console, config, day)
        elif status != INTERRUPTED:
            errors.seek(0)
            told = errors.read().strip() or f"the run ended with exit status {status}"
            Console(stderr=True, soft_wrap=True).print(Text.assemble(("dig retrain failed: ", "bold red"), told))
    return status


def _command(file: Path, sets: list[str], day: date) -> list[str]:
    options = [part for item in sets for part in ("--set", item)]
    return [sys.executable, "-m", "dags.run", "--date", day.isoformat(), "--config", str(file), *options]


def _watch(command: list[str], progress: Path, console: Console, errors: IO[str]) -> int:
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "DIG_PROGRESS": str(progress),
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    # A session of its own: Ctrl-C reaches this process alone, which then stops the run in good order.
    run = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment, start_new_session=True
    )
    tail = Tail(progress)
    try:
        with display_for(console) as display:
            while True:
                ended = run.poll() is not None
                for event in tail.read():
                    display.show(event)
                if ended:
                    return run.returncode
                time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(run, console)
        raise


def _stop(run: subprocess.Popen[bytes], console: Console) -> None:
    console.print("stopping the run …", style="yellow")
    started = tree(run.pid)
    run.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(timeout=PATIENCE_SECONDS)
    stop([process for process in started if process.is_running()])
