"""The move of model and index: the alias ``champion`` and ``CURRENT`` change together or not at all.

A pair is a registered version and the index generation that was made with it. A move holds the promotion lock, leaves an intent in
``<index>/PROMOTION.json``, moves the aliases, switches ``CURRENT`` (the commit point: one atomic replace), reads both again,
appends to ``<index>/promotions.jsonl`` and removes the intent. What a crash leaves is settled by the next move, before anything
else: if ``CURRENT`` names the new generation the aliases follow it, else they go back. Rollback is a move to the pair before.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self

from dig_models.faults import reached
from dig_models.files import append_line, exclusive, replace_text
from dig_models.index import generation as g
from dig_models.index.verify import verify
from dig_models.index.writer import locked, retain, switch
from jobs import registry
from jobs.config import Config
from jobs.entry import Held, JobError
from jobs.index import index_root

log = logging.getLogger("jobs.promotion")
INTENT, LOG, LOCK = "PROMOTION.json", "promotions.jsonl", ".promotion.lock"
NOTHING = "none"
Action = Literal["promote", "rollback"]
Outcome = Literal["promoted", "refused", "undone"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A version of the model and the generation that serves it; either is None where there is none yet."""

    version: str | None
    generation: str | None

    def __str__(self) -> str:
        return f"version {self.version} with generation {self.generation}" if self.version else "no champion"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Who asks for a move, when (UTC, ISO 8601) and why.

    Attributes:
        expected: generation that must be current when the move begins (``none`` before the first); None if any may be.
        past_gate: move also to a version that did not pass the gate.
        allow_older: move also to a generation of an earlier date than what is current.
    """

    action: Action
    who: str
    reason: str
    at: str
    expected: str | None = None
    past_gate: bool = False
    allow_older: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the promotion log.

    Attributes:
        before: the pair that was in force; ``after``: the one asked for.
        withdraw: date to tag what is stepped back from with; None for a step forward.
    """

    at: str
    action: Action
    outcome: Outcome
    who: str
    reason: str
    before: Pair
    after: Pair
    withdraw: str | None = None
    message: str = ""

    def text(self) -> str:
        """Canonical JSON, on one line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``text`` wrote."""
        held: dict[str, Any] = json.loads(text)
        return cls(**(held | {"before": Pair(**held["before"]), "after": Pair(**held["after"])}))


