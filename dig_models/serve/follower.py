"""Follows ``CURRENT`` of an index: opens and warms what it names beside the one that serves, then swaps one reference.

Whoever answers takes ``current`` once a question and keeps that reference until the answer is out, so a question that is under way ends
on the generation that it began with. The old generation is let go when the last such reference is: no counting, and no lock for a question.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dig_models.index import generation as g
from dig_models.serve.errors import where
from dig_models.serve.service import Service

log = logging.getLogger(__name__)
LONGEST_WAIT = 60.0


class Watcher(Protocol):
    """Who wants to know what a follower does (``dig_models.serve.metrics``)."""

    def switched(self, service: Service, seconds: float) -> None:
        """Another generation serves now; opening and warming it took ``seconds``."""
        ...

    def failed(self) -> None:
        """What ``CURRENT`` names could not be opened."""
        ...

    def released(self) -> None:
        """A generation that served is out of memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why what ``CURRENT`` names does not serve: the generation, None if that cannot even be read, and what was found."""

    generation: str | None
    reason: str


class Follower:
    """Keeps the generation that ``CURRENT`` names open.

    Args:
        root: the index folder; it may be empty still.
        opener: opens a generation by id; ``Service.open`` and ``warm`` in the server.
        poll_seconds: how often ``CURRENT`` is read. It is one line of a local or mounted file; times of files are not trusted, because a
            mounted share may show them late.
        watcher: told of switches, failures and releases.
    """

    def __init__(self, root: Path, opener: Callable[[str], Service], *, poll_seconds: float, watcher: Watcher) -> None:
        self.root, self._opener, self._poll_seconds, self._watcher = root, opener, poll_seconds, watcher
        self._current: Service | None = None
        self._trouble: Trouble | None = None
        self._failures, self._again_at = 0, 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def current(self) -> Service | None:
        """The generation that serves; None before the first one is open."""
        return self._current

    @property
    def trouble(self) -> Trouble | None:
        """Why ``CURRENT`` is not what serves, if it is not."""
        return self._trouble

    def look(self) -> bool:
        """Read ``CURRENT`` once, and switch to what it names if that is another generation; returns whether it switched.

        What cannot be opened is logged, what served before goes on serving, and it is tried again after a while that doubles.
        """
        wanted: str | None = None
        try:
            wanted = g.require_current(self.root)
            if self._current is not None and self._current.source.generation == wanted:
                self._trouble, self._failures = None, 0
                return False
            if self._trouble is not None and self._trouble.generation == wanted and time.monotonic() < self._again_at:
                return False
            began = time.monotonic()
            opened = self._opener(wanted)
        except (g.IndexMissing, g.IndexCorrupt, OSError) as error:
            self._note(Trouble(generation=wanted, reason=str(error)))
            return False
        except Exception as error:
            # Whatever else a generation raises when it is opened or warmed, a server must outlive it; its message may name a user.
            self._note(Trouble(generation=wanted, reason=where(error)))
            return False
        self._switch(opened, time.monotonic() - began)
        return True

    def _switch(self, opened: Service, seconds: float) -> None:
        weakref.finalize(opened, self._watcher.released)
        before = self._current.source.generation if self._current else "nothing"
        self._current, self._trouble, self._failures = opened, None, 0
        self._watcher.switched(opened, seconds)
        log.info("generation %s serves, %s did; opened and warmed in %.2f s", opened.source.generation, before, seconds)

    def _note(self, trouble: Trouble) -> None:
        self._failures = self._failures + 1 if self._trouble and self._trouble.generation == trouble.generation else 1
        self._again_at = time.monotonic() + min(self._poll_seconds * 2**self._failures, LONGEST_WAIT)
        known, self._trouble = self._trouble == trouble, trouble
        if trouble.generation is None and self._current is None:
            if not known:
                log.warning("nothing to serve yet: %s", trouble.reason)
            return
        self._watcher.failed()
        if not known:
            serving = self._current.source.generation if self._current else "nothing"
            log.error("generation %s cannot be opened, %s goes on serving: %s", trouble.generation, serving, trouble.reason)

    def start(self) -> None:
        """Look once, then go on in a thread."""
        self._thread = threading.Thread(target=self._follow, name="dig-follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what serves stays open."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self) -> None:
        self.look()
        while not self._stop.wait(self._poll_seconds):
            self.look()
