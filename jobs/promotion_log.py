"""The promotion log: who asked for which move when and why, and what became of it; one JSON object a line, only ever appended to.

What is in force, and what a rollback goes back to, can be read from it alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from jobs.entry import JobError

LOG = "promotions.jsonl"
NOTHING = "none"
Action = Literal["promote", "rollback", "refresh"]
Outcome = Literal["promoted", "refused", "undone"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A version of the model and the generation that serves it; either is None where there is none."""

    version: str | None
    generation: str | None

    def __str__(self) -> str:
        return f"version {self.version} with generation {self.generation}" if self.version else "no champion"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks for a move, when and why; times in ISO 8601 with their zone.

    Attributes:
        at: when it was asked for: the same for every attempt. With who, action and reason it says which request this is.
        begun: when this attempt began.
        expected: generation that must be current (``NOTHING`` before the first); None if any may be.
        compared_with: champion that the version was judged against (``NOTHING`` for none), which must still be it; None if any may be.
        by_hand: a person named what to move to: it may be of an earlier day than what is current, and may have been rolled back from.
        past_gate: it need not have passed the gate.
    """

    action: Action
    who: str
    reason: str
    at: str
    begun: str
    expected: str | None = None
    compared_with: str | None = None
    by_hand: bool = False
    past_gate: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        at: when it was asked for; ``moved_at``: when it was carried out or refused.
        before: the pair that was in force; ``after``: the one asked for.
        withdraw: date to tag what is stepped back from with; None for a step forward.
        registry: identity of the registry whose version moved; empty in lines from before it was kept.
    """

    at: str
    moved_at: str
    action: Action
    outcome: Outcome
    who: str
    reason: str
    before: Pair
    after: Pair
    withdraw: str | None = None
    message: str = ""
    registry: str = ""

    def text(self) -> str:
        """Canonical JSON, on one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``text`` wrote."""
        held: dict[str, Any] = json.loads(text)
        return cls(**(held | {"before": Pair(**held["before"]), "after": Pair(**held["after"])}))

    def answers(self, request: Request) -> bool:
        """Whether it is about this very request."""
        return (self.action, self.who, self.reason, self.at) == (request.action, request.who, request.reason, request.at)

    def later_than(self, time: str) -> bool:
        """Whether it was carried out after a moment."""
        return datetime.fromisoformat(self.moved_at) > datetime.fromisoformat(time)

    def story(self) -> str:
        """Who moved what when and why, in words."""
        return f"{self.who} moved to {self.after} at {self.moved_at}: {self.reason}"


def entries(root: Path) -> list[Entry]:
    """The log of an index, oldest first; half a line at its end, left by a crash, is no entry.

    Raises:
        JobError: a line cannot be read.
    """
    path = root / LOG
    found = []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Entry.parse(line))
        except (ValueError, TypeError, KeyError) as error:
            raise JobError(f"{path}, line {number}: no entry of the promotion log ({error}); mend or remove that line") from None
    return found


def moves(root: Path) -> list[Entry]:
    """The entries that were carried out, oldest first."""
    return [entry for entry in entries(root) if entry.outcome == "promoted"]


def standing(carried_out: Sequence[Entry]) -> list[Pair]:
    """Pairs that were in force one on top of the other: a promotion adds one, a rollback takes one away; the last is in force.

    A refresh puts its generation in the place of the one that it was made from: a rollback goes back past both.
    """
    stack: list[Pair] = []
    for entry in carried_out:
        known = stack[-1:] == [entry.before]
        if entry.action in ("rollback", "refresh") and known:
            stack.pop()
        elif entry.action == "promote" and not known and entry.before.version and entry.before.generation:
            stack.append(entry.before)  # came into force before there was a log, or past it
        if stack[-1:] != [entry.after]:
            stack.append(entry.after)
    return stack
