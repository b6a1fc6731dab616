"""Alias and index move together or not at all, against a real registry (SQLite) and real generations."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import release_world as rw
from release_world import ReleaseWorld, asks

from dig_models.index import generation as g
from dig_models.index.writer import locked
from jobs import cli, promotion, registry
from jobs.entry import JobError, ServiceAway
from jobs.files import exclusive
from jobs.promotion import Unfinished, move, settle
from jobs.promotion_log import LOG, Entry, Pair, Request, entries, standing

pytestmark = pytest.mark.slow
LATER = "2017-11-20T09:00:00+00:00"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("release") / "home"
    rw.make(home)
    return home


@pytest.fixture
def world(made: Path, tmp_path: Path) -> ReleaseWorld:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    config = rw.settings(home)
    found = g.generations(Path(config.paths.at("index")))
    return ReleaseWorld(config, tuple(Pair(version=g.id_version(generation), generation=generation) for generation in found))


def log_of(world: ReleaseWorld) -> list[tuple[str, str, str | None]]:
    return [(entry.action, entry.outcome, entry.after.version) for entry in entries(world.root)]


def test_the_first_promotion_moves_alias_and_index_and_is_logged(world: ReleaseWorld) -> None:
    one = world.pairs[0]
    entry = move(world.config, one, asks(reason="the first"))
    assert (world.aliases, world.current) == ({"champion": "1"}, one.generation)
    assert world.tags("1")["promoted_on"] == rw.day_of(1).isoformat()
    assert entries(world.root) == [entry]
    line = json.loads((world.root / LOG).read_text())
    assert (line["who"], line["reason"], line["at"], line["before"]) == ("ann", "the first", rw.AT, {"generation": None, "version": None})
    assert not (world.root / promotion.INTENT).exists()


def test_promoting_what_is_in_force_changes_no_byte(world: ReleaseWorld) -> None:
    move(world.config, world.pairs[0], asks())
    before = (world.root / LOG).read_bytes()
    assert "in force already" in move(world.config, world.pairs[0], asks()).message
    assert (world.root / LOG).read_bytes() == before


def test_the_champion_before_becomes_previous_and_rollbacks_go_back_step_by_step(world: ReleaseWorld) -> None:
    for pair in world.pairs:
        move(world.config, pair, asks())
    assert (world.aliases, world.current) == ({"champion": "3", "previous": "2"}, world.pairs[2].generation)
    move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    assert (world.aliases, world.current) == ({"champion": "2", "previous": "1"}, world.pairs[1].generation)
    move(world.config, None, asks("rollback", who="bob", past_gate=True, by_hand=True))
    assert (world.aliases, world.current) == ({"champion": "1"}, world.pairs[0].generation)
    with pytest.raises(JobError, match="nothing to roll back to"):
        move(world.config, None, asks("rollback", who="cyd", past_gate=True, by_hand=True))
    assert world.aliases == {"champion": "1"}


def test_no_training_starts_from_what_was_rolled_back_until_it_is_promoted_again(world: ReleaseWorld) -> None:
    for pair in world.pairs[:2]:
        move(world.config, pair, asks())
    assert registry.ancestor(world.config, rw.day_of(9)).version == "2"  # type: ignore[union-attr]
    move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    assert world.tags("2")["withdrawn"] == rw.day_of(1).isoformat()
    assert registry.ancestor(world.config, rw.day_of(9)).version == "1"  # type: ignore[union-attr]
    move(world.config, world.pairs[1], asks(who="bob", by_hand=True))
    assert "withdrawn" not in world.tags("2")
    assert registry.ancestor(world.config, rw.day_of(9)).version == "2"  # type: ignore[union-attr]


def test_after_a_rollback_a_promotion_and_a_rollback_lead_back_to_the_same_pair(world: ReleaseWorld) -> None:
    one, two, three = world.pairs
    for pair in (one, two):
        move(world.config, pair, asks())
    move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    move(world.config, three, asks())
    assert world.aliases == {"champion": "3", "previous": "1"}
    move(world.config, None, asks("rollback", who="bob", past_gate=True, by_hand=True))
    assert world.current == one.generation


def test_an_index_moves_with_one_registry_however_alike_another_is(world: ReleaseWorld, tmp_path: Path) -> None:
    for pair in world.pairs[:2]:
        move(world.config, pair, asks())
    log, aliases = (world.root / LOG).read_bytes(), world.aliases
    other = rw.settings(Path(world.config.paths.home), f"mlflow.tracking_uri=sqlite:///{tmp_path / 'other.db'}")
    for known in ("no model 'dig'", "model dig, registered 20"):
        for asked in (None, world.pairs[2]):
            with pytest.raises(JobError, match=rf"moves with the registry of model dig, registered .*is another \({known}.*paths\.index"):
                move(other, asked, asks("promote" if asked else "rollback", who="bob", past_gate=True, by_hand=True))
        if known.startswith("no"):
            registry.client(other).create_registered_model(other.mlflow.model_name)
    assert ((world.root / LOG).read_bytes(), world.aliases, world.current) == (log, aliases, world.pairs[1].generation)
    move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    assert world.current == world.pairs[0].generation


def test_a_version_that_did_not_pass_the_gate_is_refused_unless_asked_past_it(world: ReleaseWorld) -> None:
    registry.tag(world.config, "1", registry.GATE, registry.REFUSED)
    with pytest.raises(JobError, match="version 1 did not pass the gate"):
        move(world.config, world.pairs[0], asks())
    assert (world.aliases, world.current) == ({}, None)
    assert log_of(world) == [("promote", "refused", "1")]
    move(world.config, world.pairs[0], asks(past_gate=True))
    assert world.aliases == {"champion": "1"}


def test_an_earlier_day_is_refused_unless_asked_for(world: ReleaseWorld) -> None:
    move(world.config, world.pairs[1], asks())
    with pytest.raises(JobError, match="serves an earlier day"):
        move(world.config, world.pairs[0], asks())
    assert world.aliases == {"champion": "2"}
    move(world.config, world.pairs[0], asks(by_hand=True))
    assert world.aliases == {"champion": "1", "previous": "2"}


def test_a_pair_that_does_not_belong_together_is_refused(world: ReleaseWorld) -> None:
    with pytest.raises(JobError, match="was made with version 2, not 1"):
        move(world.config, Pair(version="1", generation=world.pairs[1].generation), asks())
    assert (world.aliases, world.current) == ({}, None)


def test_a_damaged_generation_is_refused_and_what_serves_stays(world: ReleaseWorld) -> None:
    move(world.config, world.pairs[0], asks())
    (world.root / g.GENERATIONS / str(world.pairs[1].generation) / g.SID_TO_ITEMS).write_bytes(b"x")
    with pytest.raises(JobError, match=g.SID_TO_ITEMS):
        move(world.config, world.pairs[1], asks())
    assert (world.aliases, world.current) == ({"champion": "1"}, world.pairs[0].generation)


def test_what_was_promoted_meanwhile_refuses_a_move_that_was_asked_for_before(world: ReleaseWorld) -> None:
    one, two, three = world.pairs
    move(world.config, one, asks())
    move(world.config, two, asks(who="bob", reason="first come", expected=one.generation, begun=LATER))
    for request, said in (
        (asks(), rf"asked for at {re.escape(rw.AT)}, but since then bob moved to version 2 .*: first come"),
        (asks(at=LATER, expected=one.generation), f"{one.generation} was current, but now it is {two.generation}"),
        (asks(at=LATER, compared_with="1"), "compared with champion 1, but now it is 2: evaluate, judge and index"),
    ):
        with pytest.raises(JobError, match=said):
            move(world.config, three, replace(request, who="cyd"))
    assert world.aliases == {"champion": "2", "previous": "1"}
    assert log_of(world)[-3:] == [("promote", "refused", "3")] * 3


def test_an_attempt_that_comes_back_after_a_rollback_does_not_undo_it(world: ReleaseWorld) -> None:
    one, two, _ = world.pairs
    move(world.config, one, asks())
    daily = asks(who="airflow", reason="passed the gate")
    move(world.config, two, daily)
    move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    with pytest.raises(JobError, match=r"this was carried out at .* since then ann moved to version 1"):
        move(world.config, two, daily)
    with pytest.raises(JobError, match="version 2 was rolled back from; to promote it again, name it: dig promote --version 2"):
        move(world.config, two, replace(daily, who="another run"))
    assert (world.aliases, world.current) == ({"champion": "1"}, one.generation)
    assert "withdrawn" in world.tags("2")


def test_a_build_that_is_under_way_does_not_hold_up_a_rollback(world: ReleaseWorld) -> None:
    for pair in world.pairs[:2]:
        move(world.config, pair, asks())
    with locked(world.root):
        move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    assert world.current == world.pairs[0].generation


def test_a_rollback_with_nothing_to_go_back_to_stands_in_the_log(world: ReleaseWorld) -> None:
    with pytest.raises(JobError, match="nothing to roll back to"):
        move(world.config, None, asks("rollback", by_hand=True))
    assert log_of(world) == [("rollback", "refused", None)]


def test_of_two_at_once_one_wins_and_the_other_is_told_who_is_at_work(world: ReleaseWorld, tmp_path: Path) -> None:
    code = f"""
