"""A mirror in an object store: a real S3 server on the loopback, pushes that are killed, readers that poll."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest

from dig_models.features import FeatureSpec
from dig_models.index import generation as g
from dig_models.index.mirror import MirrorFailed, collect, open_remote, pull, push
from dig_models.index.reader import IndexReader
from dig_models.index.verify import verify
from jobs.processes import stop, tree
from tests.integration.hosts import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PROJECT = Path(__file__).resolve().parents[2]
BUCKET = "dig"
URL = f"s3://{BUCKET}/index"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with an empty bucket; endpoint and credentials stand in the environment, as they do in production."""
    address = f"http://127.0.0.1:{free_port()}"
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as out, pytest.MonkeyPatch.context() as patch:
        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
        server = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            until = time.monotonic() + 120
            while not answers(address):
                assert server.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield address
        finally:
            stop(tree(server.pid))
            server.wait(30)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):  # noqa: S310
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """An index of two generations."""
    import synthetic

    from dig_models.features import FieldSpec
    from dig_models.index.writer import Release, build, locked, switch

    spec = FeatureSpec(
        item_fields=(FieldSpec(name="item_id", buckets=64),),
        user_fields=(FieldSpec(name="user_id", buckets=32),),
        context_fields=(FieldSpec(name="weekday", buckets=8),),
        u2i_keys=("item",),
        windows=(7,),
        offers=(),
        history_length=4,
    )
    root, users, made = tmp_path_factory.mktemp("index"), ["u1", "u2"], []
    items = synthetic.make_items(spec, [f"i{n}" for n in range(30)])
    crosses = synthetic.write_crosses(tmp_path_factory.mktemp("lake") / "crosses", spec, items, users)
    for version in ("1", "2"):
        release = Release(
            day=synthetic.DAY,
            model_name="dig",
            model_version=version,
            bundle=synthetic.make_bundle(spec, items, seed=int(version)),
            items=items,
            user_state=synthetic.user_state(spec, items, users),
            cross_arrays=crosses,
        )
        with locked(root):
            made.append(build(root, release))
            switch(root, made[-1])
    return root, made[0], made[1]


@pytest.fixture
def bucket(store: str) -> Iterator[fsspec.AbstractFileSystem]:
    """Access to what the bucket holds; emptied afterwards."""
    yield fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    there = boto3.resource("s3").Bucket(BUCKET)
    there.objects.all().delete()


def dying_push(root: Path, generation: str, fault: str) -> int:
    """Push in a process of its own that is killed at a fault point; its exit status."""
    program = "import sys; from pathlib import Path; from dig_models.index.mirror import push; push(Path(sys.argv[1]), *sys.argv[2:])"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "DIG_FAULT": f"{fault}=kill"}
    return subprocess.run([sys.executable, "-c", program, str(root), URL, generation], env=environment, check=False).returncode


def test_an_index_goes_to_the_store_and_comes_back_whole(
    index: tuple[Path, str, str], bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    root, _, second = index
    sent = push(root, URL)
    assert sent.generation == second and bucket.cat_file(f"{BUCKET}/index/{g.CURRENT}") == f"{second}\n".encode()
    pulled = pull(URL, tmp_path / "cache")
    assert (pulled.received, pulled.received_bytes) == (sent.sent, sent.sent_bytes)
    assert verify(tmp_path / "cache").generation == second
    assert (push(root, URL).sent, pull(URL, tmp_path / "cache").received) == (0, 0)


def test_a_push_that_is_killed_leaves_the_old_generation_to_readers(
    index: tuple[Path, str, str], bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    root, first, second = index
    push(root, URL, first)
    files = len(g.read_manifest(root, second).files)
    for fault in ("mirror.file@1", f"mirror.file@{files // 2}", "mirror.manifest"):
        assert dying_push(root, second, fault) == -signal.SIGKILL
        assert pull(URL, tmp_path / fault).generation == first
        assert IndexReader.open(tmp_path / fault).manifest.id == first
    assert dying_push(root, second, "mirror.current") == -signal.SIGKILL
    assert pull(URL, tmp_path / "cache").generation == second
    assert push(root, URL, second).sent == 0


def test_readers_that_poll_while_the_mirror_switches_never_meet_a_mix_or_a_gap(
    index: tuple[Path, str, str], bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    root, first, second = index
    push(root, URL, first)
    done, seen, broken = threading.Event(), [], []

    def read() -> None:
        last = False
        while not last:
            last = done.is_set()  # one more turn begins when the pushes have ended
            cache = tmp_path / f"cache-{len(seen) + len(broken)}"
            try:
                pull(URL, cache)
                seen.append(IndexReader.open(cache).manifest.id)
            except Exception as error:
                broken.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for generation, other in [(second, first), (first, second)] * 2:
        push(root, URL, generation)
        bucket.rm(f"{BUCKET}/index/{g.GENERATIONS}/{other}", recursive=True)  # harder on the reader than `keep` ever is
    done.set()
    reader.join(timeout=300)
    assert broken == [] and not reader.is_alive()
    assert set(seen) <= {first, second} and seen[-1] == first


def test_a_store_that_refuses_or_is_away_is_one_clear_error(
    index: tuple[Path, str, str], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MirrorFailed, match=r"mirror s3://nowhere/index: .*bucket"):
        push(index[0], "s3://nowhere/index")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(MirrorFailed, match=rf"mirror {URL}: .*127\.0\.0\.1"):
        pull(URL, tmp_path / "cache")


def test_a_reader_opens_from_the_store_and_old_generations_leave_it(
    index: tuple[Path, str, str], bucket: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    root, first, second = index
    bucket.pipe_file(f"{BUCKET}/index/{g.GENERATIONS}/2000-01-01-v1-0123456789/{g.MANIFEST}", b"{}")
    push(root, URL, first)
    assert open_remote(URL, tmp_path / "cache").manifest.id == first
    push(root, URL, second)
    assert open_remote(URL, tmp_path / "cache").manifest.id == second
    assert collect(root, URL, 1, dry_run=True) == ["2000-01-01-v1-0123456789"]
    assert collect(root, URL, 1) == ["2000-01-01-v1-0123456789"]
    assert {path.split("/")[3] for path in bucket.find(f"{BUCKET}/index/{g.GENERATIONS}")} == {first, second}
