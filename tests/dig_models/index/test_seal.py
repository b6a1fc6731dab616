"""Seal, content and codebook digest as ``docs/reference/index-format.md`` describes them, worked out without a JSON library."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dig_models.index import generation as g
from dig_models.index.writer import Release
from tests.dig_models.index.conftest import Publish

SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def seal_of(data: bytes) -> tuple[str, str]:
    """``(seal that the bytes of a manifest give, seal that they hold)``, by the two steps of the document."""
    out, inside, escaped = bytearray(), False, False
    for byte in data:
        if inside or byte not in b" \r\n\t":
            out.append(byte)
        if inside:
            inside, escaped = escaped or byte != ord('"'), not escaped and byte == ord("\\")
        else:
            inside = byte == ord('"')
    before, _, rest = bytes(out).rpartition(b',"seal":"')
    held, _, after = rest.partition(b'",')
    return hashlib.sha256(before + b"," + after).hexdigest(), held.decode()


def string(text: str) -> str:
    """A string as the document says."""
    units = "".join(
        SHORT.get(c) or (c if " " <= c <= "~" else "".join(f"\\u{unit:04x}" for unit in np.frombuffer(c.encode("utf-16-le"), "<u2")))
        for c in text
    )
    return f'"{units}"'


def content_of(manifest: g.Manifest) -> str:
    about = [manifest.date.isoformat(), manifest.model_name, manifest.model_version, manifest.codebook]
    files = [f"{string(path)}:{string(manifest.files[path].sha256)}" for path in sorted(manifest.files) if path not in LEFT_OUT]
    return hashlib.sha256(f'{{"about":[{",".join(map(string, about))}],"files":{{{",".join(files)}}}}}'.encode("ascii")).hexdigest()


LEFT_OUT = ("delta.parquet", "items/embedding.npy")
ODD: list[dict[str, Any]] = [
    {},
    {"model_name": 'größer "1" \\ /, \U0001f34c\x7f\n\t\x01 ,"seal":"'},
    {"quality": {"a": 1e-5, "b": 1e22, "c": 0.1 + 0.2, "d": -0.0, "e": 1.0, "z": [1, 2.5e-300, None, True], "ä": {" b ": " : , "}}},
    {"delta": {"seal": "x", "added": 1}, "churn": {"seal": 0.25}},
]


@pytest.mark.parametrize("change", ODD)
def test_a_seal_worked_out_from_the_document_is_the_manifest_s(
    tmp_path: Path, release: Release, publish: Publish, change: dict[str, Any]
) -> None:
    manifest = g.read_manifest(tmp_path, publish(tmp_path, release)).model_copy(update=change).sealed()
    data = manifest.text().encode("ascii")
    own, held = seal_of(data)
    assert own == held == manifest.seal
    assert g.parse_manifest(data, manifest.id) == manifest
    assert seal_of(data.replace(b'"items": 60', b'"items": 61'))[0] != held


def test_the_file_that_is_written_is_the_text_that_is_sealed(tmp_path: Path, release: Release, publish: Publish) -> None:
    generation = publish(tmp_path, release)
    data = (tmp_path / g.GENERATIONS / generation / g.MANIFEST).read_bytes()
    own, held = seal_of(data)
    assert own == held == g.read_manifest(tmp_path, generation).seal


@pytest.mark.parametrize("name", ["dig", 'größer "1" \\ \U0001f34c\x7f'])
def test_content_and_codebook_worked_out_from_the_document_are_the_manifest_s(
    tmp_path: Path, release: Release, publish: Publish, name: str
) -> None:
    generation = publish(tmp_path, Release(**{**vars(release), "model_name": name}))
    manifest = g.read_manifest(tmp_path, generation)
    assert content_of(manifest) == manifest.content and generation.endswith(manifest.content[:10])
    tensors = load_file(tmp_path / g.GENERATIONS / generation / "model" / "model.safetensors")
    codes, rows = tensors["quantizer.code_LKD"], tensors["quantizer.semantic.weight"]
    levels, codes_each, width = codes.shape
    shapes = [f"<f4({levels}, {codes_each}, {width})", f"<f4({levels * codes_each}, {width})"]
    parts = [shapes[0].encode(), codes.tobytes(), shapes[1].encode(), rows.tobytes()]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == manifest.codebook
