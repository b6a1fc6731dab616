"""An index release on synthetic items, an index that holds one or two generations, and a place for its mirror."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest
import synthetic

from dig_models.features import FeatureSpec
from dig_models.index import generation as g
from dig_models.index.verify import verify
from dig_models.index.writer import Release, build, locked, switch

USERS = [f"u{i}" for i in range(5)]
ITEMS = [f"i{i}" for i in range(60)]
NEXT_ITEMS = [*ITEMS[3:], "new-1", "new-2"]

Publish = Callable[[Path, Release], str]


@pytest.fixture(scope="module")
def release(spec: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A model on 60 items, published for the day it was trained for."""
    items = synthetic.make_items(spec, ITEMS)
    return Release(
        day=synthetic.DAY,
        model_name="dig",
        model_version="1",
        bundle=synthetic.make_bundle(spec, items),
        items=items,
        user_state=synthetic.user_state(spec, items, USERS),
        cross_arrays=synthetic.write_crosses(tmp_path_factory.mktemp("lake") / "crosses", spec, items, USERS),
    )


@pytest.fixture(scope="module")
def next_release(spec: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The next day: three items are gone, two are new, and another model gives other SIDs."""
    day, items = synthetic.DAY + timedelta(days=1), synthetic.make_items(spec, NEXT_ITEMS)
    return Release(
        day=day,
        model_name="dig",
        model_version="2",
        bundle=synthetic.make_bundle(spec, items, seed=9),
        items=items,
        user_state=synthetic.user_state(spec, items, USERS, day),
        cross_arrays=synthetic.write_crosses(tmp_path_factory.mktemp("lake") / "crosses", spec, items, USERS, day),
    )


@pytest.fixture(scope="session")
def publish() -> Publish:
    """Build, verify, switch."""

    def publish(root: Path, release: Release) -> str:
        with locked(root):
            generation = build(root, release)
            verify(root, generation)
            switch(root, generation)
        return generation

    return publish


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, release: Release, next_release: Release, publish: Publish) -> tuple[Path, str, str]:
    """An index of two generations; the tests read it."""
    root = tmp_path_factory.mktemp("index")
    return root, publish(root, release), publish(root, next_release)


@pytest.fixture(params=[pytest.param("memory", marks=pytest.mark.slow), "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/mirror"
        return
    memory = fsspec.filesystem("memory")
    yield "memory://bucket/index"
    if memory.exists("/bucket"):
        memory.rm("/bucket", recursive=True)


def forge(root: Path, names: dict[str, str] | None = None) -> str:
    """Give what lies in the generation a manifest, an id and a CURRENT that fit it; ``names`` renames files in the manifest."""
    old = g.require_current(root)
    folder = root / g.GENERATIONS / old
    manifest = json.loads((folder / g.MANIFEST).read_text())
    files = {name: g.file_entry(path).model_dump() for name, path in g.files_under(folder).items() if path.is_file()}
    manifest["files"] = {(names or {}).get(name, name): entry for name, entry in files.items()}
    told = {name: e["sha256"] for name, e in manifest["files"].items() if name not in (g.DELTA, g.EMBEDDINGS)}
    about = [manifest["date"], manifest["model_name"], manifest["model_version"], manifest["codebook"]]
    manifest["content"] = g.digest({"about": about, "files": told})
    manifest["id"] = f"{manifest['date']}-v{manifest['model_version']}-{manifest['content'][:10]}"
    manifest["seal"] = g.digest({k: v for k, v in manifest.items() if k != "seal"})
    (folder / g.MANIFEST).write_text(json.dumps(manifest))
    folder.rename(folder.with_name(manifest["id"]))
    (root / g.CURRENT).write_text(manifest["id"] + "\n")
    return str(manifest["id"])


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


def objects(url: str) -> dict[str, bytes]:
    fs, base = fsspec.core.url_to_fs(url)
    return {path.removeprefix(base).strip("/"): fs.cat_file(path) for path in fs.find(base)}


def put(url: str, path: str, data: bytes) -> None:
    fs, base = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{base}/{path}".rpartition("/")[0], exist_ok=True)
    fs.pipe_file(f"{base}/{path}", data)


def local_files(root: Path, generation: str) -> dict[str, bytes]:
    folder = root / g.GENERATIONS / generation
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
