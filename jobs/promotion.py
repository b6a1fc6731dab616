"""The move of model and index: the alias ``champion`` and ``CURRENT`` change together or not at all.

A pair is a registered version and the index generation that was made with it. A move holds the promotion lock, leaves an intent in
``<index>/PROMOTION.json``, moves the aliases, switches ``CURRENT`` (the commit point: one atomic replace), reads both again,
appends to ``<index>/promotions.jsonl`` and removes the intent. What a crash leaves is settled by the next move, before anything
else: if ``CURRENT`` names the new generation the aliases follow it, else they go back. Rollback is a move to the pair before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import date
from pathlib import Path

from dig_models.faults import reached
from dig_models.files import append_line, exclusive, replace_text
from dig_models.index import generation as g
from dig_models.index.verify import verify
from dig_models.index.writer import locked, retain, superfluous, switch
from jobs import registry
from jobs.config import Config
from jobs.entry import Held, JobError, ServiceAway
from jobs.index import index_root
from jobs.promotion_log import LOG, NOTHING, Entry, Pair, Request, entries, moves, standing

log = logging.getLogger("jobs.promotion")
INTENT, LOCK = "PROMOTION.json", ".promotion.lock"


class Unfinished(JobError):
    """A move came as far as ``CURRENT`` and no further; the next one settles it."""


def in_force(config: Config) -> Pair:
    """The champion and the generation that ``CURRENT`` names."""
    champion = registry.find(config, registry.CHAMPION)
    return Pair(version=champion.version if champion else None, generation=g.current(index_root(config)))


def rollback_target(config: Config, now: Pair) -> Pair:
    """The pair that was in force before ``now``, which is; a move that was cut short must have been settled.

    Raises:
        JobError: there is none, or its generation is no longer kept.
    """
    root = index_root(config)
    below = [pair for pair in standing(moves(root))[-2:] if pair != now]
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
    """Make a pair champion and current, both or neither. The lock of index writers is not taken: a build never holds up a rollback.

    Args:
        config: settings in force.
        asked: the pair; None for the one before, if ``request`` is a rollback.
        request: who asks, when and why.

    Returns:
        The entry of the log; if the pair is in force already, one that was not added to it, with a message that says so.

    Raises:
        JobError: refused, and nothing moved; the message says why and what to do, and stands in the log.
        Held: another move is under way.
        ServiceAway: the registry does not answer; what had moved was put back, or the next move does that.
        Unfinished: someone moved alias or index past the lock at the same moment.
    """
    root = index_root(config)
    with _alone(root):
        own = _own_registry(config, root)
        settled, before = settle(config), in_force(config)
        entry = Entry(
            at=request.at,
            moved_at=request.begun,
            action=request.action,
            outcome="promoted",
            who=request.who,
            reason=request.reason,
            before=before,
            after=asked or Pair(version=None, generation=None),
            registry=own,
        )
        try:
            if done := _done_before(root, asked, before, request):
                return done
            _unchanged(root, before, settled, request)
            entry = replace(entry, after=asked or rollback_target(config, before))
            if before == entry.after:
                return replace(entry, message=f"{before} is in force already")
            _check(config, root, entry, request)
            entry = replace(entry, withdraw=_withdraw(config, entry))
        except ServiceAway:
            raise
        except JobError as error:
            append_line(root / LOG, replace(entry, outcome="refused", message=str(error)).text())
            raise
        _carry_out(config, root, entry)
        _retire(config, root)
    return entry


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
    for last in entries(root)[-1:]:
        if replace(last, outcome=entry.outcome, message=entry.message) == entry:  # all was done but the intent's removal
            path.unlink()
            return last
    if g.current(root) == entry.after.generation:
        log.warning("the move to %s was cut short; finishing it", entry.after)
        _aliases(config, entry)
        _tags(config, entry)
        return _close(root, entry)
    log.warning("the move to %s was cut short before the index was switched; undoing it", entry.after)
    _undo(config, entry)
    return _close(root, replace(entry, outcome="undone", message="cut short before the index was switched"))


def mend(config: Config) -> None:
    """Settle what a move that was cut short left behind, for a job that goes by what is in force.

    Raises:
        Held: another move is under way.
    """
    root = index_root(config)
    with _alone(root):
        _own_registry(config, root)
        settle(config)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(exclusive(root / LOCK, wait=False))
        except BlockingIOError as error:
            by = ""
            with suppress(FileNotFoundError):
                by = f" by {Entry.parse((root / INTENT).read_text(encoding='utf-8')).who}"
            raise Held(
                f"another promotion is under way{by} ({error.strerror}); nothing was moved: look at what it did, then ask again"
            ) from None
        yield


def _own_registry(config: Config, root: Path) -> str:
    """Identity of the registry in force, which must be the one that the index was always moved with: versions of another one are others.

    Raises:
        JobError: it is another one.
    """
    now = registry.identity(config)
    ours = next((entry.registry for entry in reversed(moves(root)) if entry.registry), now)
    if now != ours:
        found = f"model {now}" if now else f"no model {config.mlflow.model_name!r}"
        raise JobError(
            f"{root}: this index moves with the registry of model {ours}; "
            f"the one at mlflow.tracking_uri {config.tracking_uri()} is another "
            f"({found}); nothing was moved: ask with the settings of the first, or give this registry an index of its own "
            "(paths.index, paths.runs)"
        )
    return now


def _done_before(root: Path, asked: Pair | None, before: Pair, request: Request) -> Entry | None:
    """The entry of this very request, if an earlier attempt carried it out: a retried rollback must not go back twice.

    Raises:
        JobError: it was carried out, and something else has been moved to since.
    """
    carried_out = moves(root)
    for entry in carried_out:
        if entry.answers(request) and asked in (None, entry.after):
            if entry.after == before:
                return replace(entry, message=f"{before} is in force already: an earlier attempt saw to it")
            raise JobError(f"this was carried out at {entry.moved_at}, and since then {carried_out[-1].story()}; nothing was moved")
    return None


def _unchanged(root: Path, before: Pair, settled: Entry | None, request: Request) -> None:
    """Refuse if what is in force is not what the request was made for."""
    again = "nothing was moved: look at what is in force, then ask again"
    if settled and settled.outcome == "promoted" and request.action == "rollback":
        raise JobError(f"a move that was cut short is settled now, and {before} is in force; {again}")
    for entry in moves(root)[-1:]:
        if entry.later_than(request.at):
            raise JobError(f"asked for at {request.at}, but since then {entry.story()}; {again}")
    if request.expected is not None and (before.generation or NOTHING) != request.expected:
        raise JobError(f"asked for when generation {request.expected} was current, but now it is {before.generation or NOTHING}; {again}")
    if request.compared_with is not None and (before.version or NOTHING) != request.compared_with:
        raise JobError(
            f"the gate compared with champion {request.compared_with}, but now it is {before.version or NOTHING}: "
            "evaluate, judge and index the date again (jobs.evaluate, jobs.gate, jobs.index)"
        )


def _check(config: Config, root: Path, entry: Entry, request: Request) -> None:
    before, after = entry.before, entry.after
    tags = registry.get(config, str(after.version)).tags
    verdict = tags.get(registry.GATE)
    if verdict != registry.PASSED and not request.past_gate:
        raise JobError(
            f"version {after.version} {'did not pass the gate' if verdict else 'was never judged by the gate'}: "
            "python -m jobs.gate judges it; to move past the gate on purpose, say so (--past-gate)"
        )
    if not request.by_hand:
        if registry.WITHDRAWN in tags:
            raise JobError(
                f"version {after.version} was rolled back from; to promote it again, name it: dig promote --version {after.version}"
            )
        if before.generation and g.id_date(before.generation) > g.id_date(str(after.generation)):
            raise JobError(
                f"generation {after.generation} serves an earlier day than {before.generation}, which is current: a backfill leaves the "
                f"index alone; to step back on purpose, name it: dig promote --generation {after.generation}"
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
        if g.current(root) == entry.before.generation:
            with suppress(Exception):
                _undo(config, entry)
                _close(root, replace(entry, outcome="undone", message="alias and index could not both be moved"))
        raise
    reached("promotion.current_switched")
    found = in_force(config)
    if found != entry.after:
        raise Unfinished(f"after the move to {entry.after}, {found} is in force: someone moves alias or index past the promotion lock")
    _tags(config, entry)
    reached("promotion.tags_set")
    _close(root, entry)


def pinned(root: Path) -> set[str]:
    """Generations that retention must leave: what is in force, what a rollback goes back to, and both ends of a move under way."""
    pairs = standing(moves(root))[-2:]
    if (root / INTENT).is_file():
        entry = Entry.parse((root / INTENT).read_text(encoding="utf-8"))
        pairs += [entry.before, entry.after]
    return {pair.generation for pair in pairs if pair.generation}


def _retire(config: Config, root: Path) -> None:
    """Remove generations that are too many, unless a writer is at work; then the next move does."""
    with suppress(BlockingIOError), locked(root, wait=False):
        retain(root, config.index.keep, also=pinned(root))


def collect(config: Config, keep: int | None = None, *, dry_run: bool = False) -> list[str]:
    """Remove the generations that are too many: see ``dig_models.index.writer.superfluous``; what a rollback needs stays too.

    Args:
        config: settings in force.
        keep: newest whole generations that stay; ``index.keep`` by default.
        dry_run: only say which would go.

    Returns:
        Ids that were removed, or would be, oldest first.

    Raises:
        Held: an index is being written just now.
        JobError: the current generation, or the log, cannot be read: then nothing says what is needed.
    """
    root = index_root(config)
    try:
        with locked(root, wait=False):
            choose = superfluous if dry_run else retain
            return choose(root, keep or config.index.keep, also=pinned(root))
    except BlockingIOError as error:
        raise Held(f"{root}: a writer is at work ({error.strerror}); nothing was removed: ask again when it is done") from None
    except g.IndexCorrupt as error:
        raise JobError(str(error)) from error


def _close(root: Path, entry: Entry) -> Entry:
    append_line(root / LOG, entry.text())
    reached("promotion.logged")
    (root / INTENT).unlink()
    reached("promotion.intent_removed")
    return entry


def _aliases(config: Config, entry: Entry) -> None:
    _set_previous(config, standing([*moves(index_root(config)), entry]))
    reached("promotion.previous_moved")
    registry.set_alias(config, registry.CHAMPION, str(entry.after.version))
    reached("promotion.champion_moved")


def _undo(config: Config, entry: Entry) -> None:
    if entry.before.version is None:
        registry.drop_alias(config, registry.CHAMPION)
    else:
        registry.set_alias(config, registry.CHAMPION, entry.before.version)
    _set_previous(config, standing(moves(index_root(config))))


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
