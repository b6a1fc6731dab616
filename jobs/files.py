"""File operations that must not be half done, with errors for users; the operations themselves are in ``dig_models.files``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dig_models import files
from dig_models.files import replace_text
from jobs.entry import Held

__all__ = ["exclusive", "replace_text"]


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file; the operating system lets it go when the process ends, however it ends.

    Raises:
        Held: another process holds it and ``wait`` is off.
    """
    with ExitStack() as held:
        try:
            held.enter_context(files.exclusive(path, wait=wait))
        except BlockingIOError as error:
            raise Held(f"{path}: held by another run that builds the same days ({error.strerror}); wait for it to end") from None
        yield
