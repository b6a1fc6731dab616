"""UniSID: what its levels learn from, that codes do not collapse, what it publishes, and the optional encoder of names."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from pydantic import ValidationError

from dig_models.evaluate.sid_quality import measure
from dig_models.features import FeatureSpec, FieldSpec
from dig_models.index.resolve import KNOWN, resolve
from dig_models.items import ItemTable
from dig_models.quantize.tree import nearest_codes
from dig_models.tokenizers.content import ContentVectors
from dig_models.tokenizers.registry import MissingExtra, load_tokenizer
from dig_models.tokenizers.unisid import UniSid, UniSidSettings, _loss, _read
from dig_models.tokenizers.unisid_items import FieldTokens, Paths, category_path
from dig_models.tokenizers.unisid_network import Inputs, balance, columns_of, contrast, hidden_words
from dig_models.tokenizers.unisid_text import TextEncoder, TextEncoderError

QUICK = UniSidSettings(dim=16, heads=2, layers=1, epochs=15, batch=64, lr=3e-3)
SHORT = QUICK.model_copy(update={"epochs": 4})
LEVELS, CODES = 3, 8


@pytest.fixture(scope="module")
def fitted(spec: FeatureSpec, items: ItemTable) -> UniSid:
    return UniSid.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, settings=QUICK)


@pytest.fixture(scope="module")
def graded(spec: FeatureSpec, items: ItemTable) -> tuple[FeatureSpec, ItemTable]:
    """The catalogue with a coarse category of three values above the brands."""
    wider = FeatureSpec.model_validate(
        spec.model_dump() | {"item_fields": [*spec.model_dump()["item_fields"], {"name": "top", "buckets": 8}]}
    )
    top = np.where(items.fields["brand"] > 0, items.fields["brand"] % 3 + 1, 0)
    return wider, replace(items, fields={**items.fields, "top": top})


def test_the_heads_choose_the_codes_and_nearest_residual_codes_of_what_it_embeds_are_the_same(
    fitted: UniSid, spec: FeatureSpec, items: ItemTable
) -> None:
    for table in (items, synthetic.make_items(spec, [f"cold-{i}" for i in range(20)])):
        code_NL, e_NE = fitted.encode(table), fitted.embed(table)
        with torch.no_grad():
            level_NLD, embedding_ND = fitted._read_out(table)
        assert np.array_equal(fitted.network.logits(level_NLD).argmax(2).numpy()[1:], code_NL[1:])
        assert np.array_equal(nearest_codes(e_NE[1:], fitted.code_LKD), code_NL[1:])
        np.testing.assert_array_equal(fitted.embedding(table), embedding_ND.numpy())
        np.testing.assert_array_equal(e_NE[:, -QUICK.dim :], fitted.embedding(table))


def test_an_item_that_loses_its_sid_on_publication_gets_the_code_of_the_next_best_logit(fitted: UniSid, items: ItemTable) -> None:
    twin = np.array([0, 1, 1])
    code_NL, e_NE = fitted.encode(items)[twin], fitted.embed(items)[twin]
    with torch.no_grad():
        z_K = fitted.network.logits(fitted._read_out(items)[0])[1, -1]
    found = resolve(code_NL, e_NE, fitted.code_LKD, rank_N=np.full(3, KNOWN))
    assert (found.moved, found.left) == (1, 0)
    assert np.array_equal(code_NL[1:, -1], z_K.topk(2).indices.numpy())


def test_the_category_path_goes_from_few_values_to_many_and_may_be_given(graded: tuple[FeatureSpec, ItemTable]) -> None:
    spec, items = graded
    assert category_path(items, spec, None) == ("top", "brand")
    assert category_path(items, spec, ("brand",)) == ("brand",)
    with pytest.raises(ValueError, match=r"category path: field 'tags' found, .* expected: brand, top"):
        UniSid.fit(items, spec, levels=2, codes=4, seed=0, settings=QUICK.model_copy(update={"path": ("tags",)}))


def test_positives_share_the_categories_of_their_level_and_at_last_the_item_alone(graded: tuple[FeatureSpec, ItemTable]) -> None:
    _, items = graded
    top_M, brand_M = items.fields["top"][1:], items.fields["brand"][1:]
    missing = replace(items, fields={**items.fields, "brand": np.where(np.arange(len(items)) < 5, 0, items.fields["brand"])})
    group_LM = Paths.of(items, ("top", "brand"), 3).group_LM
    for group_M, same_MM in ((group_LM[0], top_M[:, None] == top_M), (group_LM[1], brand_M[:, None] == brand_M)):
        assert np.array_equal(group_M[:, None] == group_M, same_MM)
    assert len(np.unique(group_LM[2])) == len(items) - 1
    short_LM = Paths.of(items, ("top", "brand", "brand"), 2).group_LM
    assert np.array_equal(short_LM[0][:, None] == short_LM[0], brand_M[:, None] == brand_M), "ceil(1 x 3 / 2) = 2 fields"
    alone_M = Paths.of(missing, ("brand",), 1).group_LM[0]
    assert all((alone_M == alone_M[row]).sum() == 1 for row in range(4)), "a missing category is shared with nobody"


def test_batches_bring_companions_of_an_item_s_categories(graded: tuple[FeatureSpec, ItemTable]) -> None:
    _, items = graded
    paths = Paths.of(items, ("top", "brand"), 2)
    anchor_B = np.tile(np.arange(len(items) - 1), 20)
    other_B = paths.companions(anchor_B, np.random.default_rng(0))
    assert (paths.group_LM[0, other_B] == paths.group_LM[0, anchor_B]).all()
    deeper = (paths.group_LM[1, other_B] == paths.group_LM[1, anchor_B]).mean()
    assert 0.5 < deeper < 0.9, "half of the companions are drawn at the deeper level, some of the others share it by chance"
    assert (other_B != anchor_B).mean() > 0.8


def test_contrast_is_least_where_the_views_of_a_group_agree_and_is_infonce_by_its_formula() -> None:
    x_BD, group_B = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 1, 2])
    unit = torch.nn.functional.normalize(x_BD, dim=1)
    expected = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        total = sum(torch.exp(unit[i] @ unit[j] / 0.5) for j in others)
        logs = [torch.log(torch.exp(unit[i] @ unit[j] / 0.5) / total) for j in others if group_B[j] == group_B[i]]
        expected.append(-sum(logs) / len(logs) if logs else torch.tensor(0.0))
    torch.testing.assert_close(contrast(x_BD, group_B, 0.5), torch.stack(expected).mean())
    agreeing = torch.eye(4)[group_B]
    assert contrast(agreeing, group_B, 0.1) < contrast(x_BD, group_B, 0.1)


def test_the_balance_term_is_one_for_a_collapsed_level_and_least_for_codes_evenly_used_within_prefixes() -> None:
    def term(code_BL: list[list[int]]) -> float:
        z_BLK = 5.0 * torch.nn.functional.one_hot(torch.tensor(code_BL), 2).float()
        return float(balance(z_BLK, torch.arange(len(code_BL))))

    collapsed, repeated, even = [[0, 0]] * 4, [[0, 0], [0, 0], [1, 1], [1, 1]], [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert term(collapsed) == pytest.approx(1.0)
    assert term(even) < term(repeated) < term(collapsed)


@pytest.mark.slow
def test_without_the_balance_term_codes_collapse_to_the_categories_and_with_it_they_do_not(graded: tuple[FeatureSpec, ItemTable]) -> None:
    spec, items = graded
    settings = QUICK.model_copy(update={"epochs": 25})
    found = {
        weight: measure(
            UniSid.fit(items, spec, levels=2, codes=16, seed=1, settings=settings.model_copy(update={"balance": weight})).encode(items)[1:],
            16,
        )
        for weight in (0.0, QUICK.balance)
    }
    assert found[0.0].levels[0].perplexity < 6.0, "three categories at the first level"
    assert found[QUICK.balance].levels[0].perplexity > 10.0 and found[QUICK.balance].levels[0].dead <= 4
    assert found[QUICK.balance].collision_rate < 0.7 * found[0.0].collision_rate


def test_every_level_is_used_and_items_of_a_category_meet_in_the_first_codes(graded: tuple[FeatureSpec, ItemTable]) -> None:
    spec, items = graded
    made = UniSid.fit(items, spec, levels=2, codes=CODES, seed=1, settings=QUICK)
    code_NL, top_N = made.encode(items), items.fields["top"]
    assert min(level.used for level in made.report(items).levels) > CODES / 2
    same = top_N[1:, None] == top_N[None, 1:]
    np.fill_diagonal(same, False)
    meet = code_NL[1:, None, 0] == code_NL[None, 1:, 0]
    apart = ~same & ~np.eye(len(same), dtype=bool)
    assert meet[same].mean() > 1.5 * meet[apart].mean()
    assert made.path == ("top", "brand") and made.losses[-1] < made.losses[0]


def test_the_summary_is_made_of_words_and_tags_that_the_view_hides(spec: FeatureSpec, items: ItemTable) -> None:
    tokens = FieldTokens(spec, 12)
    bucket_MT, word_V = torch.from_numpy(tokens.buckets(items)[1:]), torch.from_numpy(tokens.of_words())
    assert len(word_V) == 31 + 63 and tokens.count == 1 + 15 + 31 + 63
    word_V = word_V[::2]  # of which the fit has shown these
    none = torch.zeros(len(bucket_MT), 0)
    whole = Inputs(bucket_MT, none, none, none.unsqueeze(1), none.bool(), torch.ones(len(bucket_MT), dtype=torch.bool))
    view = whole.view(0.5, words_only=True, generator=torch.Generator().manual_seed(0))
    word_MV = hidden_words(whole, view, columns_of(word_V, tokens.count), len(word_V))
    for row in range(len(bucket_MT)):
        hidden = ({*bucket_MT[row].tolist()} - {*view.bucket_MT[row].tolist()}) & {*word_V.tolist()}
        assert {*word_V[word_MV[row] > 0].tolist()} == hidden
    assert not view.content_M.any() and not hidden_words(whole, whole, columns_of(word_V, tokens.count), len(word_V)).any()
    torch.testing.assert_close(word_MV.sum(1), (word_MV.sum(1) > 0).float())


def test_the_summary_counts_by_its_weight_and_trains_what_it_is_decoded_from(fitted: UniSid, items: ItemTable) -> None:
    whole = _read(items, fitted.content, FieldTokens(fitted.content.spec, QUICK.field_tokens), None)[1:]
    column_T = columns_of(fitted.network.word_V, fitted.network.shape.buckets)
    row_B, paths = np.arange(len(items) - 1), Paths.of(items, ("brand",), LEVELS)

    def loss(weight: float) -> torch.Tensor:
        settings = QUICK.model_copy(update={"reconstruction": weight})
        return _loss(fitted.network, whole, row_B, paths, settings, torch.Generator().manual_seed(0), column_T)

    one, two = loss(0.1) - loss(0.0), loss(0.2) - loss(0.0)
    assert one.item() > 0.0 and two.item() == pytest.approx(2.0 * one.item(), rel=1e-3)
    fitted.network.zero_grad()
    two.backward()
    for part in (fitted.network.decoder[0].weight, fitted.network.head_LKD, fitted.network.table.weight):
        assert part.grad.abs().sum() > 1e-6
    fitted.network.zero_grad()


def test_what_a_field_lists_beyond_its_tokens_is_left_out_and_padding_does_not_count(spec: FeatureSpec, items: ItemTable) -> None:
    wide = replace(items, fields={**items.fields, "words": np.pad(items.fields["words"], ((0, 0), (3, 2)))})
    assert np.array_equal(FieldTokens(spec, 12).buckets(wide), FieldTokens(spec, 12).buckets(items))
    assert FieldTokens(spec, 2).buckets(items).shape == (len(items), 1 + 2 + 2)
    wrong = replace(items, fields={**items.fields, "brand": items.fields["brand"] + 100})
    with pytest.raises(ValueError, match=r"field 'brand': bucket \d+ found, the spec declares 0..15"):
        FieldTokens(spec, 2).buckets(wrong)


def test_the_order_of_an_item_s_words_says_nothing_and_its_id_neither(fitted: UniSid, items: ItemTable) -> None:
    other = replace(items, fields={**items.fields, "words": items.fields["words"][:, ::-1], "item_id": np.roll(items.fields["item_id"], 3)})
    np.testing.assert_allclose(fitted.embed(other), fitted.embed(items), atol=1e-4)
    changed = replace(items, fields={**items.fields, "words": np.roll(items.fields["words"], 1, axis=0)})
    assert np.abs(fitted.embed(changed) - fitted.embed(items)).max() > 0.01


def test_a_bucket_that_the_fit_has_not_shown_reads_as_missing(spec: FeatureSpec, items: ItemTable) -> None:
    given = ContentVectors.fit(items, spec, seed=0)
    made = UniSid.fit(items, spec, levels=2, codes=4, seed=1, content=replace(given, component_VD=0 * given.component_VD), settings=SHORT)
    unseen = next(b for b in range(1, 16) if b not in items.fields["brand"])
    without, new = (replace(items, fields={**items.fields, "brand": np.full(len(items), b)}) for b in (0, unseen))
    np.testing.assert_array_equal(made.embed(without), made.embed(new))
    assert not np.array_equal(made.embed(without), made.embed(items))


def test_content_from_outside_moves_the_codes(fitted: UniSid, spec: FeatureSpec, items: ItemTable) -> None:
    content = replace(fitted.content, component_VD=fitted.content.component_VD[::-1].copy())
    other = UniSid.from_state(content, LEVELS, CODES, fitted.state(), QUICK.model_dump())
    assert not np.array_equal(other.encode(items), fitted.encode(items))


def test_a_catalogue_without_categories_words_or_numbers_still_gets_codes(spec: FeatureSpec, items: ItemTable) -> None:
    for field in (FieldSpec(name="brand", buckets=16), FieldSpec(name="tags", kind="multi", buckets=32)):
        one = FeatureSpec.model_validate(spec.model_dump() | {"item_fields": [field.model_dump()]})
        table = replace(items, fields={field.name: items.fields[field.name]}, numbers={})
        code_NL = UniSid.fit(table, one, levels=2, codes=4, seed=0, settings=SHORT).encode(table)
        assert len(np.unique(code_NL[1:], axis=0)) > 4


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="dim 10 found with 4 heads: a multiple of the heads expected"):
        UniSidSettings(dim=10)


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights and a WordPiece tokenizer of its own, as ``save_pretrained`` writes them."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "item",
        "product",
        "cold",
        "-",
        *(f"{i}" for i in range(10)),
        *(f"##{i}" for i in range(10)),
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.BertModel(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_names_become_tokens_of_the_encoder_whatever_they_stand_beside(encoder_path: Path) -> None:
    encoder = TextEncoder(encoder_path, 3)
    value_NSY, there_NS = encoder.of(["item 12", "", "product 3 4 5 6 7 8 cold item", "item"])
    assert value_NSY.shape == (4, 3, 12) and encoder.width == 12
    assert there_NS.tolist() == [[True] * 3, [False] * 3, [True] * 3, [True, False, False]]
    alone_NSY, _ = encoder.of(["item 12"])
    torch.testing.assert_close(alone_NSY[0], value_NSY[0], atol=1e-5, rtol=1e-4)
    tokenizer, model = encoder._parts
    with torch.no_grad():
        out_PY = model(**tokenizer("item 12", return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(value_NSY[0], out_PY[1:-1], atol=1e-5, rtol=1e-4)


def test_with_an_encoder_names_decide_too_and_it_comes_back_from_its_folder(
    encoder_path: Path, spec: FeatureSpec, items: ItemTable, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"encoder_path": str(encoder_path), "epochs": 4})
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = UniSid.fit(items, spec, levels=2, codes=CODES, seed=1, settings=settings)
    assert torch.equal(torch.get_rng_state(), state)
    renamed = replace(items, name_N=np.roll(items.name_N, 7))
    assert np.abs(made.embed(renamed) - made.embed(items)).max() > 1e-3
    made.save(tmp_path)
    loaded = load_tokenizer(tmp_path, spec)
    assert np.array_equal(loaded.encode(items), made.encode(items))
    assert (tmp_path / "tokenizer.safetensors").stat().st_size < 200_000, "the encoder itself is not kept"


def test_an_encoder_that_is_not_there_or_another_one_is_named(
    encoder_path: Path, spec: FeatureSpec, items: ItemTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QUICK.model_copy(update={"encoder_path": str(tmp_path / "none"), "epochs": 1})
    with pytest.raises(TextEncoderError, match=rf"encoder_path {tmp_path / 'none'}: no config.json found, .* or fit without encoder_path"):
        UniSid.fit(items, spec, levels=2, codes=4, seed=1, settings=settings)
    with pytest.raises(TextEncoderError, match=r"an encoder of digest \w{12} found, the tokenizer was fitted with one of 123"):
        TextEncoder(encoder_path, 2, "123").of(["item"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(TextEncoderError, match="no whole encoder"):
        TextEncoder(tmp_path / "broken", 2).of(["item"])
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=rf"encoder_path {encoder_path} needs the package transformers.*dig-pipeline\[llm\]"):
        TextEncoder(encoder_path, 2).of(["item"])