import release_world as rw
from jobs.promotion import move
from jobs.promotion_log import Pair
move(rw.settings({str(world.config.paths.home)!r}), Pair(version="1", generation={world.pairs[0].generation!r}), rw.asks(who="bob"))
"""
    environment = {"DIG_FAULT": f"promotion.champion_moved=pause:{tmp_path}", "PYTHONPATH": ".:tests:tests/jobs", "PATH": "/usr/bin:/bin"}
    first = subprocess.Popen([sys.executable, "-c", code], env=environment)
    flag = tmp_path / "promotion.champion_moved"
    while not flag.exists():
        assert first.poll() is None
    with pytest.raises(JobError, match=r"another promotion is under way by bob \(process "):
        move(world.config, world.pairs[1], asks())
    flag.unlink()
    assert first.wait(timeout=60) == 0
    assert (world.aliases, world.current) == ({"champion": "1"}, world.pairs[0].generation)


def test_a_registry_that_does_not_take_the_alias_leaves_all_as_it_was(world: ReleaseWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    move(world.config, world.pairs[0], asks())
    real = registry.set_alias

    def refuses(config: object, alias: str, version: str) -> None:
        if (alias, version) == (registry.CHAMPION, "2"):
            raise ServiceAway("the registry is away")
        real(config, alias, version)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "set_alias", refuses)
    with pytest.raises(ServiceAway):
        move(world.config, world.pairs[1], asks())
    assert (world.aliases, world.current) == ({"champion": "1"}, world.pairs[0].generation)
    assert log_of(world) == [("promote", "promoted", "1"), ("promote", "undone", "2")]
    assert not (world.root / promotion.INTENT).exists()


def test_an_alias_moved_by_hand_in_mid_move_is_noticed(world: ReleaseWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    real = promotion.switch

    def interfere(root: Path, generation: str) -> None:
        real(root, generation)
        registry.set_alias(world.config, registry.CHAMPION, "3")

    monkeypatch.setattr(promotion, "switch", interfere)
    with pytest.raises(Unfinished, match="past the promotion lock"):
        move(world.config, world.pairs[0], asks())
    monkeypatch.undo()
    with exclusive(world.root / promotion.LOCK):
        assert settle(world.config) is not None
    assert (world.aliases["champion"], world.current) == ("1", world.pairs[0].generation)


def test_a_torn_last_line_is_no_entry_and_is_dropped_by_the_next_move(world: ReleaseWorld) -> None:
    move(world.config, world.pairs[0], asks())
    with (world.root / LOG).open("a") as out:
        out.write('{"action": "prom')
    assert log_of(world) == [("promote", "promoted", "1")]
    move(world.config, world.pairs[1], asks())
    assert log_of(world) == [("promote", "promoted", "1"), ("promote", "promoted", "2")]


def test_a_rollback_from_what_was_moved_by_hand_goes_to_what_was_promoted_last(world: ReleaseWorld) -> None:
    for pair in world.pairs[:2]:
        move(world.config, pair, asks())
    registry.set_alias(world.config, registry.CHAMPION, "3")
    promotion.switch(world.root, str(world.pairs[2].generation))
    move(world.config, None, asks("rollback", past_gate=True, by_hand=True))
    assert (world.aliases["champion"], world.current) == ("2", world.pairs[1].generation)
    move(world.config, None, asks("rollback", who="bob", past_gate=True, by_hand=True))
    assert (world.aliases["champion"], world.current) == ("1", world.pairs[0].generation)


def cut_short(world: ReleaseWorld, monkeypatch: pytest.MonkeyPatch, request: Request) -> None:
    """A move that ends after the switch, as a crash would end it."""

    def crash(name: str) -> None:
        if name == "promotion.current_switched":
            raise KeyboardInterrupt

    monkeypatch.setattr(promotion, "reached", crash)
    with pytest.raises(KeyboardInterrupt):
        move(world.config, None, request)
    monkeypatch.undo()


def test_a_rollback_that_was_cut_short_and_is_tried_again_goes_back_once(world: ReleaseWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for pair in world.pairs:
        move(world.config, pair, asks())
    request = asks("rollback", past_gate=True, by_hand=True, expected=world.pairs[2].generation)
    cut_short(world, monkeypatch, request)
    for _ in range(2):
        assert "an earlier attempt saw to it" in move(world.config, None, request).message
        assert (world.aliases, world.current) == ({"champion": "2", "previous": "1"}, world.pairs[1].generation)
    assert log_of(world)[-1] == ("rollback", "promoted", "2")


def test_another_rollback_after_one_that_was_cut_short_is_told_to_look_first(world: ReleaseWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for pair in world.pairs:
        move(world.config, pair, asks())
    cut_short(world, monkeypatch, asks("rollback", past_gate=True, by_hand=True))
    other = asks("rollback", who="bob", past_gate=True, by_hand=True)
    with pytest.raises(JobError, match=r"cut short is settled now, and version 2 .* ask again"):
        move(world.config, None, other)
    assert world.aliases == {"champion": "2", "previous": "1"}
    move(world.config, None, other)
    assert world.aliases == {"champion": "1"}


def test_a_line_that_cannot_be_read_is_named(world: ReleaseWorld) -> None:
    (world.root / LOG).write_text("nonsense\n")
    with pytest.raises(JobError, match=r"promotions\.jsonl, line 1"):
        entries(world.root)


def test_the_generation_that_a_rollback_needs_is_kept(world: ReleaseWorld) -> None:
    few = world.config.model_copy(update={"index": world.config.index.model_copy(update={"keep": 2})})
    for pair in world.pairs:
        move(few, pair, asks())
    assert g.generations(world.root) == [world.pairs[1].generation, world.pairs[2].generation]
    shutil.rmtree(world.root / g.GENERATIONS / str(world.pairs[1].generation))
    with pytest.raises(JobError, match=r"the generation is gone .*--version 2"):
        move(few, None, asks("rollback", past_gate=True, by_hand=True))


def test_what_was_in_force_before_there_was_a_log_can_be_rolled_back_to() -> None:
    old, new = Pair(version="1", generation="a"), Pair(version="2", generation="b")
    entry = Entry(at="", moved_at="", action="promote", outcome="promoted", who="", reason="", before=old, after=new)
    assert standing([entry]) == [old, new]
    assert standing([replace(entry, before=Pair(version=None, generation=None))]) == [new]


def test_dig_promotes_rolls_back_and_shows_who_did_it(world: ReleaseWorld, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--set", f"paths.home={world.config.paths.home}"]
    assert cli.main(["index", "log", *home]) == 0
    assert "nothing was promoted yet" in capsys.readouterr().out
    for version in ("1", "2"):
        assert cli.main(["promote", "--version", version, "--reason", f"try {version}", "--who", "ann", *home]) == 0
    assert "version 2 is champion" in capsys.readouterr().out
    assert cli.main(["rollback", "--reason", "clicks fell", "--who", "bob", *home]) == 0
    assert (world.aliases, world.current) == ({"champion": "1"}, world.pairs[0].generation)
    capsys.readouterr()
    assert cli.main(["index", "log", "--json", *home]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(line["who"], line["action"], line["reason"]) for line in told] == [
        ("ann", "promote", "try 1"),
        ("ann", "promote", "try 2"),
        ("bob", "rollback", "clicks fell"),
    ]
    assert cli.main(["index", "log", *home]) == 0
    assert "clicks fell" in capsys.readouterr().out