def entries(root: Path) -> list[Entry]:
    """The promotion log, oldest first; half a line at its end, left by a crash, is no entry.

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


def standing(log_entries: Sequence[Entry]) -> list[Pair]:
    """Pairs that were in force one on top of the other: a promotion adds one, a rollback takes one away; the last is in force."""
    stack: list[Pair] = []
    for entry in log_entries:
        if entry.outcome != "promoted":
            continue
        known = stack[-1:] == [entry.before]
        if entry.action == "rollback" and known:
            stack.pop()
        elif entry.action == "promote" and not known and entry.before.version and entry.before.generation:
            stack.append(entry.before)  # came into force before there was a log, or past it
        if stack[-1:] != [entry.after]:
            stack.append(entry.after)
    return stack


def in_force(config: Config) -> Pair:
    """The champion and the generation that ``CURRENT`` names."""
    champion = registry.find(config, registry.CHAMPION)
    return Pair(version=champion.version if champion else None, generation=g.current(index_root(config)))


def rollback_target(config: Config) -> Pair:
    """The pair that was in force before the one that is; a move that was cut short must have been settled.

    Raises:
        JobError: there is none, or its generation is no longer kept.
    """
    root = index_root(config)
    now = in_force(config)
    below = [pair for pair in standing(entries(root))[-2:] if pair != now]
    if not below:
        raise JobError(f"{root / LOG}: no pair before {now}, so there is nothing to roll back to; promote a version instead")
    target = below[-1]
    if target.generation not in g.generations(root):
        raise JobError(
            f"rollback to {target}: the generation is gone (index.keep is {config.index.keep}); "
            f"promote the version instead: dig promote --version {target.version}"
        )
    return target


def move(config: Config, asked: Pair | None, request: Request) -> Entry:
    """Make a pair champion and current, both or neither.

    Args:
        config: settings in force.
        asked: the pair; None for the one before, if ``request`` is a rollback.
        request: who asks, when and why.

    Returns:
        The entry of the log; if the pair is in force already, one that was not added to it.

    Raises:
        JobError: refused, and nothing moved; the message says why and what to do.
    """
    root = index_root(config)
    with _alone(root):
        settled, before = settle(config), in_force(config)
        if done := _done_before(root, asked, before, request):
            return done
        if settled and settled.outcome == "promoted" and request.action == "rollback":
            raise JobError(
                f"a move that was cut short is settled now, and {before} is in force: look whether to roll back from that, then ask again"
            )
        target = asked or rollback_target(config)
        entry = Entry(
            at=request.at, action=request.action, outcome="promoted", who=request.who, reason=request.reason, before=before, after=target
        )
        with locked(root):
            try:
                _expected(root, before, request)
                if before == target:
                    return replace(entry, message=f"{target} is in force already")
                _check(config, root, entry, request)
                entry = replace(entry, withdraw=_withdraw(config, entry))
            except JobError as error:
                append_line(root / LOG, replace(entry, outcome="refused", message=str(error)).text())
                raise
            _carry_out(config, root, entry)
            retain(root, config.index.keep, also={pair.generation for pair in standing(entries(root))[-2:] if pair.generation})
    return entry


def _done_before(root: Path, asked: Pair | None, before: Pair, request: Request) -> Entry | None:
    """The entry of this very request, if an attempt that was cut short carried it out: a retried rollback must not go back twice."""
    for last in [entry for entry in entries(root) if entry.outcome == "promoted"][-1:]:
        same = (last.action, last.who, last.reason, last.at) == (request.action, request.who, request.reason, request.at)
        if same and last.after == before and asked in (None, before):
            return replace(last, message=f"{before} is in force already: an earlier attempt saw to it")
    return None


def settle(config: Config) -> Entry | None:
    """Finish or undo what a move that was cut short left behind; the caller holds the promotion lock.

    Returns:
        The move that was cut short, with what became of it; None if there was none.
    """
    root = index_root(config)
    path = root / INTENT
    if not path.is_file():
        return None
    entry = Entry.parse(path.read_text(encoding="utf-8"))
    if entries(root)[-1:] == [entry]:  # all was done but the intent's removal
        path.unlink()
        return entry
    if g.current(root) == entry.after.generation:
        log.warning("the move to %s was cut short; finishing it", entry.after)
        _aliases(config, entry)
        _tags(config, entry)
        return _close(root, entry)
    log.warning("the move to %s was cut short before the index was switched; undoing it", entry.after)
    _undo(config, entry)
    return _close(root, replace(entry, outcome="undone", message="cut short before the index was switched"))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    try:
        with exclusive(root / LOCK, wait=False):
            yield
    except BlockingIOError as error:
        intent = root / INTENT
        by = f" by {Entry.parse(intent.read_text(encoding='utf-8')).who}" if intent.is_file() else ""
        raise Held(
            f"another promotion is under way{by} ({error.strerror}); nothing was moved: look at what it did, then ask again"
        ) from None


def _expected(root: Path, before: Pair, request: Request) -> None:
    if request.expected is None or (before.generation or NOTHING) == request.expected:
        return
    last = entries(root)[-1:]
    by = f"; {last[0].who} moved it at {last[0].at}: {last[0].reason}" if last and last[0].outcome == "promoted" else ""
    raise JobError(
        f"asked for when generation {request.expected} was current, but now it is {before.generation or NOTHING}{by}; "
        "nothing was moved: look at what is in force, then ask again"
    )


def _check(config: Config, root: Path, entry: Entry, request: Request) -> None:
    before, after = entry.before, entry.after
    verdict = registry.get(config, str(after.version)).tags.get(registry.GATE)
    if verdict != registry.PASSED and not request.past_gate:
        raise JobError(
            f"version {after.version} {'did not pass the gate' if verdict else 'was never judged by the gate'}: "
            "python -m jobs.gate judges it; to move past the gate on purpose, say so (--past-gate)"
        )
    if before.generation and g.id_date(before.generation) > g.id_date(str(after.generation)) and not request.allow_older:
        raise JobError(
            f"generation {after.generation} serves an earlier day than {before.generation}, which is current: "
            "a backfill leaves the index alone (--allow-older moves all the same)"
        )
    try:
        made_with = g.read_manifest(root, str(after.generation)).model_version
        verify(root, after.generation)
    except (g.IndexMissing, g.IndexCorrupt) as error:
        raise JobError(str(error)) from error
    if made_with != after.version:
        raise JobError(f"generation {after.generation} was made with version {made_with}, not {after.version}: they must move together")


def _carry_out(config: Config, root: Path, entry: Entry) -> None:
    replace_text(root / INTENT, entry.text())
    reached("promotion.intent_written")
    try:
        _aliases(config, entry)
        switch(root, str(entry.after.generation))
    except Exception:
        # The registry is away or the disk is full: what did move goes back; if even that fails, the intent tells the next move.
        if g.current(root) != entry.after.generation:
            with suppress(Exception):
                _undo(config, entry)
                _close(root, replace(entry, outcome="undone", message="alias and index could not both be moved"))
        raise
    reached("promotion.current_switched")
    found = in_force(config)
    if found != entry.after:
        raise JobError(f"after the move to {entry.after}, {found} is in force: someone moves alias or index past the promotion lock")
    _tags(config, entry)
    reached("promotion.tags_set")
    _close(root, entry)


def _close(root: Path, entry: Entry) -> Entry:
    append_line(root / LOG, entry.text())
    reached("promotion.logged")
    (root / INTENT).unlink()
    reached("promotion.intent_removed")
    return entry


def _aliases(config: Config, entry: Entry) -> None:
    _set_previous(config, standing([*entries(index_root(config)), entry]))
    reached("promotion.previous_moved")
    registry.set_alias(config, registry.CHAMPION, str(entry.after.version))
    reached("promotion.champion_moved")


def _undo(config: Config, entry: Entry) -> None:
    if entry.before.version is None:
        registry.drop_alias(config, registry.CHAMPION)
    else:
        registry.set_alias(config, registry.CHAMPION, entry.before.version)
    _set_previous(config, standing(entries(index_root(config))))


def _set_previous(config: Config, stack: Sequence[Pair]) -> None:
    """``previous`` is the newest version below the champion that is another one."""
    below = next((pair.version for pair in reversed(stack) if pair.version != stack[-1].version), None)
    if below is None:
        registry.drop_alias(config, registry.PREVIOUS)
    else:
        registry.set_alias(config, registry.PREVIOUS, below)


def _withdraw(config: Config, entry: Entry) -> str | None:
    """Date to tag what is left behind with, if this is a step back."""
    if entry.before.version is None or entry.before.version == entry.after.version:
        return None
    old, new = registry.get(config, entry.before.version), registry.get(config, str(entry.after.version))
    return new.date.isoformat() if entry.action == "rollback" or new.date < old.date else None


def _tags(config: Config, entry: Entry) -> None:
    """Date of promotion on the new champion; a step back withdraws all that no training should start from any more."""
    new = registry.get(config, str(entry.after.version))
    if registry.PROMOTED_ON not in new.tags:
        registry.tag(config, new.version, registry.PROMOTED_ON, new.date.isoformat())
    if registry.WITHDRAWN in new.tags:
        registry.untag(config, new.version, registry.WITHDRAWN)
    if entry.withdraw is None:
        return
    for ref in registry.versions(config):
        on = ref.tags.get(registry.PROMOTED_ON)
        later = on is not None and date.fromisoformat(on) > new.date
        if (later or ref.version == entry.before.version) and registry.WITHDRAWN not in ref.tags:
            registry.tag(config, ref.version, registry.WITHDRAWN, entry.withdraw)
