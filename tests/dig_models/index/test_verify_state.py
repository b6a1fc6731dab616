"""What ``verify`` says of the user state, of keys and of cross arrays: every kind of damage is found, and named by its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dig_models.features import SECONDS_PER_DAY
from dig_models.index import generation as g
from dig_models.index import verify_state
from dig_models.index.reader import IndexReader
from dig_models.index.verify import verify
from dig_models.index.writer import Release
from tests.dig_models.index.conftest import forge

Publish = Callable[[Path, Release], str]
Array = NDArray[np.generic]
CROSSES = "state/cross_arrays"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, release: Release, publish: Publish) -> Path:
    root = tmp_path_factory.mktemp("sound")
    publish(root, release)
    return root


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy, so that no hard link is written through."""
    shutil.copytree(sound, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(params=[None, 3], ids=["whole", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at in one piece, and in many: damage may lie where two pieces meet."""
    if request.param:
        monkeypatch.setattr(verify_state, "PIECE", request.param)
        monkeypatch.setattr(verify_state, "USERS_AT_ONCE", request.param)


def put(at: int | tuple[int, ...], value: float) -> Callable[[Array], Array]:
    """One value is another one."""

    def change(array: Array) -> Array:
        array[at] = value  # type: ignore[assignment]
        return array

    return change


def swap(a: int, b: int) -> Callable[[Array], Array]:
    """Two values have changed places."""

    def change(array: Array) -> Array:
        array[[a, b]] = array[[b, a]]
        return array

    return change


def plus(at: int, more: float) -> Callable[[Array], Array]:
    def change(array: Array) -> Array:
        array[at] = array[at] + more  # type: ignore[operator]
        return array

    return change


def cut(array: Array) -> Array:
    return array[:-1]


def damage(root: Path, name: str, change: Callable[[Array], Array]) -> None:
    path = root / g.GENERATIONS / g.require_current(root) / f"{name}.npy"
    before = np.load(path)
    after = change(before.copy())
    assert after.shape != before.shape or not np.array_equal(after, before, equal_nan=after.dtype.kind == "f")
    np.save(path, after)
    if name.startswith(CROSSES):
        meta = json.loads((path.parent / "meta.json").read_text())
        meta["arrays"][path.stem] = {"dtype": after.dtype.str, "shape": list(after.shape)}
        (path.parent / "meta.json").write_text(json.dumps(meta))
    forge(root)


DAMAGE: list[tuple[str, Callable[[Array], Array]]] = [
    ("items/keys", put((0, 0), 5)),
    ("items/keys", put((0, -1), 5)),
    ("items/hash", plus(7, 1)),
    ("state/user_hash", plus(1, 1)),
    ("state/user_hash", swap(0, 1)),
    ("state/ts", plus(2, 2 * SECONDS_PER_DAY)),
    ("state/ts", put(3, 0)),
    ("state/ts", put(0, -(2**62))),
    ("state/ts", put(4, 2**62)),
    ("state/fields", put((4, 0), 64)),
    ("state/fields", put((0, 1), 8)),
    ("state/fields", put((2, 2), -1)),
    ("state/history.item", put(0, 60)),
    ("state/history.item", put(-1, 0)),
    ("state/history.hash", plus(0, 1)),
    ("state/history.hash", cut),
    ("state/history.ts", put(0, 2**40)),
    ("state/history.ts", put(-1, 0)),
    ("state/history.start", put(0, 1)),
    ("state/history.start", put(2, -1)),
    (f"{CROSSES}/pop.days", plus(3, 1)),
    (f"{CROSSES}/pop.days", cut),
    (f"{CROSSES}/pop.items", swap(3, 4)),
    (f"{CROSSES}/pop.items", swap(2, 3)),
    (f"{CROSSES}/pop.7", put((1, 2), float("nan"))),
    (f"{CROSSES}/pop.30", put((0, -1), -1.0)),
    (f"{CROSSES}/pop.30", put((39, 5), float("inf"))),
    (f"{CROSSES}/u2i-item-0.users", swap(0, 1)),
    (f"{CROSSES}/u2i-item-0.users", plus(0, 1)),
    (f"{CROSSES}/u2i-brand-1.keys", swap(0, 1)),
    (f"{CROSSES}/u2i-item-1.start", plus(1, 1)),
    (f"{CROSSES}/u2i-item-1.start", put(-1, 10**6)),
    (f"{CROSSES}/u2i-item-0.group", swap(5, 6)),
    (f"{CROSSES}/u2i-item-0.group", put(-1, 10**9)),
    (f"{CROSSES}/u2i-item-0.group", cut),
    (f"{CROSSES}/u2i-item-0.place", swap(8, 12)),
    (f"{CROSSES}/u2i-item-0.place", put(0, -5)),
    (f"{CROSSES}/u2i-item-0.place", put(-1, 2**62)),
    (f"{CROSSES}/u2i-item-1.cum", put(4, float("nan"))),
    (f"{CROSSES}/u2i-item-1.cum", swap(8, 9)),
    (f"{CROSSES}/u2i-item-1.cum", put(0, -1.0)),
    (f"{CROSSES}/u2i-item-1.cum", put(-1, float("inf"))),
    (f"{CROSSES}/offers.keys", swap(0, 1)),
    (f"{CROSSES}/offers.place", swap(2, 3)),
    (f"{CROSSES}/offers.place", put(-1, 10**6)),
    (f"{CROSSES}/offers.display", put(6, 3)),
    (f"{CROSSES}/offers.display", put(6, -1)),
    (f"{CROSSES}/offers.display", cut),
]
# Where files contradict each other, one of them is named.
NAMED = {"state/history.hash": "state/history.item", f"{CROSSES}/u2i-item-1.start": f"{CROSSES}/u2i-item-1.place"}
NAMED |= {f"{CROSSES}/u2i-item-0.group": f"{CROSSES}/u2i-item-0.place"}


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("name", "change"), DAMAGE, ids=[f"{name.rpartition('/')[2]} {i}" for i, (name, _) in enumerate(DAMAGE)])
def test_damage_is_found_and_named_by_its_file(root: Path, name: str, change: Callable[[Array], Array]) -> None:
    """The checksums are right: whoever damaged the file wrote them anew."""
    damage(root, name, change)
    with pytest.raises(g.IndexCorrupt) as raised:
        verify(root)
    assert any(f"file {one}.npy: expected" in str(raised.value) for one in (name, NAMED.get(name)))


@pytest.mark.usefixtures("pieces")
def test_a_sound_generation_passes_in_pieces_of_any_size(sound: Path) -> None:
    told = dict(verify(sound).checks)
    reader = IndexReader.open(sound)
    assert told["user state"] == f"{len(reader.state)} users, {len(reader.state.history_item)} events"
    assert told["crosses"].endswith(f"popularity of {len(reader.bundle.items) - 1} items, 10 offered rows")


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("at", [0, 5])
def test_a_history_out_of_order_is_found(root: Path, at: int) -> None:
    reader = IndexReader.open(root)
    bounds, ts = reader.state.history_start, reader.state.history_ts
    mine = [row for row in range(len(ts) - 1) if ts[row] > ts[row + 1] and row + 1 not in bounds]
    row = mine[min(at, len(mine) - 1)]
    damage(root, "state/history.ts", swap(row, row + 1))
    with pytest.raises(g.IndexCorrupt, match=r"state/history\.ts\.npy: expected histories newest first"):
        verify(root)


@pytest.mark.usefixtures("pieces")
def test_an_event_of_another_user_is_found(root: Path) -> None:
    """The groups of two users that follow each other: the last event of the first one moves to the second."""
    name = f"{CROSSES}/u2i-item-1.place"
    folder = root / g.GENERATIONS / g.require_current(root)
    start = np.load(folder / f"{CROSSES}/u2i-item-1.start.npy")
    assert len(start) > 2
    at = int(start[1])
    damage(root, name, lambda place: np.r_[place[: at - 1], [place[at]], place[at:]])
    with pytest.raises(g.IndexCorrupt, match=r"u2i-item-1\.place\.npy: expected events of"):
        verify(root)


def test_a_second_outside_the_days_of_the_arrays_is_found(root: Path) -> None:
    """The day after the last one belongs to requests, not to events."""
    folder = root / g.GENERATIONS / g.require_current(root) / CROSSES
    meta = json.loads((folder / "meta.json").read_text())
    span = (meta["last_day"] + 2 - meta["first_day"]) * SECONDS_PER_DAY
    damage(root, f"{CROSSES}/u2i-item-0.place", lambda place: np.r_[place[:-1], [(place[-1] // span + 1) * span - 1]])
    with pytest.raises(g.IndexCorrupt, match=r"u2i-item-0\.place\.npy: expected events of the days"):
        verify(root)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"last_day": 10}, "days that include"),
        ({"last_day": 2**70}, "days that include"),
        ({"pop_first_day": 10**6}, "days that include"),
        ({"first_day": -(2**70)}, "days in order"),
        ({"first_day": 10**6}, "days in order"),
    ],
)
def test_days_that_do_not_fit_are_found(root: Path, change: dict[str, int], expected: str) -> None:
    path = root / g.GENERATIONS / g.require_current(root) / CROSSES / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    forge(root)
    with pytest.raises(g.IndexCorrupt, match=rf"cross_arrays/meta\.json: expected {expected}"):
        verify(root)


@pytest.mark.usefixtures("pieces")
def test_values_that_ascend_are_told_from_others() -> None:
    far = np.array([np.iinfo(np.int64).min, np.iinfo(np.int64).max])
    assert verify_state.ascending(far) and not verify_state.ascending(far[::-1])
    for size in range(1, 9):
        array = np.arange(size)
        assert verify_state.ascending(array) and verify_state.inside(array, 0, size) and not verify_state.inside(array, 0, size - 1)
        for at in range(1, size):
            same = np.where(array >= at, array - 1, array)
            assert not verify_state.ascending(same) and verify_state.ascending(same, strictly=False)
