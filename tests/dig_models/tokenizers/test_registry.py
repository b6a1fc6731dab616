"""Tokenizers by name: lazily, and with errors that say what to do."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from dig_models.features import FeatureSpec
from dig_models.tokenizers.base import SETTINGS, TokenizerError
from dig_models.tokenizers.registry import KINDS, MissingExtra, UnknownKind, load_tokenizer, tokenizer_class
from dig_models.tokenizers.rqvae import RqVae


def test_a_kind_gives_its_class_and_a_class_its_kind() -> None:
    assert tokenizer_class("rqvae") is RqVae
    assert list(KINDS) == sorted(KINDS) and all(tokenizer_class(kind).kind == kind for kind in ("dig", "rkmeans", "rqvae"))


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UnknownKind, match=r"tokenizer 'vqvae': unknown, expected one of dig, diger, resid, rkmeans, rqvae, unisid"):
        tokenizer_class("vqvae")


def test_no_kind_is_imported_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {f"dig_models.tokenizers.{path.split('.')[0]}" for path in KINDS.values()}
    for name in {"dig_models.tokenizers.registry", *modules} & {*sys.modules}:
        monkeypatch.delitem(sys.modules, name)
    fresh = import_module("dig_models.tokenizers.registry")
    assert not modules & {*sys.modules}
    fresh.tokenizer_class("rkmeans")
    assert modules & {*sys.modules} == {"dig_models.tokenizers.rkmeans"}
    monkeypatch.delitem(sys.modules, "dig_models.tokenizers.rkmeans")


def test_a_kind_whose_package_is_not_installed_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)  # Python itself then says that there is no such module
    monkeypatch.delitem(sys.modules, "dig_models.tokenizers.rkmeans", raising=False)
    said = r"'rkmeans' needs the package sklearn.cluster, which is not installed: pip install 'dig-pipeline\[tokenizers\]'"
    with pytest.raises(MissingExtra, match=said):
        tokenizer_class("rkmeans")


def test_a_fault_of_this_project_is_not_taken_for_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "odd", "odd.Odd")
    with pytest.raises(ModuleNotFoundError, match=r"dig_models.tokenizers.odd") as found:
        tokenizer_class("odd")
    assert not isinstance(found.value, MissingExtra)


def test_a_folder_that_says_no_kind_is_refused(spec: FeatureSpec, tmp_path: Path) -> None:
    for text in (None, "{", "[]", "{}"):
        if text is not None:
            (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(TokenizerError, match=rf"{SETTINGS}: says no kind of tokenizer"):
            load_tokenizer(tmp_path, spec)
