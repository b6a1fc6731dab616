"""A reader of the index of a live stack: what serving does, again and again, while servers die and come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dig_models.index import generation as g
from jobs.index import index_root
from jobs.promotion import INTENT
from jobs.registry import CHAMPION
from ops.client import StackClient
from ops.http import HttpError, request
from tests.crash.harness import OUTCOMES, Outcome, Poll
from tests.crash.index import answer

PAUSE_SECONDS = 0.2  # a reader that never rests would take a core from the servers
AGREES, MOVING, AWAY = "agrees", "a promotion is under way", "the registry is away"


def read(home: Path) -> tuple[str, ...]:
    """One request to the index, and whether the champion is the version that serves.

    Raises:
        IndexMissing, IndexCorrupt: there is no index that can be read.
    """
    stack = StackClient.at(home)
    found = *answer(index_root(stack.config)), agreement(stack)
    time.sleep(PAUSE_SECONDS)
    return found


def agreement(stack: StackClient) -> str:
    """How the alias stands to ``CURRENT``; a disagreement counts if it lasts, for a move may begin and be undone between two looks."""
    root = index_root(stack.config)
    said = ""
    for _ in range(3):
        intent, now = (root / INTENT).exists(), g.require_current(root)
        try:
            champion = champion_of(stack)
        except (HttpError, OSError):
            return AWAY
        if intent or (root / INTENT).exists() or g.require_current(root) != now:
            return MOVING
        if champion == g.id_version(now):
            return AGREES
        said = f"{now} serves, but the champion is {champion}"
        time.sleep(PAUSE_SECONDS)
    return said


def champion_of(stack: StackClient) -> str:
    """Version with the alias, asked for without patience.

    Raises:
        HttpError, OSError: the registry is away.
    """
    url = f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias?name={stack.config.mlflow.model_name}&alias={CHAMPION}"
    return str(request("GET", url, timeout=2.0)["model_version"]["version"])


def is_mixed(found: tuple[str, ...], digests: dict[str, str]) -> bool:
    """Whether what a read found does not belong together; ``digests`` are the SIDs of each generation seen so far."""
    generation, version, sids, digest, agrees = found
    whole = version == g.id_version(generation) and sids == "the bundle's" and digests.setdefault(generation, digest) == digest
    return not (whole and agrees in (AGREES, MOVING, AWAY))


@contextmanager
def watched(stack: StackClient, fault: str, *, done: str, situation: str, died: str) -> Iterator[None]:
    """Read the index all the while, and add a line to the table of the crash tests; the block ends when all is as undisturbed."""
    poll = Poll(read, stack.home)
    outcome = Outcome(point=fault, done=done, situation=situation, died=died, seen="", rerun="as undisturbed")
    try:
        poll.again()
        yield
        poll.again()
    except BaseException:
        poll.close()
        raise
    reads, missing, seen = poll.close()
    digests: dict[str, str] = {}
    mixed = [found for found in sorted(seen) if is_mixed(found, digests)]
    told = f"{len(digests)} generation{'s' * (len(digests) != 1)}, whole"
    OUTCOMES.append(replace(outcome, seen=told, reads=reads, mixed=len(mixed), missing=missing))
    assert (mixed, missing) == ([], 0)
