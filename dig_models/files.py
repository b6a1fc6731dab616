"""Small file operations that must not be half done: atomic replacement, durable names, exclusive locks, the error of a full disk."""

from __future__ import annotations

import errno
import fcntl
import glob
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dig_models.faults import reached

log = logging.getLogger(__name__)
_HOST = socket.gethostname()
# Only Python's own files say so by errno; Parquet, safetensors and Spark say it in words, NumPy by how much it could write.
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded|\d+ requested and \d+ written", re.IGNORECASE)


class DiskFull(OSError):
    """There was no space to write something; the message names the place."""


@contextmanager
def naming_full_disk(place: Path) -> Iterator[None]:
    """Turn the error of a full disk, whichever library met it, into one that names the place.

    Raises:
        DiskFull: a write below ``place`` found no space.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not _is_no_space(error):
            raise
        raise DiskFull(
            f"{place}: no space left to write it ({str(error).splitlines()[0]}); what was there before stays as it is: "
            "make space, then run the same again"
        ) from error


def _is_no_space(error: Exception) -> bool:
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or bool(_NO_SPACE.search(str(error)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden file to write, which takes the place of ``path`` when the block ends.

    A reader sees the old file or the new one, whole, also after a power cut. Each process writes one of its own: the last one wins.

    Raises:
        DiskFull: there was no space; the old file stays.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(_HOST)}.*"):
        if not _is_alive(int(left.name.rpartition(".")[2])):
            left.unlink(missing_ok=True)  # its writer was killed
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}")
    try:
        with naming_full_disk(path):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            reached("file.written")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    reached("file.replaced")
    sync_dir(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replace a file by one with this text, as ``replacing`` does; it raises the same."""
    with replacing(path) as writing:
        writing.write_text(text, encoding="utf-8")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make the files below a folder durable, and their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_dir(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_dir(folder)


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, which says by whom; the operating system lets it go when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it and ``wait`` is off; ``strerror`` says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text() or "another process"
            if not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, holder, str(path)) from None
            log.info("%s: held by %s; waiting for it to end", path, holder)
            fcntl.flock(file, fcntl.LOCK_EX)
        os.ftruncate(file.fileno(), 0)  # a holder that was killed left its name
        with suppress(OSError):  # a full disk must not keep anybody from the lock
            os.write(file.fileno(), f"process {os.getpid()} on {_HOST}".encode())
        try:
            yield
        finally:
            os.ftruncate(file.fileno(), 0)


def append_line(path: Path, line: str) -> None:
    """Append a line durably; half a line, left by a crash in mid-write, is dropped first. One writer at a time.

    Raises:
        DiskFull: there was no space; half a line may be left, which is none.
    """
    with naming_full_disk(path), path.open("ab+") as out:
        out.seek(0)
        held = out.read()
        out.truncate(held.rfind(b"\n") + 1)
        out.write(line.encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
        reached("file.appended")
    sync_dir(path.parent)
