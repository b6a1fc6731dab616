"""The results of the last few keys, for several threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
KeptT = TypeVar("KeptT")


class Recent(Generic[KeyT, KeptT]):
    """Keeps what was made for the keys asked for last.

    No lock is held while something is made: nobody waits for a key that another thread asks for, and two threads that ask for the same
    new key at once may both make it.

    Args:
        limit: how much is kept, in the unit of ``size``; the result asked for last is kept even if it alone is more.
        size: how much one result is; by default each counts 1.
    """

    def __init__(self, limit: int, size: Callable[[KeptT], int] = lambda kept: 1) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[KeyT, KeptT] = OrderedDict()
        self._total = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: KeyT, make: Callable[[], KeptT]) -> KeptT:
        """What was made for a key; it is made now if it is not kept. What ``make`` raises is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._total += self._size(made)
            while self._total > self._limit and len(self._kept) > 1:
                self._total -= self._size(self._kept.popitem(last=False)[1])
        return made
