"""Refreshes against a real registry (SQLite), real generations and a real lake."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import fresh_world as fw
import pytest
import release_world as rw
from release_world import ReleaseWorld, asks

from dig_models.features import FeatureSpecMismatch
from dig_models.index import generation as g
from dig_models.index.reader import IndexReader
from jobs import cli, fresh, promotion, runs
from jobs.answers import rank
from jobs.entry import JobError, run
from jobs.fresh import Refreshed, publish, snapshots
from jobs.promotion import in_force, move
from jobs.promotion_log import Pair, entries

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fresh") / "home"
    fw.make(home, 2)
    return home


@pytest.fixture
def world(made: Path, tmp_path: Path) -> ReleaseWorld:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    config = rw.settings(home)
    found = g.generations(Path(config.paths.at("index")))
    return ReleaseWorld(config, tuple(Pair(version=g.id_version(generation), generation=generation) for generation in found))


def refreshed(world: ReleaseWorld, day: object = fw.TODAY, at: str = rw.AT) -> Refreshed:
    return publish(world.config, day, asks("refresh", reason=f"items of {day}", at=at, past_gate=True))  # type: ignore[arg-type]


def main(world: ReleaseWorld, *options: str) -> int:
    return run("fresh", fresh.main, [*options, "--set", f"paths.home={world.config.paths.home}"], options=fresh.options)


def test_what_is_new_serves_and_what_was_withdrawn_does_not(world: ReleaseWorld) -> None:
    base = world.current
    done = refreshed(world)
    assert (done.outcome, done.base, done.arrived, done.withdrawn, done.since) == ("refreshed", base, 2, 2, rw.DAY.isoformat())
    assert in_force(world.config) == Pair(version="1", generation=done.generation)
    reader = IndexReader.open(world.root)
    assert all(reader.item_row(item) for item in fw.NEW) and not any(reader.item_row(item) for item in fw.GONE)
    assert not reader.item_row(fw.NEVER_BOUGHT), "in the snapshot all along, but not bought often enough for the catalogue"
    assert reader.bundle.items.name_N[reader.item_row("fresh-2")] == "fresh-2"
    assert rank(world.config, "u1", [*fw.NEW, "i1"]).generation == done.generation


def test_the_job_leaves_a_record_and_doing_it_again_changes_nothing(world: ReleaseWorld) -> None:
    assert main(world, "--date", str(fw.TODAY), "--who", "hourly", "--at", rw.AT) == 0
    record, log, current = runs.read(world.config, fw.TODAY, "fresh"), entries(world.root), world.current
    assert (record["generation"], record["outcome"]) == (current, "refreshed")
    assert (log[-1].action, log[-1].who, log[-1].outcome) == ("refresh", "hourly", "promoted")
    assert main(world, "--date", str(fw.TODAY), "--who", "hourly", "--at", rw.AT) == 0
    assert (entries(world.root), world.current) == (log, current)
    assert runs.read(world.config, fw.TODAY, "fresh") == record | {"outcome": "nothing new"}


def test_a_rollback_goes_back_past_the_refreshes(world: ReleaseWorld) -> None:
    first, second = world.pairs
    move(world.config, second, asks(reason="the second", at="2017-11-20T08:30:00+00:00"))
    fw.snapshot(world.config, rw.day_of(2), [i for i in rw.ITEMS if i not in fw.GONE])
    fw.snapshot(world.config, fw.LATER, [*rw.ITEMS, "fresh-9"])
    done = refreshed(world, fw.LATER, "2017-11-20T08:40:00+00:00")
    assert done.outcome == "refreshed" and done.base == second.generation
    move(world.config, None, asks("rollback", reason="no good", at="2017-11-20T08:50:00+00:00", by_hand=True, past_gate=True))
    assert (in_force(world.config), world.aliases["champion"]) == (first, "1")
    again = refreshed(world, fw.LATER, "2017-11-20T09:00:00+00:00")
    assert again.base == first.generation and IndexReader.open(world.root).item_row("fresh-9")


def test_what_was_stepped_back_from_is_not_published_again(world: ReleaseWorld) -> None:
    base = world.pairs[0]
    done = refreshed(world)
    move(world.config, base, asks(reason="the new items are wrong", at="2017-11-20T08:30:00+00:00", by_hand=True, past_gate=True))
    held = refreshed(world, at="2017-11-20T09:00:00+00:00")
    assert (held.outcome, world.current) == ("held", base.generation)
    fw.snapshot(world.config, fw.TODAY, [*rw.ITEMS, "fresh-5"])
    other = refreshed(world, at="2017-11-20T10:00:00+00:00")
    assert other.outcome == "refreshed" and other.generation not in (done.generation, base.generation)


def test_half_a_snapshot_takes_no_item_out_unless_that_is_asked_for(world: ReleaseWorld, capsys: pytest.CaptureFixture[str]) -> None:
    before, log = world.current, entries(world.root)
    fw.snapshot(world.config, fw.TODAY, rw.ITEMS[:20])
    with pytest.raises(JobError, match=r"20 of the 40 items of generation .*\(50\.0%\), expected at most 5\.0% \(index\.max_withdrawn\)"):
        refreshed(world)
    assert main(world, "--date", str(fw.TODAY)) == 2
    assert (world.current, entries(world.root), len(g.generations(world.root))) == (before, log, 2)
    assert main(world, "--date", str(fw.TODAY), "--set", "index.max_withdrawn=0.5") == 0, "the limit itself passes"
    assert all(IndexReader.open(world.root).item_row(item) for item in rw.ITEMS[:20])
    assert not any(IndexReader.open(world.root).item_row(item) for item in rw.ITEMS[20:])


def test_the_way_past_the_limit_is_open_to_command_and_job_and_it_is_counted_anew_from_there(world: ReleaseWorld) -> None:
    fw.snapshot(world.config, fw.TODAY, rw.ITEMS[:20])
    options = ["--date", str(fw.TODAY), "--set", f"paths.home={world.config.paths.home}"]
    assert cli.main(["index", "refresh", *options]) == 2
    assert cli.main(["index", "refresh", "--past-limit", *options]) == 0
    assert main(world, "--date", str(fw.TODAY)) == 0, "an hour later nobody has to ask again"
    fw.snapshot(world.config, fw.TODAY, rw.ITEMS[:18])
    assert main(world, "--date", str(fw.TODAY)) == 0, "two more are within the limit"
    assert runs.read(world.config, fw.TODAY, "fresh")["withdrawn"] == 22
    fw.snapshot(world.config, fw.TODAY, rw.ITEMS[:15])
    assert main(world, "--date", str(fw.TODAY)) == 2, "three more are not"
    assert main(world, "--date", str(fw.TODAY), "--past-limit") == 0
    assert runs.read(world.config, fw.TODAY, "fresh")["withdrawn"] == 25


def test_the_limit_is_not_crept_past_hour_by_hour(world: ReleaseWorld) -> None:
    assert refreshed(world).withdrawn == 2
    fw.snapshot(world.config, fw.TODAY, [i for i in rw.ITEMS if i not in (*fw.GONE, "i9")])
    with pytest.raises(JobError, match="3 of the 40 items"):
        refreshed(world, at="2017-11-20T09:00:00+00:00")
    fw.snapshot(world.config, fw.TODAY, rw.ITEMS)
    assert refreshed(world, at="2017-11-20T10:00:00+00:00").withdrawn == 0, "what comes back is back"


def test_a_new_item_stays_for_some_days_and_then_must_have_earned_its_place(world: ReleaseWorld) -> None:
    days = world.config.index.fresh_days
    for n in (days, days + 1):
        fw.snapshot(world.config, rw.DAY + timedelta(days=n), [*rw.ITEMS, *fw.NEW])
    assert refreshed(world, rw.DAY + timedelta(days=days)).arrived == 2
    assert refreshed(world, rw.DAY + timedelta(days=days + 1), "2017-11-20T09:00:00+00:00").arrived == 0


def test_snapshots_are_those_of_the_days_that_matter(world: ReleaseWorld) -> None:
    assert snapshots(world.config, fw.TODAY, rw.DAY) == (rw.DAY, rw.DAY)
    assert snapshots(world.config, rw.DAY, rw.DAY) == (None, rw.DAY)
    assert snapshots(world.config, fw.TODAY, rw.DAY - timedelta(days=3)) == (rw.DAY, rw.DAY), "the next later one stands for it"


def test_on_the_day_of_the_index_itself_nothing_is_new(world: ReleaseWorld) -> None:
    assert refreshed(world, rw.DAY) == Refreshed(
        generation=str(world.current), base=str(world.current), arrived=0, withdrawn=0, since=None, outcome="nothing new"
    )


@pytest.mark.parametrize(
    ("day", "message"),
    [
        (rw.DAY - timedelta(days=1), "a later day"),
        (fw.LATER, "there is no items snapshot of that day; build it first: python -m jobs.arrivals"),
    ],
)
def test_a_day_that_cannot_be_is_refused_and_nothing_moves(world: ReleaseWorld, day: object, message: str) -> None:
    before = world.current
    with pytest.raises(JobError, match=message):
        refreshed(world, day)
    assert world.current == before and len(g.generations(world.root)) == 2


def test_other_features_are_refused(world: ReleaseWorld) -> None:
    dataset = world.config.dataset.model_copy(update={"item_fields": world.config.dataset.item_fields[1:]})
    before = world.current
    with pytest.raises(FeatureSpecMismatch, match="index generation"):
        publish(world.config.model_copy(update={"dataset": dataset}), fw.TODAY, asks("refresh", past_gate=True))
    assert world.current == before


def test_a_champion_that_the_index_was_not_made_with_is_refused(world: ReleaseWorld) -> None:
    promotion.registry.set_alias(world.config, "champion", "2")
    with pytest.raises(JobError, match=r"the champion is version 2, generation .* was made with version 1"):
        refreshed(world)


def test_a_promotion_in_between_refuses_the_refresh(world: ReleaseWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    second, real = world.pairs[1], fresh.refresh

    def overtaken(*args: object, **options: object) -> str:
        made = real(*args, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(fresh, "refresh", real)
        move(world.config, second, asks(reason="meanwhile", at="2017-11-20T08:30:00+00:00"))
        return made

    monkeypatch.setattr(fresh, "refresh", overtaken)
    with pytest.raises(JobError, match="nothing was moved"):
        refreshed(world, at="2017-11-20T08:40:00+00:00")
    assert in_force(world.config) == second


def test_the_command_line_refreshes_and_clears_up(world: ReleaseWorld, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", f"paths.home={world.config.paths.home}"]
    base = world.current
    assert cli.main(["index", "refresh", "--date", str(fw.TODAY), *sets]) == 0
    said = capsys.readouterr().out
    assert f"refreshed: {world.current} serves, 2 new items and 2 withdrawn since {base}" in " ".join(said.split())
    assert cli.main(["index", "gc", "--keep", "1", "--dry-run", *sets]) == 0
    assert "nothing to remove" in capsys.readouterr().out, "what is left is whole and newest, current, or its base"
    fw.snapshot(world.config, fw.TODAY, [*rw.ITEMS, "fresh-7"])
    assert cli.main(["index", "refresh", "--date", str(fw.TODAY), *sets]) == 0
    assert cli.main(["index", "refresh", "--date", "tomorrow", *sets]) == 2
    assert "expected a date" in capsys.readouterr().err


def test_gc_keeps_what_a_rollback_needs(world: ReleaseWorld, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", f"paths.home={world.config.paths.home}"]
    first, second = (str(pair.generation) for pair in world.pairs)
    move(world.config, world.pairs[1], asks(reason="the second", at="2017-11-20T08:30:00+00:00"))
    assert cli.main(["index", "gc", "--keep", "1", *sets]) == 0
    assert g.generations(world.root) == [first, second], "a rollback goes to the first"


def test_after_a_rollback_to_a_refreshed_index_the_next_refresh_goes_on(world: ReleaseWorld) -> None:
    base, config = str(world.current), world.config
    delta = refreshed(world).generation
    move(config, world.pairs[1], asks(reason="the second", at="2017-11-20T08:30:00+00:00"))
    promotion.collect(config, 1)
    move(config, None, asks("rollback", reason="no good", at="2017-11-20T08:50:00+00:00", by_hand=True, past_gate=True))
    assert world.current == delta and base in g.generations(world.root)
    fw.snapshot(config, fw.TODAY, [*(i for i in rw.ITEMS if i not in fw.GONE), *fw.NEW, "fresh-7"])
    done = refreshed(world, at="2017-11-20T09:00:00+00:00")
    assert (done.outcome, done.base, done.arrived) == ("refreshed", base, 3)
