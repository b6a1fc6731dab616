"""The affinity of history and item: the matrix, the look-ups, and every path that reads it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from scipy.sparse import csr_matrix

from dig_models.affinity import Affinity, Neighbours, NeighboursError
from dig_models.bundle import NEIGHBOURS, SETTINGS, Bundle, BundleError, load_bundle, save_bundle
from dig_models.config import AffinityConfig, ModelConfig
from dig_models.crosses import CrossStore
from dig_models.dig import Dig
from dig_models.evaluate.lists import Contender, Search, recommend_all
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.retrieve.options import U2t
from dig_models.retrieve.prefix_means import PrefixMeans
from dig_models.retrieve.rerank import Retriever
from dig_models.train.data import RequestTable, collate, histories, pair_lookup
from dig_models.train.warm import warm_start
from dig_models.u2t import catalogue_sample, looked_up

USERS = [f"u{i}" for i in range(8)]
IDS = [f"i{i}" for i in range(40)]


def dense(neighbours: Neighbours) -> np.ndarray:
    """``W[v, h]``."""
    items = len(neighbours)
    return csr_matrix((neighbours.weight_X, neighbours.item_X, neighbours.start), shape=(items, items)).toarray()


def bought(hash_N: np.ndarray, users: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A binary matrix, and its events in another order, some of them twice."""
    rng = np.random.default_rng(seed)
    held_UN = rng.random((users, len(hash_N))) < 0.25
    user_E, item_E = np.nonzero(held_UN)
    again_E = rng.permutation(np.r_[np.arange(len(user_E)), rng.integers(0, len(user_E), 50)])
    return held_UN.astype(float), user_E[again_E] * 7 - 60, hash_N[item_E[again_E]]


def ease(held_UN: np.ndarray, ridge: float) -> np.ndarray:
    """Equation 8 of arXiv 1905.03375, transposed: rows are the items spoken for."""
    inverse_NN = np.linalg.inv(held_UN.T @ held_UN + ridge * np.eye(held_UN.shape[1]))
    weight_NN = -inverse_NN / np.diag(inverse_NN)[:, None]
    np.fill_diagonal(weight_NN, 0.0)
    return np.maximum(weight_NN, 0.0)


