"""Arrays and strings on disk: what is written comes back, mapped, and what is not as it should be is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dig_models.arrays import ArrayError, Strings, create_npy, open_npy, save_npy

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=30)


@pytest.mark.parametrize(
    "array", [np.arange(6), np.zeros((0, 3), np.float32), np.arange(12, dtype=np.int32).reshape(3, 4), np.zeros((2, 0), np.uint8)]
)
def test_an_array_comes_back_as_a_map_that_cannot_be_written(tmp_path: Path, array: np.ndarray) -> None:
    save_npy(tmp_path / "a.npy", array)
    back = open_npy(tmp_path / "a.npy", array.dtype, (None,) * array.ndim)
    assert back.dtype == array.dtype and np.array_equal(back, array)
    assert not array.size or not back.flags.writeable
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)


def test_what_is_written_to_a_private_map_stays_there(tmp_path: Path) -> None:
    save_npy(tmp_path / "a.npy", np.arange(4.0))
    mine = open_npy(tmp_path / "a.npy", np.float64, (4,), private=True)
    mine[0] = 9.0
    assert open_npy(tmp_path / "a.npy", np.float64, (4,))[0] == 0.0


def test_an_array_can_be_filled_piece_by_piece(tmp_path: Path) -> None:
    out = create_npy(tmp_path / "a.npy", np.int32, (5, 2))
    out[:3], out[3:] = 1, 2
    del out
    assert open_npy(tmp_path / "a.npy", np.int32, (5, 2)).sum() == 14
    assert create_npy(tmp_path / "b.npy", np.int32, (0, 2)).shape == open_npy(tmp_path / "b.npy", np.int32, (0, 2)).shape


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.arange(4, dtype=np.int32), r"expected int64 \(4\), found int32 \(4\)"),
        (np.arange(5), r"expected int64 \(4\), found int64 \(5\)"),
        (np.arange(4)[:, None], r"expected int64 \(4\), found int64 \(4, 1\)"),
        (np.array(["abcd"] * 4), "header of a plain array of numbers expected"),
        (np.zeros(4, dtype=[("a", "i8")]), "header of a plain array of numbers expected"),
    ],
)
def test_another_array_is_named(tmp_path: Path, made: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", made)
    with pytest.raises(ArrayError, match=rf"a\.npy: .*{message}"):
        open_npy(tmp_path / "a.npy", np.int64, (4,))


def test_the_order_of_fortran_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(np.arange(6).reshape(2, 3)))
    with pytest.raises(ArrayError, match="in Fortran order"):
        open_npy(tmp_path / "a.npy", np.int64, (2, 3))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b[:20], lambda b: b"x" + b[1:]])
def test_a_file_of_another_length_is_named(tmp_path: Path, change: object) -> None:
    save_npy(tmp_path / "a.npy", np.arange(4))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(change(whole))  # type: ignore[operator]
    with pytest.raises(ArrayError, match=r"a\.npy"):
        open_npy(tmp_path / "a.npy", np.int64, (4,))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArrayError, match=r"a\.npy: cannot be read"):
        open_npy(tmp_path / "a.npy", np.int64, (4,))


@settings(max_examples=60, deadline=None)
@given(values=TEXTS, data=st.data())
def test_strings_behave_as_an_object_array_of_them(values: list[str], data: st.DataObject) -> None:
    strings, plain = Strings.of(values), np.array([*values, None], dtype=object)[:-1]
    assert len(strings) == len(values) and strings.tolist() == list(strings) == values
    assert list(np.asarray(strings)) == values
    cut = data.draw(st.slices(len(values)))
    assert strings[cut].tolist() == plain[cut].tolist()
    if values:
        rows = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=10)), dtype=np.int64)
        assert strings[rows].tolist() == strings.take(rows).tolist() == plain[rows].tolist()
        first = data.draw(st.integers(0, len(values) - 1))
        assert strings[first - len(values)] == values[first] and strings.after(first).tolist() == values[first:]
    assert Strings.concat([strings, Strings.of(["x"]), strings.after(len(values))]).tolist() == [*values, "x"]
    assert strings.to_arrow().to_pylist() == values


@settings(max_examples=60, deadline=None)
@given(
    values=st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
    other=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
def test_a_string_is_found_by_bisection(values: set[str], other: str) -> None:
    ordered = sorted(values, key=str.encode)
    strings = Strings.of(ordered)
    assert [strings.find(value) for value in ordered] == list(range(len(ordered)))
    assert strings.find(other) == (ordered.index(other) if other in values else -1)


def test_arrow_columns_of_any_layout_give_the_same_strings() -> None:
    whole = pa.array(["a", None, "ü", "", "long enough"])
    for column in (
        pa.chunked_array([whole]),
        pa.chunked_array([whole.slice(0, 2), whole.slice(2)]),
        pa.chunked_array([pa.array([], pa.large_string()), whole.cast(pa.large_string())]),
        pa.chunked_array([pa.array(["x", *whole.to_pylist()]).slice(1)]),
    ):
        assert Strings.from_arrow(column).tolist() == ["a", "", "ü", "", "long enough"]
        assert Strings.from_arrow(column, first="0").tolist() == ["0", "a", "", "ü", "", "long enough"]
    assert Strings.from_arrow(pa.chunked_array([], pa.string())).tolist() == []


def test_strings_are_read_back_from_a_folder(tmp_path: Path) -> None:
    Strings.of(["a", "", "ü"]).save(tmp_path, "id")
    back = Strings.open(tmp_path, "id", 3)
    assert back.tolist() == ["a", "", "ü"]
    back.check("id")
    with pytest.raises(ArrayError, match=r"id\.start\.npy: expected int64 \(5\), found int64 \(4\)"):
        Strings.open(tmp_path, "id", 4)
    save_npy(tmp_path / "id.bytes.npy", np.zeros(7, dtype=np.uint8))
    with pytest.raises(ArrayError, match="bounds from 0 to 7, found 0 to 3"):
        Strings.open(tmp_path, "id")


def test_a_position_that_is_not_there_is_refused() -> None:
    with pytest.raises(IndexError, match="string 3 of 3"):
        _ = Strings.of(["a", "b", "c"])[3]


@pytest.mark.parametrize(("start", "data"), [([0, 2, 1, 3], b"abc"), ([0, 1], b"\xff")])
def test_bounds_that_fall_and_bytes_that_are_no_text_are_found(start: list[int], data: bytes) -> None:
    strings = Strings(np.array(start), np.frombuffer(data, dtype=np.uint8))
    with pytest.raises(ArrayError, match="here: "):
        strings.check("here")
