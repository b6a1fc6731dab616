"""The stack's memory: private from the first byte, whole or absent, and drawn anew for every stack."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from ops.service import StackError
from ops.state import SECRETS, Started, State, load_state, private_folder, save_state, write_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_was_saved_is_loaded(tmp_path):
    state = State(ports={"redis": 1}, processes={"redis": Started(7, "boot/1", 2.5, 15, 3.0, ("postgres",))})
    save_state(tmp_path, state)
    assert load_state(tmp_path) == state


def test_there_is_no_state_before_the_first_one(tmp_path):
    assert load_state(tmp_path) is None


@pytest.mark.usefixtures("open_umask")
def test_secrets_are_readable_by_their_owner_alone(tmp_path):
    save_state(private_folder(tmp_path / "stack", 0o711), State())
    assert mode(tmp_path / "stack") == 0o711
    assert mode(tmp_path / "stack" / "state.json") == 0o600
    assert [path.name for path in (tmp_path / "stack").iterdir()] == ["state.json"]


@pytest.mark.usefixtures("open_umask")
def test_a_private_file_stays_private_when_it_replaces_an_open_one(tmp_path):
    (tmp_path / "words").write_text("old")
    write_private(tmp_path / "words", "new")
    assert (tmp_path / "words").read_text() == "new"
    assert mode(tmp_path / "words") == 0o600


def test_every_stack_draws_its_own_secrets():
    one, other = State(), State()
    assert set(one.secrets) == set(SECRETS)
    assert not set(one.secrets.values()) & set(other.secrets.values())
    assert len(set(one.secrets.values())) == len(SECRETS)
    assert min(map(len, one.secrets.values())) >= 32
    assert len(one.secrets["jwt"]) >= 64, "SHA-512 wants a key of 64 bytes"
    assert len(base64.urlsafe_b64decode(one.secrets["fernet"])) == 32
    assert one.marker != other.marker


@pytest.mark.parametrize("text", ["", "{", "[]", '{"processes": {"redis": {"pid": 1}}}', '{"processes": {}, "unknown": 1}'])
def test_a_state_that_cannot_be_read_is_one_clear_error(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(StackError, match=r"state\.json: the state of the stack cannot be read"):
        load_state(tmp_path)