def test_the_fit_holds_one_dense_matrix_of_the_items_and_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dig_models.affinity.BLOCK", 32)
    hash_N = np.arange(900)
    _, user_E, item_E = bought(hash_N, users=40)
    tracemalloc.start()
    try:
        Neighbours.fit(hash_N, user_E, item_E, ridge=5.0, keep=5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 8 * 900**2 < peak < 12 * 900**2


@pytest.fixture(scope="module")
def items(spec: FeatureSpec) -> ItemTable:
    return synthetic.make_items(spec, IDS)


@pytest.fixture(scope="module")
def neighbours(items: ItemTable) -> Neighbours:
    _, user_E, item_E = bought(items.hash_N[1:])
    return Neighbours.fit(items.hash_N[1:], user_E, item_E, ridge=3.0, keep=9)


@pytest.fixture(scope="module")
def model(spec: FeatureSpec, items: ItemTable, neighbours: Neighbours) -> Dig:
    made = synthetic.make_model(spec, items, affinity={"enabled": True})
    made.neighbours = neighbours
    return made


@pytest.fixture(scope="module")
def store(spec: FeatureSpec, items: ItemTable, tmp_path_factory: pytest.TempPathFactory) -> CrossStore:
    return CrossStore.open(synthetic.write_crosses(tmp_path_factory.mktemp("lake") / "crosses", spec, items, USERS), spec, items)


@pytest.fixture(scope="module")
def requests(spec: FeatureSpec, items: ItemTable) -> RequestTable:
    return RequestTable.from_arrow(synthetic.user_state(spec, items, USERS), spec, items)


@pytest.fixture(scope="module")
def retriever(model: Dig, spec: FeatureSpec, items: ItemTable, store: CrossStore) -> Retriever:
    return Retriever.of(model, spec, items, store)


def by_definition(neighbours: Neighbours, items: ItemTable, history_H: np.ndarray) -> np.ndarray:
    """Affinity of one history with every row, slot by slot."""
    weight_NN = np.zeros((len(items), len(items)))
    weight_NN[np.ix_(items.rows(neighbours.hash_N), items.rows(neighbours.hash_N))] = dense(neighbours)
    weight_NN[0], weight_NN[:, 0] = 0.0, 0.0
    return np.sqrt(np.maximum(sum((weight_NN[:, h] for h in history_H), start=np.zeros(len(items))), 0.0))


def test_the_matrix_is_the_closed_form_of_ease_on_who_bought_what_however_often() -> None:
    hash_N = np.random.default_rng(1).permutation(np.arange(-300, 300, 20))
    held_UN, user_E, item_E = bought(np.sort(hash_N))
    found = Neighbours.fit(hash_N, user_E, item_E, ridge=5.0, keep=100)
    np.testing.assert_array_equal(found.hash_N, np.sort(hash_N))
    np.testing.assert_allclose(dense(found), ease(held_UN, 5.0), atol=1e-7)
    assert not np.diag(dense(found)).any()


def test_blocks_of_items_do_not_change_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    held_UN, user_E, item_E = bought(np.arange(50))
    monkeypatch.setattr("dig_models.affinity.BLOCK", 7)
    np.testing.assert_allclose(dense(Neighbours.fit(np.arange(50), user_E, item_E, ridge=5.0, keep=50)), ease(held_UN, 5.0), atol=1e-7)


def test_only_the_strongest_entries_of_an_item_are_kept() -> None:
    held_UN, user_E, item_E = bought(np.arange(50))
    whole, found = ease(held_UN, 5.0), dense(Neighbours.fit(np.arange(50), user_E, item_E, ridge=5.0, keep=4))
    for v in range(50):
        strongest = np.argsort(-whole[v])[:4]
        assert set(np.flatnonzero(found[v])) == {h for h in strongest if whole[v, h] > 0}
        np.testing.assert_allclose(found[v, strongest], whole[v, strongest], atol=1e-7)


def test_events_of_other_items_are_left_out_and_without_any_no_item_speaks_for_another() -> None:
    _, user_E, item_E = bought(np.arange(50))
    mine = item_E < 20
    some = Neighbours.fit(np.arange(20), user_E, item_E, ridge=5.0, keep=20)
    np.testing.assert_array_equal(dense(some), dense(Neighbours.fit(np.arange(20), user_E[mine], item_E[mine], ridge=5.0, keep=20)))
    none = Neighbours.fit(np.arange(20), user_E, item_E + 100, ridge=5.0, keep=20)
    assert not len(none.item_X)
    assert not none.over(np.arange(-1, 20)).catalogue(np.array([[1, 2, 3]])).any()
    assert not len(Neighbours.fit(np.arange(0), user_E, item_E, ridge=5.0, keep=20))


def test_affinity_is_the_root_of_what_the_slots_of_the_history_say(neighbours: Neighbours, items: ItemTable) -> None:
    history_BH = np.array([[3, 7, 0, 0], [5, 5, 5, 9], [0, 0, 0, 0]])
    found_BN = neighbours.over(items.hash_N).catalogue(history_BH)
    for found_N, history_H in zip(found_BN, history_BH, strict=True):
        np.testing.assert_allclose(found_N, by_definition(neighbours, items, history_H), atol=1e-6)
    assert found_BN[:2].any(axis=1).all()
    assert not found_BN[2].any()
    assert found_BN.dtype == np.float32


def test_an_item_that_the_matrix_does_not_know_has_affinity_0_and_speaks_for_none(spec: FeatureSpec, neighbours: Neighbours) -> None:
    other = synthetic.make_items(spec, [*IDS[5:], "new-1", "new-2"])
    fresh = other.rows(synthetic.make_items(spec, ["new-1", "new-2"]).hash_N[1:])
    found_BN = neighbours.over(other.hash_N).catalogue(np.array([[*fresh, 4], [4, 0, 0]]))
    np.testing.assert_array_equal(found_BN[0], found_BN[1])
    assert not found_BN[:, fresh].any()
    np.testing.assert_allclose(found_BN[1], by_definition(*known(neighbours, other), np.array([4])), atol=1e-6)


def known(neighbours: Neighbours, items: ItemTable) -> tuple[Neighbours, ItemTable]:
    """The part of a matrix that an item table holds."""
    held = np.flatnonzero(items.rows(neighbours.hash_N) > 0)
    part = csr_matrix(dense(neighbours)[np.ix_(held, held)].astype(np.float32))
    return Neighbours(neighbours.hash_N[held], part.indptr.astype(np.int64), part.indices, part.data), items


def test_pairs_are_entries_of_the_catalogue_in_any_order(neighbours: Neighbours, items: ItemTable, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, affinity = np.random.default_rng(0), neighbours.over(items.hash_N)
    history_BH, request_P, item_P = rng.integers(0, len(items), (9, 5)), rng.integers(0, 9, 60), rng.integers(0, len(items), 60)
    monkeypatch.setattr("dig_models.affinity.BLOCK", 4)
    want_P = affinity.catalogue(history_BH)[request_P, item_P]
    np.testing.assert_array_equal(affinity.pairs(history_BH, request_P, item_P), want_P)
    monkeypatch.setattr("dig_models.affinity.FULL", 0)
    monkeypatch.setattr(csr_matrix, "toarray", lambda self: pytest.fail("a row of the catalogue's length was made"))
    np.testing.assert_array_equal(affinity.pairs(history_BH, request_P, item_P), want_P)
    assert 0 < np.count_nonzero(want_P) < len(want_P)
    np.testing.assert_array_equal(affinity.pairs(np.zeros_like(history_BH), request_P, item_P), np.zeros(len(item_P)))


def test_a_file_of_neighbours_comes_back_as_it_was_and_a_broken_one_is_named(neighbours: Neighbours, tmp_path: Path) -> None:
    file = tmp_path / "n.safetensors"
    neighbours.save(file, key="k")
    found = Neighbours.load(file)
    for name in ("hash_N", "start", "item_X", "weight_X"):
        np.testing.assert_array_equal(getattr(found, name), getattr(neighbours, name))
    assert Neighbours.about(file) == {"key": "k"}
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(NeighboursError, match=str(file)):
        Neighbours.load(file)
    assert Neighbours.about(file) == {}
    short = Neighbours(neighbours.hash_N[1:], neighbours.start, neighbours.item_X, neighbours.weight_X)
    short.save(file)
    with pytest.raises(NeighboursError, match="do not fit together"):
        Neighbours.load(file)


def test_every_row_of_a_batch_has_the_affinity_of_its_own_history_as_the_last_cross(
    spec: FeatureSpec, items: ItemTable, neighbours: Neighbours, store: CrossStore, requests: RequestTable
) -> None:
    given = {"spec": spec, "items": items, "lookup": pair_lookup(store, spec), "keep_rate": 1.0, "random_negatives": 12}
    index_B = np.array([3, 1, 5])
    with_it, without = (
        collate(requests, index_B, **given, history_negatives=3, rng=np.random.default_rng(0), affinity=affinity)  # type: ignore[arg-type]
        for affinity in (neighbours.over(items.hash_N), None)
    )
    np.testing.assert_array_equal(with_it.cross_RC[:, :-1], without.cross_RC)
    assert with_it.cross_RC.shape[1] == spec.cross_width + 1
    history_BH = histories(requests, index_B, spec.history_length)[0]
    for b in range(3):
        mine = with_it.request_R == b
        want_N = by_definition(neighbours, items, history_BH[b])
        np.testing.assert_allclose(with_it.cross_RC[mine, -1], want_N[with_it.item_R[mine]], atol=1e-6)
    assert float(with_it.cross_RC[:, -1].max()) > 0


def test_the_teacher_and_hard_negatives_look_crosses_up_as_the_batch_has_them(
    spec: FeatureSpec, items: ItemTable, model: Dig, store: CrossStore, requests: RequestTable
) -> None:
    lookup, affinity = pair_lookup(store, spec), model.affinity
    batch = collate(
        requests, np.arange(1, 6), spec=spec, items=items, lookup=lookup, keep_rate=1.0, random_negatives=9,
        rng=np.random.default_rng(0), affinity=affinity,
    )  # fmt: skip
    torch.testing.assert_close(looked_up(batch, batch.request_R, batch.item_R, lookup, affinity), batch.cross_RC)
    # The teacher takes a row's own crosses from the batch; drawn for other rows, the same items must give the same.
    drawn_R11 = batch.item_R.flip(0)[:, None, None]
    want_RC = looked_up(batch, batch.request_R, drawn_R11.flatten(), lookup, affinity)
    torch.testing.assert_close(catalogue_sample(drawn_R11, batch, lookup, affinity).squeeze(1), want_RC)
    losses = model(batch, "joint", lookup)
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())


def test_pairs_and_the_catalogue_of_a_retriever_hold_the_same_crosses(
    retriever: Retriever, requests: RequestTable, neighbours: Neighbours, items: ItemTable, spec: FeatureSpec
) -> None:
    rows = np.arange(1, len(items))
    for request in range(len(requests)):
        whole_NC = retriever.catalogue(requests, request)
        np.testing.assert_array_equal(retriever.pairs(requests, np.full(len(rows), request), rows), whole_NC[1:])
        history_H = histories(requests, np.array([request]), spec.history_length)[0][0]
        np.testing.assert_allclose(whole_NC[:, -1], by_definition(neighbours, items, history_H), atol=1e-6)


def test_exact_crosses_of_prefixes_hold_the_mean_affinity_of_their_items(retriever: Retriever, requests: RequestTable) -> None:
    part = np.array([4, 2, 0])
    u2t = retriever._prefix_crosses(requests, part, "exact")
    assert u2t is not None
    for g, request in enumerate(part):
        want = PrefixMeans(retriever.trie)(retriever.catalogue(requests, int(request)))
        for level, want_PC in enumerate(want):
            node_R = np.arange(0, len(want_PC), 2)
            np.testing.assert_allclose(u2t(level, np.full(len(node_R), g), node_R), want_PC[node_R], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("u2t", "rerank", "times"), [("exact", 30, 1), ("exact", 0, 1), ("mlp", 30, 0), ("none", 30, 0)])
def test_a_search_asks_the_affinity_with_the_whole_catalogue_once_and_only_for_prefixes(
    retriever: Retriever, requests: RequestTable, monkeypatch: pytest.MonkeyPatch, u2t: U2t, rerank: int, times: int
) -> None:
    index_B, asked = np.array([4, 2, 0]), []
    want = retriever.retrieve(requests, index_B, k=5, beam=8, rerank=rerank, u2t=u2t)
    whole = Affinity.catalogue
    monkeypatch.setattr(Affinity, "catalogue", lambda self, history_BH: asked.append(len(history_BH)) or whole(self, history_BH))
    found = retriever.retrieve(requests, index_B, k=5, beam=8, rerank=rerank, u2t=u2t)
    assert asked == [3] * times
    np.testing.assert_array_equal(found.item_GJ, want.item_GJ)
    if rerank:
        own_P = np.concatenate([retriever.rank(requests, int(b), found.item_GJ[g]) for g, b in enumerate(index_B)])
        np.testing.assert_allclose(found.score_GJ.ravel(), own_P, atol=1e-5)
    contender = Contender(name="on", retriever=retriever, search=Search(beam=8, rerank=rerank, u2t=u2t, path_score="last"))
    asked.clear()
    recommend_all([contender], requests, index_B, k=5)
    assert asked == [3], "evaluation ranks with it in both variants"


def test_a_list_follows_the_affinity_that_a_model_weighs(
    spec: FeatureSpec, items: ItemTable, neighbours: Neighbours, store: CrossStore, requests: RequestTable
) -> None:
    """With a weight on it that drowns all else, ranking puts the item of highest affinity first, retrieval one of the best prefix."""
    model = synthetic.make_model(spec, items, affinity={"enabled": True})
    model.neighbours = neighbours
    with torch.no_grad():
        model.mixer.wide.weight[0, -1] = 3000.0
        for bias in (model.rank_bias, model.recall_bias):
            bias -= 1000.0  # so that no probability is 1 within rounding
    retriever = Retriever.of(model, spec, items, store)
    index_B = np.arange(1, 8)
    affinity_BN = [retriever.catalogue(requests, b)[:, -1] for b in index_B]
    np.testing.assert_array_equal(retriever.exhaustive(requests, index_B).argmax(1), np.argmax(affinity_BN, axis=1))
    found = retriever.retrieve(requests, index_B, k=1, beam=len(items), rerank=0)
    for item, affinity_N in zip(found.item_GJ[:, 0], affinity_BN, strict=True):
        mean_P = PrefixMeans(retriever.trie)(affinity_N[:, None])[-1][:, 0]
        leaf = int(retriever.trie.node_of(retriever.trie.levels - 1, retriever.trie.position_N[[item]])[0])
        assert mean_P[leaf] == pytest.approx(mean_P.max(), abs=1e-6)


def test_a_bundle_keeps_the_matrix_under_its_checksum(spec: FeatureSpec, items: ItemTable, model: Dig, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", model, items, {})
    assert NEIGHBOURS in json.loads((tmp_path / "b" / SETTINGS).read_text())["sha256"]
    found = load_bundle(tmp_path / "b", spec)
    assert found.model.neighbours is not None and model.neighbours is not None
    np.testing.assert_array_equal(dense(found.model.neighbours), dense(model.neighbours))
    whole = (tmp_path / "b" / NEIGHBOURS).read_bytes()
    (tmp_path / "b" / NEIGHBOURS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{NEIGHBOURS}: damaged"):
        load_bundle(tmp_path / "b")
    (tmp_path / "b" / NEIGHBOURS).unlink()
    with pytest.raises(BundleError, match=f"{NEIGHBOURS}: missing"):
        load_bundle(tmp_path / "b")


def test_a_model_that_reads_affinity_says_so_where_it_has_no_matrix(spec: FeatureSpec, items: ItemTable, tmp_path: Path) -> None:
    model = synthetic.make_model(spec, items, affinity={"enabled": True})
    with pytest.raises(RuntimeError, match=r"set model\.neighbours"):
        _ = model.affinity
    with pytest.raises(ValueError, match=r"set model\.neighbours"):
        save_bundle(tmp_path / "b", model, items, {})


def test_with_the_setting_off_weights_and_bundle_are_those_of_a_model_that_knows_no_affinity(
    spec: FeatureSpec, items: ItemTable, neighbours: Neighbours, tmp_path: Path
) -> None:
    plain, off = synthetic.make_model(spec, items), synthetic.make_model(spec, items, affinity={"enabled": False, "ridge": 7.0})
    off.neighbours = neighbours
    assert off.affinity is None
    assert {n: v.shape for n, v in off.state_dict().items()} == {n: v.shape for n, v in plain.state_dict().items()}
    files = {}
    for name, one in (("plain", plain), ("off", off)):
        folder = save_bundle(tmp_path / name, one, items, {})
        files[name] = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files["off"] == files["plain"]
    assert "affinity" not in json.loads(files["off"][SETTINGS])["model"]
    assert plain.norm_u2i.mean_SC.shape[1] == spec.cross_width


def test_settings_are_stored_with_the_affinity_where_it_is_on() -> None:
    on = ModelConfig(affinity=AffinityConfig(enabled=True))
    assert on.stored() == on.model_dump(mode="json")
    assert ModelConfig.model_validate(on.stored()) == on
    assert ModelConfig().stored() == {k: v for k, v in ModelConfig().model_dump(mode="json").items() if k != "affinity"}


def test_a_model_in_another_catalogue_reads_affinity_with_that_one(spec: FeatureSpec, model: Dig, items: ItemTable, tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", model, items, {})
    own: Bundle = load_bundle(tmp_path / "b")
    other = synthetic.make_items(spec, IDS[10:])
    first = own.model.affinity
    own.model.set_items(other)
    second = own.model.affinity
    assert first is not None and second is not None
    assert (first.to_NN.shape[0], second.to_NN.shape[0]) == (len(items), len(other))
    own.model.set_items(items)
    assert own.model.affinity is not None
    np.testing.assert_array_equal(own.model.affinity.to_NN.toarray(), first.to_NN.toarray())


def test_a_model_that_reads_affinity_starts_from_one_that_does_not_and_keeps_its_codes(
    spec: FeatureSpec, items: ItemTable, neighbours: Neighbours, requests: RequestTable
) -> None:
    ancestor = synthetic.make_bundle(spec, items)
    young = synthetic.make_model(spec, items, seed=11, affinity={"enabled": True})
    young.neighbours = neighbours
    assert warm_start(young, ancestor, items)
    torch.testing.assert_close(young.encode_catalogue(), ancestor.model.encode_catalogue())
    np.testing.assert_array_equal(young.code_NL, ancestor.codes_NL)
    assert young.norm_u2i.mean_SC.shape[1] == spec.cross_width + 1


def answers(model: Dig, spec: FeatureSpec, items: ItemTable, store: CrossStore, requests: RequestTable) -> dict[str, torch.Tensor]:
    """Log-odds of every item, and of its whole SID with crosses of both kinds, for every request; and what MLP_u2t says."""
    retriever, index_B = Retriever.of(model, spec, items, store), np.arange(len(requests))
    with torch.no_grad():
        users, rows = retriever.users(requests, index_B), torch.arange(1, len(items))
        request_R, item_R = torch.arange(len(requests)).repeat_interleave(len(rows)), rows.repeat(len(requests))
        cross_RC = torch.from_numpy(np.concatenate([retriever.catalogue(requests, b)[1:] for b in index_B]))
        prefix_RD, domain_R = model.prefix_embeddings(model.code_NL[item_R])[:, -1], (item_R % 2).long()
        u2t_RC = model.predict_u2t(users, request_R, prefix_RD)
        return {
            "rank": model.rank_logit(users, request_R, model.encode_items(item_R), cross_RC, domain_R),
            "recall": model.recall_logit(users, request_R, prefix_RD, cross_RC, domain_R),
            "mlp": model.recall_logit(users, request_R, prefix_RD, u2t_RC, domain_R),
            "u2t": u2t_RC[:, : spec.cross_width],
        }


def test_a_model_that_begins_to_read_affinity_scores_as_its_ancestor_and_learns_to_use_it(
    spec: FeatureSpec, items: ItemTable, neighbours: Neighbours, store: CrossStore, requests: RequestTable
) -> None:
    ancestor = synthetic.make_bundle(spec, items, cross_layers=2)
    ancestor.model.norm_u2i.mean_SC.fill_(0.3)
    ancestor.model.norm_u2t.var_SC.fill_(2.0)
    config = ancestor.model.config.model_copy(update={"affinity": AffinityConfig(enabled=True)})
    young = Dig(config, spec, seed=11)
    head = young.u2t_head.out.weight[-1].clone()
    young.neighbours = neighbours
    assert warm_start(young, ancestor, items)
    assert torch.equal(young.u2t_head.out.weight[-1], head)
    for norm in (young.norm_u2i, young.norm_u2t):
        assert (norm.weight[-1].item(), norm.bias[-1].item()) == (1.0, 0.0)
        assert norm.mean_SC[:, -1].tolist() == [0.0, 0.0] and norm.var_SC[:, -1].tolist() == [1.0, 1.0]
    want, found = (answers(one, spec, items, store, requests) for one in (ancestor.model, young))
    for name, want_X in want.items():
        torch.testing.assert_close(found[name], want_X, rtol=0, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}")
    lookup = pair_lookup(store, spec)
    batch = collate(
        requests, np.arange(1, 8), spec=spec, items=items, lookup=lookup, keep_rate=1.0, random_negatives=9,
        rng=np.random.default_rng(0), affinity=young.affinity,
    )  # fmt: skip
    young(batch, "joint", lookup)["total"].backward()
    for layer in (young.mixer.wide, young.mixer.experts.first, young.mixer.experts.gate, young.mixer.cross.down[0]):
        assert layer.weight.grad is not None
        assert not layer.weight[:, -1].any() and layer.weight.grad[:, -1].any()


def test_a_model_that_reads_affinity_no_more_scores_as_its_ancestor_where_that_said_nothing(
    spec: FeatureSpec, items: ItemTable, neighbours: Neighbours, store: CrossStore, requests: RequestTable
) -> None:
    ancestor = synthetic.make_bundle(spec, items, affinity={"enabled": True})
    ancestor.model.neighbours = neighbours
    with torch.no_grad():
        for norm in (ancestor.model.norm_u2i, ancestor.model.norm_u2t):
            norm.weight[-1], norm.bias[-1] = 0.0, 0.0  # what it reads of the affinity is 0, whatever the Mixer makes of it
    young = Dig(ancestor.model.config.model_copy(update={"affinity": AffinityConfig()}), spec, seed=11)
    assert warm_start(young, ancestor, items)
    want, found = (answers(one, spec, items, store, requests) for one in (ancestor.model, young))
    for name, want_X in want.items():
        torch.testing.assert_close(found[name], want_X, rtol=0, atol=1e-5, msg=lambda told, name=name: f"{name}: {told}")


def test_a_model_of_another_width_takes_no_column_of_the_mixer_over(spec: FeatureSpec, items: ItemTable, neighbours: Neighbours) -> None:
    ancestor = synthetic.make_bundle(spec, items)
    young = Dig(ancestor.model.config.model_copy(update={"affinity": AffinityConfig(enabled=True), "dim": 16}), spec, seed=11)
    before = {name: value.clone() for name, value in young.mixer.state_dict().items()}
    assert not warm_start(young, ancestor, items)
    assert [name for name, value in young.mixer.state_dict().items() if value.shape[-1] > 16 and not torch.equal(value, before[name])] == []
    assert torch.equal(young.norm_u2i.weight[:-1], ancestor.model.norm_u2i.weight), "crosses are the same, whatever the width"


def test_models_with_and_without_affinity_are_judged_side_by_side_as_each_is_alone(
    spec: FeatureSpec, items: ItemTable, model: Dig, store: CrossStore, requests: RequestTable
) -> None:
    search = Search(beam=20, rerank=30, u2t="exact", path_score="last")
    contenders = [
        Contender(name=name, retriever=Retriever.of(one, spec, items, store), search=search)
        for name, one in (("on", model), ("off", synthetic.make_model(spec, items)))
    ]
    index_Q = np.arange(1, 8)
    together, _ = recommend_all(contenders, requests, index_Q, k=10)
    for contender in contenders:
        alone, _ = recommend_all([contender], requests, index_Q, k=10)
        for variant, lists in alone.items():
            for method, list_QK in lists.items():
                np.testing.assert_array_equal(together[variant][method], list_QK)
    found = contenders[0].retriever.retrieve(requests, index_Q, k=10, beam=20, rerank=30)
    np.testing.assert_array_equal(together["all"]["on"], np.where(found.item_GJ == 0, -1, found.item_GJ))
