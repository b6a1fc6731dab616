"""Arrays on disk, opened without reading them: ``.npy`` files as memory maps, and lists of strings as two of them.

Nothing here can run code: a header must be just what NumPy writes for plain numbers, and a file as long as its header says.

Shape suffixes: ``N`` strings, ``X`` bytes.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib import format as npy
from numpy.typing import NDArray

ScalarT = TypeVar("ScalarT", bound=np.generic)
START, BYTES = "start", "bytes"
_CHUNK = 1 << 15
_LONGEST_HEADER = 1000
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|][biufc]\d{1,2})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n"
)


class ArrayError(ValueError):
    """A file is not the array that it should be; the message names file, what was expected and what was found."""


def open_npy(
    path: Path, dtype: type[ScalarT] | np.dtype[ScalarT], shape: Sequence[int | None], *, private: bool = False
) -> NDArray[ScalarT]:
    """A ``.npy`` file as a read-only memory map; its pages are read when they are used.

    Args:
        path: the file.
        dtype: what it must hold.
        shape: its axes; None where any length will do.
        private: give a writable array whose changes never reach the file (``torch.from_numpy`` asks for one).

    Raises:
        ArrayError: the file is missing, truncated, too long, in Fortran order, or holds something else.
    """
    wanted: np.dtype[Any] = np.dtype(dtype)
    with _naming(path), path.open("rb") as file:
        found_shape, fortran, found = _header(file)
        at, size = file.tell(), os.fstat(file.fileno()).st_size
        if found != wanted or found.hasobject or fortran or not _fits(found_shape, shape):
            raise ArrayError(f"{path}: expected {wanted} {_said(shape)}, found {found} {_said(found_shape)}{' in Fortran order' * fortran}")
        if size != at + found.itemsize * prod(found_shape):
            raise ArrayError(f"{path}: expected {at + found.itemsize * prod(found_shape)} bytes for {_said(found_shape)}, found {size}")
        if 0 in found_shape:  # an empty range cannot be mapped
            return np.zeros(found_shape, dtype=wanted)
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY if private else mmap.ACCESS_READ)
    return np.frombuffer(held, dtype=wanted, offset=at).reshape(found_shape)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what a broken file raises into an ``ArrayError`` that names it."""
    try:
        yield
    except ArrayError:
        raise
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise ArrayError(f"{path}: cannot be read as an array: {(str(error) or repr(error)).splitlines()[0]}") from None


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type that a header names, in just the words that NumPy writes: nothing of it is evaluated."""
    start = file.read(8)
    if start not in (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
        raise ValueError(f".npy of version 1.0 or 2.0 expected, found a file that begins with {start!r}")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    text = file.read(length) if length <= _LONGEST_HEADER else b""
    found = _HEADER.fullmatch(text)
    if not found:
        raise ValueError(f"header of a plain array of numbers expected, found {text[:80]!r}")
    shape = tuple(int(n) for n in found["shape"].split(b",") if n.strip())
    return shape, found["fortran"] == b"True" and len(shape) > 1, np.dtype(found["dtype"].decode())


def _fits(found: Sequence[int], shape: Sequence[int | None]) -> bool:
    return len(found) == len(shape) and all(want is None or have == want for have, want in zip(found, shape, strict=True))


def _said(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"


def create_npy(path: Path, dtype: type[ScalarT], shape: tuple[int, ...]) -> NDArray[ScalarT]:
    """A new ``.npy`` file to be filled piece by piece through a writable memory map; the file is whole when the array is gone."""
    if 0 in shape:
        np.save(path, np.zeros(shape, dtype=dtype), allow_pickle=False)
        return np.zeros(shape, dtype=dtype)
    out: NDArray[ScalarT] = npy.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return out


def save_npy(path: Path, array: NDArray[Any]) -> None:
    """Write an array in C order; equal arrays give equal bytes."""
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


@dataclass(frozen=True, eq=False)
class Strings:
    """Many strings as two arrays, which may be memory-mapped: string ``i`` is the UTF-8 in ``bytes[start[i]:start[i + 1]]``.

    An integer gives a ``str``; a slice or an array of positions gives an object array, as an object array of strings would.

    Attributes:
        start_N1: int64 ``(N + 1,)``, from 0 to ``len(byte_X)``.
        byte_X: uint8.
    """

    start_N1: NDArray[np.int64]
    byte_X: NDArray[np.uint8]

    @classmethod
    def of(cls, values: Iterable[str]) -> Strings:
        """From any strings."""
        return cls.from_arrow(pa.chunked_array([pa.array([str(v) for v in values], pa.large_string())]))

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray, *, first: str | None = None) -> Strings:
        """From an Arrow column of strings, null as an empty one; no Python string is made.

        Args:
            column: ``string`` or ``large_string``.
            first: put this one before them.
        """
        chunks = [pc.fill_null(chunk.cast(pa.large_string()), "") for chunk in column.chunks]
        head = b"" if first is None else first.encode()
        lengths = [np.array([len(head)], dtype=np.int64)] if first is not None else []
        parts = [np.frombuffer(head, dtype=np.uint8)]
        for chunk in chunks:
            offset = (
                np.frombuffer(chunk.buffers()[1], dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                if len(chunk)
                else np.zeros(1, np.int64)
            )
            held = chunk.buffers()[2]
            data = np.zeros(0, np.uint8) if held is None else np.frombuffer(held, dtype=np.uint8)
            lengths.append(np.diff(offset))
            parts.append(data[offset[0] : offset[-1]])
        length_N = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        return cls(np.concatenate([[0], np.cumsum(length_N)]).astype(np.int64), np.concatenate(parts))

    @classmethod
    def open(cls, folder: Path, name: str, count: int | None = None) -> Strings:
        """Open what ``save`` wrote.

        Args:
            folder: where it lies.
            name: its name there.
            count: how many strings there must be, if that is known.

        Raises:
            ArrayError: missing, truncated or foreign.
        """
        start_N1 = open_npy(folder / f"{name}.{START}.npy", np.int64, (None if count is None else count + 1,))
        byte_X = open_npy(folder / f"{name}.{BYTES}.npy", np.uint8, (None,))
        if not len(start_N1) or start_N1[0] != 0 or start_N1[-1] != len(byte_X):
            ends = f"{start_N1[0]} to {start_N1[-1]}" if len(start_N1) else "nothing"
            raise ArrayError(f"{folder / name}.{START}.npy: expected bounds from 0 to {len(byte_X)}, found {ends}")
        return cls(start_N1, byte_X)

    def save(self, folder: Path, name: str) -> None:
        """Write ``<name>.start.npy`` and ``<name>.bytes.npy`` into a folder."""
        save_npy(folder / f"{name}.{START}.npy", self.start_N1)
        save_npy(folder / f"{name}.{BYTES}.npy", self.byte_X)

    def check(self, what: str) -> None:
        """Read every byte.

        Raises:
            ArrayError: bounds that fall, or bytes that are no UTF-8.
        """
        if np.any(np.diff(self.start_N1) < 0):
            raise ArrayError(f"{what}: bounds of strings fall")
        try:
            self.to_arrow().validate(full=True)
        except pa.ArrowInvalid as error:
            raise ArrayError(f"{what}: {str(error).splitlines()[0]}") from None

    @classmethod
    def concat(cls, parts: Sequence[Strings]) -> Strings:
        """Several lists as one."""
        lengths = [np.diff(part.start_N1) for part in parts]
        start_N1 = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return cls(start_N1, np.concatenate([part.byte_X[int(part.start_N1[0]) : int(part.start_N1[-1])] for part in parts]))

    def after(self, first: int) -> Strings:
        """Those from a position on, over the same arrays."""
        start_N1 = self.start_N1[first:]
        return Strings(start_N1 - start_N1[0], self.byte_X[int(start_N1[0]) :])

    def raw(self, row: int) -> bytes:
        """UTF-8 of a string."""
        return self.byte_X[int(self.start_N1[row]) : int(self.start_N1[row + 1])].tobytes()

    def to_arrow(self, first: int = 0, last: int | None = None) -> pa.LargeStringArray:
        """Consecutive strings as an Arrow array over the same bytes."""
        last = len(self) if last is None else last
        bounds = np.ascontiguousarray(self.start_N1[first : last + 1])
        begin, end = (int(bounds[0]), int(bounds[-1])) if len(bounds) else (0, 0)
        data = np.ascontiguousarray(self.byte_X[begin:end])
        return pa.LargeStringArray.from_buffers(max(last - first, 0), pa.py_buffer(bounds - begin), pa.py_buffer(data))

    def take(self, rows: NDArray[np.integer[Any]]) -> Strings:
        """Some of them, in the order asked; no Python string is made."""
        length = self.start_N1[1:][rows] - self.start_N1[:-1][rows]
        start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
        out = np.empty(int(start[-1]), dtype=np.uint8)
        for at in range(0, len(rows), _CHUNK):
            part = slice(at, at + _CHUNK)
            size = length[part]
            source = np.repeat(self.start_N1[rows[part]] - (start[at : at + len(size)] - start[at]), size) + np.arange(int(size.sum()))
            out[start[at] : start[at] + len(source)] = self.byte_X[source]
        return Strings(start, out)

    def find(self, value: str) -> int:
        """Position of a string among sorted ones (by UTF-8 bytes), found by bisection; -1 if it is not there."""
        wanted, low, high = value.encode(), 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.raw(middle) < wanted else (low, middle)
        return low if low < len(self) and self.raw(low) == wanted else -1

    def __len__(self) -> int:
        return len(self.start_N1) - 1

    @overload
    def __getitem__(self, at: int | np.integer[Any]) -> str: ...
    @overload
    def __getitem__(self, at: slice | NDArray[Any] | Sequence[int]) -> NDArray[np.object_]: ...

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, (int, np.integer)):
            row = int(at) + (len(self) if at < 0 else 0)
            if not 0 <= row < len(self):
                raise IndexError(f"string {int(at)} of {len(self)}")
            return self.raw(row).decode()
        rows = np.arange(len(self))[at]
        if isinstance(at, slice) and (at.step or 1) == 1:
            found = self.to_arrow(int(rows[0]), int(rows[-1]) + 1) if len(rows) else pa.array([], pa.large_string())
        else:
            found = self.take(rows).to_arrow()
        out = np.empty(len(rows), dtype=object)
        out[:] = found.to_pylist()
        return out

    def __iter__(self) -> Iterator[str]:
        for at in range(0, len(self), _CHUNK):
            yield from self[at : at + _CHUNK]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.object_]:
        return self[:]

    def tolist(self) -> list[str]:
        """All of them as Python strings."""
        return list(self)
