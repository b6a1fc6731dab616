"""DIG's own codes as a tokenizer: of which bundles, and that they are what an index publishes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic

from dig_models.bundle import Bundle, load_bundle, save_bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec
from dig_models.index.encode import write_codes
from dig_models.items import ItemTable
from dig_models.tokenizers.base import TokenizerError
from dig_models.tokenizers.dig import MODEL, DigTokenizer
from tests.dig_models.conftest import make_dig
from tests.dig_models.tokenizers.kinds import cold_items


def of(model: Dig, spec: FeatureSpec, items: ItemTable) -> Bundle:
    return Bundle(model.eval(), spec, items, model.code_NL.numpy().copy(), {})


def test_there_is_no_fit_and_the_error_says_how_to_make_one(spec: FeatureSpec, items: ItemTable) -> None:
    with pytest.raises(
        TokenizerError, match=r"learned by the training of its ranker \(jobs.train\).*DigTokenizer.of\(load_bundle\(path\)\)"
    ):
        DigTokenizer.fit(items, spec, levels=3, codes=8, seed=0)


@pytest.mark.parametrize("assignment", ["online_rq", "frozen_tree"])
def test_its_codes_are_those_that_an_index_publishes(assignment: str, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    bundle = synthetic.make_bundle(spec, items, assignment=assignment)
    made = DigTokenizer.of(bundle)
    for table in (items, cold_items(spec, ["cold-1", "cold-2", "cold-3"])):
        write_codes(bundle.model, table, tmp_path / "sid.npy", tmp_path / "embedding.npy")
        assert np.array_equal(made.encode(table), np.load(tmp_path / "sid.npy"))
        np.testing.assert_array_equal(made.embed(table), np.load(tmp_path / "embedding.npy"))
    assert np.array_equal(made.encode(items)[1:], bundle.codes_NL[1:])


def test_items_that_keep_their_codes_keep_them_through_a_folder(spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    """A tree gives items other codes than the nearest; both those of a tree and of a bundle on disk come back."""
    made = DigTokenizer.of(synthetic.make_bundle(spec, items, assignment="frozen_tree"))
    nearest = made.bundle.model.quantizer.assign(made.bundle.model.encode_catalogue())[1:].numpy()
    assert not np.array_equal(made.encode(items)[1:], nearest)
    made.save(tmp_path / "a")
    assert np.array_equal(DigTokenizer.load(tmp_path / "a", spec).encode(items), made.encode(items))
    save_bundle(tmp_path / "b", made.bundle.model, items, {"date": "2017-03-20"})
    loaded = DigTokenizer.of(load_bundle(tmp_path / "b", spec))
    assert np.array_equal(loaded.encode(items), made.encode(items))
    loaded.save(tmp_path / "c")
    assert DigTokenizer.load(tmp_path / "c", spec).bundle.info == {"date": "2017-03-20"}


def test_a_model_without_codebooks_gives_no_tokenizer(spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    bare = of(make_dig(spec, items, loss={"recall": 0.0}), spec, items)
    with pytest.raises(TokenizerError, match=r"has no codebooks \(it was trained with loss.recall 0 or stopped in its warm-up\)"):
        DigTokenizer.of(bare)
    whole = DigTokenizer.of(synthetic.make_bundle(spec, items))
    whole.save(tmp_path)
    save_bundle(tmp_path / MODEL, bare.model, items, {})
    with pytest.raises(TokenizerError, match="has no codebooks"):
        DigTokenizer.load(tmp_path, spec)


def test_the_ablation_with_two_embeddings_of_an_item_gives_no_tokenizer(spec: FeatureSpec, items: ItemTable) -> None:
    two = synthetic.make_bundle(spec, items, rank_gradient_to_encoder=False)
    with pytest.raises(TokenizerError, match="rank_gradient_to_encoder: false is an ablation"):
        DigTokenizer.of(two)


def test_tensors_alone_are_no_dig_tokenizer(spec: FeatureSpec, items: ItemTable) -> None:
    made = DigTokenizer.of(synthetic.make_bundle(spec, items))
    assert "quantizer.code_LKD" in made.state() and made.content.arrays() == {}
    with pytest.raises(TokenizerError, match=r"comes back from its bundle, not from tensors alone"):
        DigTokenizer.from_state(made.content, made.levels, made.codes, made.state())


def test_a_field_outside_the_spec_is_refused(spec: FeatureSpec, items: ItemTable) -> None:
    made = DigTokenizer.of(synthetic.make_bundle(spec, items))
    wrong = replace(items, fields={**items.fields, "brand": items.fields["brand"] + 100})
    with pytest.raises(ValueError, match="brand"):
        made.encode(wrong)
