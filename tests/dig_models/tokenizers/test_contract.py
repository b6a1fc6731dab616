"""What every kind of tokenizer must do, whoever makes it: parametrised over the registry."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch

from dig_models.bundle import Bundle
from dig_models.config import ModelConfig
from dig_models.dig import Dig
from dig_models.evaluate.sid_quality import measure
from dig_models.features import FeatureSpec, FeatureSpecMismatch
from dig_models.index import generation as g
from dig_models.index.diff import Sids
from dig_models.index.writer import Release, build, locked
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids, read_sids, write_sids
from dig_models.tokenizers.base import SETTINGS, Tokenizer, TokenizerError
from dig_models.tokenizers.registry import KINDS, load_tokenizer, tokenizer_class
from tests.dig_models.tokenizers.kinds import CODES, LEVELS, PENDING, QUICK, cold_items, fit

BUYERS = ["u1", "u2", "u3"]


@pytest.fixture(scope="module", params=sorted(QUICK))
def fitted(request: pytest.FixtureRequest, spec: FeatureSpec, items: ItemTable) -> Tokenizer:
    return fit(request.param, items, spec)


def test_every_kind_of_the_registry_is_held_to_this_contract() -> None:
    assert {*QUICK, *PENDING} == {*KINDS} and not {*QUICK} & {*PENDING}
    there = [kind for kind in PENDING if importlib.util.find_spec(f"dig_models.tokenizers.{KINDS[kind].split('.')[0]}")]
    assert not there, f"{there}: the module is there, so give the kind quick settings in kinds.QUICK"


def test_it_is_the_class_that_the_registry_names(fitted: Tokenizer) -> None:
    assert type(fitted) is tokenizer_class(fitted.kind)


def test_codes_have_the_shape_and_range_asked_for_and_the_unknown_item_has_none(fitted: Tokenizer, items: ItemTable) -> None:
    code_NL = fitted.encode(items)
    assert code_NL.shape == (len(items), LEVELS) and code_NL.dtype == np.int64
    assert (code_NL[0] == -1).all() and code_NL[1:].min() >= 0 and code_NL[1:].max() < CODES
    assert (fitted.levels, fitted.codes) == (LEVELS, CODES)


def test_what_is_quantized_has_a_row_an_item_and_the_width_of_the_codes(fitted: Tokenizer, items: ItemTable) -> None:
    embedding_ND, code_LKD = fitted.embed(items), fitted.code_LKD
    assert code_LKD.shape == (LEVELS, CODES, embedding_ND.shape[1]) and len(embedding_ND) == len(items)
    assert embedding_ND.dtype == code_LKD.dtype == np.float32
    assert np.isfinite(embedding_ND).all() and np.isfinite(code_LKD).all()


def test_the_seed_decides_the_codes(fitted: Tokenizer, spec: FeatureSpec, items: ItemTable) -> None:
    code_NL = fitted.encode(items)
    assert np.array_equal(fit(fitted.kind, items, spec, seed=1).encode(items), code_NL)
    assert not np.array_equal(fit(fitted.kind, items, spec, seed=2).encode(items), code_NL)


@pytest.mark.parametrize("kind", sorted({*QUICK} - {"dig"}))  # nothing is fitted there
def test_the_global_generators_are_left_as_they_were(kind: str, spec: FeatureSpec, items: ItemTable) -> None:
    torch.manual_seed(12345)
    np.random.seed(12345)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    made = fit(kind, items, spec)
    made.encode(items)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numbers)


def test_encoding_twice_gives_the_same(fitted: Tokenizer, items: ItemTable) -> None:
    assert np.array_equal(fitted.encode(items), fitted.encode(items))


def test_a_cold_item_gets_the_same_codes_whatever_else_is_in_the_table(fitted: Tokenizer, spec: FeatureSpec) -> None:
    many = cold_items(spec, [f"cold-{i}" for i in range(9)])
    code_NL = fitted.encode(many)
    assert code_NL[1:].min() >= 0 and code_NL[1:].max() < CODES
    for item in ("cold-2", "cold-7"):
        alone = cold_items(spec, [item])
        assert np.array_equal(fitted.encode(alone)[1], code_NL[many.rows(alone.hash_N[1:])[0]])


def test_cold_items_are_told_apart(fitted: Tokenizer, spec: FeatureSpec) -> None:
    code_NL = fitted.encode(cold_items(spec, [f"cold-{i}" for i in range(40)]))
    assert len(np.unique(code_NL[1:], axis=0)) > 10


def test_every_level_uses_more_than_half_of_its_codes(fitted: Tokenizer, items: ItemTable) -> None:
    used = [level.used for level in fitted.report(items).levels]
    assert len(used) == LEVELS and min(used) > CODES / 2


def test_the_collision_report_is_that_of_its_codes(fitted: Tokenizer, items: ItemTable) -> None:
    found = fitted.report(items)
    assert found == measure(fitted.encode(items)[1:], CODES)
    assert found.items == len(items) - 1 and 0.0 <= found.collision_rate < 0.9


def test_it_comes_back_from_its_folder_with_the_same_codes(fitted: Tokenizer, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    fitted.save(tmp_path / "kept")
    for loaded in (load_tokenizer(tmp_path / "kept", spec), type(fitted).load(tmp_path / "kept", spec)):
        assert type(loaded) is type(fitted) and (loaded.levels, loaded.codes) == (LEVELS, CODES)
        for table in (items, cold_items(spec, ["cold-1", "cold-2", "cold-3"])):
            assert np.array_equal(loaded.encode(table), fitted.encode(table))
        np.testing.assert_array_equal(loaded.embed(items), fitted.embed(items))


def test_saving_it_again_over_itself_gives_the_same_bytes_and_no_pickle(fitted: Tokenizer, spec: FeatureSpec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    load_tokenizer(tmp_path, spec).save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == first
    assert {path.suffix for path in first} <= {".safetensors", ".json", ".parquet"}


def test_a_file_that_is_missing_or_cut_short_is_an_error_that_names_the_folder(
    fitted: Tokenizer, spec: FeatureSpec, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        load_tokenizer(tmp_path, spec)
    fitted.save(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for part in (None, whole[: len(whole) // 2], whole[:-40], b"{}"):
            path.unlink() if part is None else path.write_bytes(part)
            for load in (load_tokenizer, type(fitted).load):
                with pytest.raises(TokenizerError, match=str(tmp_path)):
                    load(tmp_path, spec)
            path.write_bytes(whole)
    assert load_tokenizer(tmp_path, spec).kind == fitted.kind


def test_another_kind_s_folder_is_refused(fitted: Tokenizer, spec: FeatureSpec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    for kind in {*QUICK} - {fitted.kind}:
        with pytest.raises(TokenizerError, match=f"kind '{fitted.kind}' found, '{kind}' expected"):
            tokenizer_class(kind).load(tmp_path, spec)


def test_a_folder_of_another_format_is_refused(fitted: Tokenizer, spec: FeatureSpec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings["format"] == fitted.format
    for other in (fitted.format + 1, None):
        (tmp_path / SETTINGS).write_text(json.dumps(settings | {"format": other}))
        for load in (load_tokenizer, type(fitted).load):
            with pytest.raises(TokenizerError, match=f"format {other} of {fitted.kind} found, this code reads format {fitted.format}"):
                load(tmp_path, spec)


def test_another_feature_spec_is_refused(fitted: Tokenizer, spec: FeatureSpec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    with pytest.raises(FeatureSpecMismatch, match="was made with feature spec"):
        load_tokenizer(tmp_path, FeatureSpec.model_validate(spec.model_dump() | {"history_length": 7}))


def test_what_is_no_kind_of_tokenizer_is_named(fitted: Tokenizer, spec: FeatureSpec, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    path = tmp_path / SETTINGS
    path.write_text(path.read_text().replace(f'"{fitted.kind}"', '"newer"'))
    with pytest.raises(TokenizerError, match=r"tokenizer 'newer': unknown, expected one of dig, .*; it was written by another version"):
        load_tokenizer(tmp_path, spec)


def test_a_model_trains_on_its_codes_and_the_index_publishes_them(
    fitted: Tokenizer, spec: FeatureSpec, items: ItemTable, tmp_path: Path
) -> None:
    """Through the file that ``train.given_sids`` names, codebooks of the given SIDs, and a whole index generation."""
    code_NL = fitted.encode(items)
    write_sids(tmp_path / "sids.parquet", items.id_N[1:].tolist(), code_NL[1:])
    given = read_sids(tmp_path / "sids.parquet", levels=LEVELS, codes=CODES)
    assert np.array_equal(given.find(items.hash_N[1:]), code_NL[1:])
    release = Release(
        day=synthetic.DAY,
        model_name="given",
        model_version="1",
        bundle=trained_on(given, spec, items),
        items=items,
        user_state=synthetic.user_state(spec, items, BUYERS),
        cross_arrays=synthetic.write_crosses(tmp_path / "crosses", spec, items, BUYERS),
    )
    with locked(tmp_path / "index"):
        made = build(tmp_path / "index", release)
    published = Sids.read(g.generation_dir(tmp_path / "index", made), made)
    assert np.array_equal(KnownSids(published.hash_M, published.code_ML).find(items.hash_N[1:]), code_NL[1:])


def trained_on(given: KnownSids, spec: FeatureSpec, items: ItemTable) -> Bundle:
    """A model that took given SIDs the way that training does, without a step."""
    sizes = {"dim": 8, "encoder_hidden": 8, "heads": 2, "experts": 2, "expert_hidden": 8, "cross_rank": 4}
    model = Dig(ModelConfig.model_validate({**sizes, "levels": LEVELS, "codes": CODES, "assignment": "given"}), spec, seed=1)
    model.reserved = given
    model.set_items(items)
    model.build_codebooks(1)
    return Bundle(model.eval(), spec, items, model.code_NL.numpy().copy(), {"date": synthetic.DAY.isoformat(), "keep_rate": 0.1})
