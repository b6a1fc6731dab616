"""ReSID: field embeddings that predict the next item, and SIDs made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from torch.nn import functional as F

from dig_models.features import FeatureSpec, FeatureSpecMismatch, hash_id
from dig_models.items import ItemTable
from dig_models.quantize.gaoq import prefix_nodes
from dig_models.tokenizers.base import TokenizerError
from dig_models.tokenizers.famae import Famae, FamaeFigures, FamaeSettings, Windows, fit_famae
from dig_models.tokenizers.fields import FieldEmbeddings, FieldVocabulary
from dig_models.tokenizers.resid import ReSid, ReSidSettings
from dig_models.tokenizers.rkmeans import ResidualKMeans
from dig_models.tokenizers.sequences import Sequences

QUICK = FamaeSettings(dim=16, layers=1, heads=2, hidden=32, batch=64, length=8, lr=1e-2, epochs=8, dropout=0.0)
LEVELS, CODES = 3, 8


def planted(items: ItemTable, users: int = 150, seed: int = 0) -> Sequences:
    """Each user stays with one of four groups of brands; brand, but neither tag nor word, says what comes next."""
    rng = np.random.default_rng(seed)
    group_N = items.fields["brand"] % 4
    each = [rng.choice(1 + np.flatnonzero(group_N[1:] == user % 4), 7) for user in range(users)]
    return Sequences.of(np.repeat(np.arange(users), 7), np.concatenate(each))


@pytest.fixture(scope="module")
def sequences(items: ItemTable) -> Sequences:
    return planted(items)


@pytest.fixture(scope="module")
def fitted(spec: FeatureSpec, items: ItemTable, sequences: Sequences) -> ReSid:
    return ReSid.fit(items, spec, levels=LEVELS, codes=CODES, seed=1, sequences=sequences, settings=QUICK)


@pytest.fixture(scope="module")
def figures(fitted: ReSid) -> FamaeFigures:
    assert fitted.figures is not None
    return fitted.figures


def without_item_id(spec: FeatureSpec) -> FeatureSpec:
    return FeatureSpec.model_validate(
        spec.model_dump() | {"item_fields": [f.model_dump() for f in spec.item_fields if f.name != "item_id"]}
    )


# FAMAE


def test_a_planted_group_is_learned_recall_is_far_above_chance(figures: FamaeFigures) -> None:
    """All 30 items of a group are as likely, so a third of the targets is what can be known."""
    assert figures.held_out == 30 and figures.chance == pytest.approx(10 / 120)
    assert figures.target_recall > 0.25 and figures.losses[-1] < 0.95 * figures.losses[0]


def test_the_id_follows_from_the_items_other_fields(figures: FamaeFigures) -> None:
    assert figures.id_recall > 0.25


def test_an_untrained_network_knows_as_much_as_chance(spec: FeatureSpec, items: ItemTable, sequences: Sequences) -> None:
    settings = QUICK.model_copy(update={"lr": 1e-12, "epochs": 1, "held_out": 10_000})
    found = np.mean([fit_famae(items, spec, sequences, seed=seed, settings=settings)[1].target_recall for seed in range(5)])
    assert found == pytest.approx(10 / 120, abs=0.1)


def test_values_that_users_go_between_lie_together(fitted: ReSid, items: ItemTable) -> None:
    vocabulary = fitted.content.vocabulary
    rows = np.cumsum([size + 1 for size in vocabulary.sizes])
    brand_VD = np.split(fitted.content.table_TD, rows[:-1])[1][1:]
    unit_VD = brand_VD / np.linalg.norm(brand_VD, axis=1, keepdims=True)
    cosine_VV, group_V = unit_VD @ unit_VD.T, vocabulary.known[0] % 4
    same = group_V[:, None] == group_V
    off = ~np.eye(len(group_V), dtype=bool)
    assert cosine_VV[same & off].mean() > cosine_VV[~same].mean() + 0.2


def famae(spec: FeatureSpec, items: ItemTable, **changed: object) -> Famae:
    vocabulary = FieldVocabulary.of(items, spec)
    torch.manual_seed(0)
    return Famae(vocabulary.sizes, [torch.from_numpy(n) for n in vocabulary.numbers(items)], QUICK.model_copy(update=changed))


def test_a_masked_field_of_the_target_is_not_seen_and_its_history_is(spec: FeatureSpec, items: ItemTable) -> None:
    network = famae(spec, items).eval()
    row_BT = torch.tensor([[0, 3, 4, 5]])
    all_masked, id_masked = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[True, False, False, False]])
    state = network.states(row_BT, all_masked)
    assert torch.equal(network.states(torch.tensor([[0, 3, 4, 9]]), all_masked), state)
    assert not torch.allclose(network.states(torch.tensor([[0, 3, 4, 9]]), id_masked), network.states(row_BT, id_masked))
    assert not torch.allclose(network.states(torch.tensor([[0, 7, 4, 5]]), all_masked), state)
    assert not torch.allclose(network.states(torch.tensor([[0, 4, 3, 5]]), all_masked), state), "positions count"
    torch.testing.assert_close(network.states(torch.tensor([[0, 0, 0, 3, 4, 5]]), all_masked), state)


def test_the_loss_of_a_field_is_the_cosine_softmax_over_its_vocabulary(spec: FeatureSpec, items: ItemTable) -> None:
    """By the definition; a field of several values as the mean over them; drawn negatives that are all values agree with the whole."""
    network = famae(spec, items)
    h_BD = F.normalize(torch.randn(5, 16), dim=1) * 4.0
    for f in (1, 2):
        number_BW = network._number_FNW[f][1:6]
        unit_VD = F.normalize(network.tables[f][1:], dim=1)
        log_BV = (h_BD @ unit_VD.t()).log_softmax(1)
        wanted = [-log_BV[b, number_BW[b][number_BW[b] > 0] - 1].mean() for b in range(5)]
        torch.testing.assert_close(network._field_loss(f, h_BD, number_BW), torch.stack(wanted))
    sampled = famae(spec, items, whole=0, negatives=4000)
    torch.manual_seed(0)
    number_B1 = sampled._number_FNW[1][1:6]
    drawn_V = torch.randint(1, sampled.sizes[1] + 1, (4000,))
    torch.manual_seed(0)
    logit_BV = h_BD @ F.normalize(sampled.tables[1], dim=1).t()
    for b, found in enumerate(sampled._field_loss(1, h_BD, number_B1)):
        others = logit_BV[b, drawn_V[drawn_V != number_B1[b]]]
        torch.testing.assert_close(found, torch.cat([logit_BV[b, number_B1[b]], others]).logsumexp(0) - logit_BV[b, number_B1[b, 0]])


def test_what_is_held_out_is_no_target_and_windows_end_with_the_target() -> None:
    sequences = Sequences(start=np.array([0, 4, 5, 5, 9, 12]), item_P=np.arange(1, 13))
    windows = Windows(sequences, QUICK.model_copy(update={"length": 3, "batch": 4, "targets": 9}), np.random.default_rng(0))
    assert len(windows.held_S) == 1
    last = {4: [2, 3, 4], 9: [7, 8, 9], 12: [10, 11, 12]}
    held = windows.rows_of(windows.held_S)[0].tolist()
    assert held == last.pop(held[-1])
    seen = [[item for item in row if item] for batch in windows.epoch() for row in batch.tolist()]
    wanted = [[1, 2], [1, 2, 3], [6, 7], [6, 7, 8], [10, 11], *last.values()]
    assert sorted(seen) == sorted(wanted)
    few = Windows(sequences, QUICK.model_copy(update={"targets": 1, "held_out": 0}), np.random.default_rng(0))
    assert sum(len(batch) for batch in few.epoch()) == 3 and not len(few.held_S)


# Fields


def test_the_item_itself_is_a_field_where_the_spec_has_none_and_where_ids_share_a_bucket(
    spec: FeatureSpec, items: ItemTable, sequences: Sequences
) -> None:
    bare = without_item_id(spec)
    vocabulary = FieldVocabulary.of(items, bare)
    assert vocabulary.names == ("item_id", "brand", "tags", "words") and vocabulary.sizes[0] == 120
    assert np.array_equal(vocabulary.numbers(items)[0][:, 0], np.arange(121))
    same_bucket = replace(items, fields={**items.fields, "item_id": np.minimum(items.fields["item_id"], 1)})
    short = QUICK.model_copy(update={"epochs": 1})
    one = ReSid.fit(items, bare, levels=LEVELS, codes=CODES, seed=1, sequences=sequences, settings=short)
    other = ReSid.fit(same_bucket, spec, levels=LEVELS, codes=CODES, seed=1, sequences=sequences, settings=short)
    assert np.array_equal(one.encode(items), other.encode(same_bucket))


def test_an_item_is_its_fields_embeddings_and_what_is_not_known_the_mask_vector(spec: FeatureSpec, items: ItemTable) -> None:
    vocabulary, rng = FieldVocabulary.of(items, spec), np.random.default_rng(0)
    tables = [rng.normal(size=(size + 1, 3)).astype(np.float32) for size in vocabulary.sizes]
    embeddings = FieldEmbeddings.of_tables(vocabulary, tables)
    new_brand = next(b for b in range(1, 16) if b not in vocabulary.known[0])
    tags = np.zeros((3, 3), dtype=np.int64)
    tags[1, :2] = vocabulary.known[1][[4, 6]]
    table = ItemTable(
        hash_N=np.array([items.hash_N[0], hash_id("cold"), items.hash_N[7]])[[0, 1, 2]],
        id_N=np.array(["", "cold", "known"], dtype=object),
        name_N=np.array(["", "", ""], dtype=object),
        fields={"item_id": np.zeros(3), "brand": np.array([0, new_brand, vocabulary.known[0][2]]), "tags": tags, "words": np.zeros((3, 1))},
        numbers={"price": np.zeros(3, dtype=np.float32)},
        key_KN=np.zeros((2, 3), dtype=np.int64),
    )
    out_ND = embeddings.of(table)
    assert out_ND.shape == (3, 12) and out_ND.dtype == np.float32 and not out_ND[0].any()
    own, brand, tag, word = tables
    np.testing.assert_allclose(out_ND[1], np.r_[own[0], brand[0], (tag[5] + tag[7]) / 2, word[0]], rtol=1e-6)
    np.testing.assert_allclose(out_ND[2], np.r_[own[7], brand[3], tag[0], word[0]], rtol=1e-6)
    wrong = replace(items, fields={**items.fields, "brand": items.fields["brand"] + 100})
    with pytest.raises(ValueError, match=r"field 'brand': bucket \d+ found, the spec declares 0..15"):
        embeddings.of(wrong)


# SIDs


def test_no_two_fitted_items_share_a_sid_and_nodes_differ_by_at_most_one_item(fitted: ReSid, items: ItemTable) -> None:
    code_ML = fitted.encode(items)[1:]
    assert len(np.unique(code_ML, axis=0)) == len(items) - 1
    for level in range(1, LEVELS):
        size_P = np.bincount(prefix_nodes(code_ML[:, :level], fitted.gaoq.branching))
        assert size_P.max() - size_P.min() <= 1


@pytest.mark.parametrize(("levels", "branching"), [(2, (10, 12)), (3, (4, 5, 7)), (4, (2, 3, 4, 6))])
def test_branching_and_length_can_be_chosen(
    levels: int, branching: tuple[int, ...], spec: FeatureSpec, items: ItemTable, sequences: Sequences
) -> None:
    settings = ReSidSettings(**QUICK.model_copy(update={"epochs": 1}).model_dump(), branching=branching)
    made = ReSid.fit(items, spec, levels=levels, codes=12, seed=1, sequences=sequences, settings=settings)
    code_ML = made.encode(items)[1:]
    assert len(np.unique(code_ML, axis=0)) == 120 and (code_ML.max(0) < branching).all()
    assert tuple(code_ML.max(0)[:-1] + 1) == branching[:-1]


def test_fitted_items_keep_their_codes_in_any_table(fitted: ReSid, spec: FeatureSpec, items: ItemTable) -> None:
    some = np.array([0, 5, 6, 50, 120])
    part = ItemTable(
        hash_N=items.hash_N[some],
        id_N=items.id_N[some],
        name_N=items.name_N[some],
        fields={name: value[some] for name, value in items.fields.items()},
        numbers={name: value[some] for name, value in items.numbers.items()},
        key_KN=items.key_KN[:, some],
    )
    assert np.array_equal(fitted.encode(part), fitted.encode(items)[some])
    moved = replace(items, fields={**items.fields, "brand": np.roll(items.fields["brand"], 3)})
    assert np.array_equal(fitted.encode(moved), fitted.encode(items)), "a SID goes by the item, not by its row or fields"


def test_a_cold_item_with_the_fields_of_a_fitted_one_lies_where_its_fields_do(fitted: ReSid, spec: FeatureSpec, items: ItemTable) -> None:
    """Cold twins of all items: codes by the id's mask vector, most of them in the twin's branch or the one nearest to it."""
    twins = replace(items, hash_N=np.r_[items.hash_N[0], items.hash_N[1:] + 1])
    vector_ND = fitted.embed(twins)
    np.testing.assert_array_equal(vector_ND[1:, :16], np.repeat(fitted.content.table_TD[:1], 120, axis=0))
    np.testing.assert_array_equal(vector_ND[:, 16:], fitted.embed(items)[:, 16:])
    code_NL = fitted.encode(twins)
    np.testing.assert_array_equal(code_NL[1:], fitted.gaoq.nearest(vector_ND[1:]))
    assert (code_NL[0] == -1).all() and (code_NL[1:, 0] == fitted.encode(items)[1:, 0]).mean() > 0.5


def test_a_cold_item_does_not_depend_on_what_else_is_in_the_table(fitted: ReSid, spec: FeatureSpec) -> None:
    many = synthetic.make_items(spec, [f"cold-{i}" for i in range(20)])
    code_NL = fitted.encode(many)
    assert code_NL[1:].min() >= 0 and code_NL[1:].max() < CODES
    alone = synthetic.make_items(spec, ["cold-11"])
    assert np.array_equal(fitted.encode(alone)[1], code_NL[many.rows(alone.hash_N[1:])[0]])


def test_seed_and_sequences_decide_the_codes_and_the_global_generator_stays(
    spec: FeatureSpec, items: ItemTable, sequences: Sequences
) -> None:
    short = QUICK.model_copy(update={"epochs": 1, "dropout": 0.1})
    torch.manual_seed(12345)
    state = torch.get_rng_state()

    def codes(seed: int, known: Sequences) -> np.ndarray:
        return ReSid.fit(items, spec, levels=LEVELS, codes=CODES, seed=seed, sequences=known, settings=short).encode(items)

    first = codes(1, sequences)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(54321)
    assert np.array_equal(codes(1, sequences), first)
    assert not np.array_equal(codes(2, sequences), first)
    assert not np.array_equal(codes(1, planted(items, seed=5)), first)


def test_it_comes_back_from_its_folder(fitted: ReSid, spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = ReSid.load(tmp_path, spec)
    for table in (items, synthetic.make_items(spec, ["cold-1", "cold-2"])):
        assert np.array_equal(loaded.encode(table), fitted.encode(table))
        np.testing.assert_array_equal(loaded.embed(table), fitted.embed(table))
    np.testing.assert_array_equal(loaded.code_LKD, fitted.code_LKD)
    assert loaded.figures is None and loaded.gaoq.branching == fitted.gaoq.branching
    with pytest.raises(FeatureSpecMismatch):
        ReSid.load(tmp_path, without_item_id(spec))
    plain = ResidualKMeans.fit(items, spec, levels=LEVELS, codes=CODES, seed=0)
    with pytest.raises(ValueError, match="content vectors of kind 'fields', 'field_embeddings' expected"):
        ReSid.from_state(plain.content, LEVELS, CODES, fitted.state())
    plain.save(tmp_path)
    with pytest.raises(TokenizerError, match="kind 'rkmeans' found, 'resid' expected"):
        ReSid.load(tmp_path, spec)


def test_code_vectors_are_the_mean_of_what_the_codes_before_leave(fitted: ReSid, items: ItemTable) -> None:
    residual, code_ML = fitted.embed(items)[1:], fitted.encode(items)[1:]
    for level in range(LEVELS):
        for code in np.unique(code_ML[:, level]):
            np.testing.assert_allclose(fitted.code_LKD[level, code], residual[code_ML[:, level] == code].mean(0), atol=1e-4)
        residual = residual - fitted.code_LKD[level][code_ML[:, level]]


def test_what_cannot_be_fitted_is_refused(spec: FeatureSpec, items: ItemTable, sequences: Sequences) -> None:
    def fit(levels: int = 3, codes: int = 8, known: Sequences | None = sequences, **changed: object) -> None:
        settings = ReSidSettings.model_validate(QUICK.model_dump() | {"epochs": 1} | changed)
        ReSid.fit(items, spec, levels=levels, codes=codes, seed=0, sequences=known, settings=settings)

    with pytest.raises(ValueError, match="ReSID learns from what users did: sequences expected, none given"):
        fit(known=None)
    with pytest.raises(ValueError, match=r"120 items do not fit into 3 levels of 4 codes, .* 5x5x5 would do, so set codes to 5 or more"):
        fit(codes=4)
    with pytest.raises(ValueError, match=r"resid.branching 5x5x9 needs 9 codes on a level, 8 are allowed"):
        fit(branching=(5, 5, 9))
    with pytest.raises(ValueError, match=r"resid.branching 10x12 has 2 level\(s\), the tokenizer 3"):
        fit(branching=(10, 12))
    with pytest.raises(ValueError, match=r"branching 5x5x4: the largest of 25 buckets has 5 of 120 items"):
        fit(branching=(5, 5, 4))
    with pytest.raises(ValueError, match=r"level 2: 12 orthonormal anchors in 8 dimensions"):
        fit(levels=2, codes=12, branching=(10, 12), dim=2, heads=1)
    with pytest.raises(ValueError, match=r"sequences name item row 121, the catalogue has rows 1..120"):
        fit(known=Sequences.of(np.zeros(2, dtype=np.int64), np.array([3, 121])))
    with pytest.raises(ValueError, match=r"sequences of 2 user\(s\): none has two items"):
        fit(known=Sequences.of(np.arange(2), np.array([3, 4])))
    with pytest.raises(ValueError, match=r"famae.dim 15 must be a multiple of famae.heads 2"):
        fit(dim=15)
