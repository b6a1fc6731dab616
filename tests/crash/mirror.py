"""Crash scenarios of mirrors: an index is pushed to a store, and pulled from one into another index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from dig_models.index import generation as g
from dig_models.index.mirror import pull, push
from dig_models.index.writer import switch
from jobs.index import index_root
from tests.crash.harness import Scenario, files_of
from tests.jobs import release_world as rw


def url(root: Path) -> str:
    return f"file://{root}/mirror"


def world(root: Path, *, pulled: bool) -> None:
    """Two generations; the mirror serves the first one, the index the second, or as a pull finds it: both the other way round."""
    made = rw.make(root, versions=2)
    first, second = (str(pair.generation) for pair in made.pairs)
    switch(made.root, first)
    push(made.root, url(root))
    switch(made.root, second)
    if pulled:
        pull(url(root), root / "local")
        push(made.root, url(root))


def pushing(root: Path) -> int:
    push(index_root(rw.settings(root)), url(root))
    return 0


def pulling(root: Path) -> int:
    pull(url(root), root / "local")
    return 0


def look(root: Path, *, place: str) -> Mapping[str, str]:
    """What a copy serves; every byte of it is compared with its manifest."""
    served = g.require_current(root / place)
    g.check_files(g.generation_dir(root / place, served), g.read_manifest(root / place, served))
    return {"current": served}


def leaves(root: Path, *, place: str) -> Mapping[str, object]:
    return files_of(root / place)


def read(root: Path, *, place: str) -> tuple[str, ...]:
    """What a reader takes from a copy at any moment.

    Raises:
        IndexMissing, IndexCorrupt: it is not whole.
    """
    return (look(root, place=place)["current"],)


def _scenario(situation: str, step: Callable[[Path], int], place: str, *, pulled: bool, points: tuple[str, ...]) -> Scenario:
    return Scenario(
        area="mirror",
        situation=situation,
        prepare=partial(world, pulled=pulled),
        step=step,
        look=partial(look, place=place),
        leaves=partial(leaves, place=place),
        points=points,
        poll=partial(read, place=place),
    )


SCENARIOS = [
    _scenario(
        "the next generation", pushing, "mirror", pulled=False, points=("mirror.file", "mirror.file@5", "mirror.manifest", "mirror.current")
    ),
    _scenario("pulled elsewhere", pulling, "local", pulled=True, points=("pull.file", "pull.file@5", "pull.installed")),
]
