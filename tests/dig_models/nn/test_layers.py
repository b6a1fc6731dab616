"""DCNv2, experts, normalisation, attention and embeddings against slow NumPy readings of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.nn.attention import CHUNK, HistoryAttention, RowLayout, UserSide, age_bucket
from dig_models.nn.dcn import CrossNetwork
from dig_models.nn.embedding import FieldEmbedding
from dig_models.nn.moe import MixtureOfExperts
from dig_models.nn.norm import CorpusNorm, DomainNorm, commit_moments


def _np(x: torch.Tensor) -> NDArray[np.float64]:
    out: NDArray[np.float64] = x.detach().double().numpy()
    return out


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = x / (1 + np.exp(-x))
    return out


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max(-1, keepdims=True))
    out: NDArray[np.float64] = e / e.sum(-1, keepdims=True)
    return out


def test_cross_layers_follow_dcn_v2() -> None:
    torch.manual_seed(0)
    net = CrossNetwork(6, layers=2, rank=3)
    x0 = torch.randn(4, 6)
    expected = np.empty((4, 6))
    for r in range(4):
        start = _np(x0[r])
        x = start
        for down, up in zip(net.down, net.up, strict=True):
            u, v, b = _np(up.weight), _np(down.weight), _np(up.bias)  # type: ignore[arg-type]
            x = start * (u @ (v @ x) + b) + x
        expected[r] = x
    assert np.allclose(_np(net(x0)), expected, atol=1e-5)


def test_experts_are_weighted_by_a_softmax_gate() -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(5, experts=3, hidden=4, out=2)
    torch.nn.init.normal_(moe.bias)
    x = torch.randn(7, 5)
    w, a = _np(moe.first.weight).reshape(3, 4, 5), _np(moe.first.bias).reshape(3, 4)
    expected = np.zeros((7, 2))
    for r in range(7):
        gate = _softmax(_np(moe.gate.weight) @ _np(x[r]) + _np(moe.gate.bias))
        for n in range(3):
            hidden = _silu(w[n] @ _np(x[r]) + a[n])
            expected[r] += gate[n] * _silu(hidden @ _np(moe.second[n]) + _np(moe.bias[n]))
    assert np.allclose(_np(moe(x)), expected, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_each_domain_is_normalised_by_its_own_moments(grad: bool) -> None:
    rng = np.random.default_rng(0)
    domain = np.array([0, 1, 1, 0, 1, 0, 0])
    x = torch.from_numpy(rng.normal(size=(7, 3)) * [1, 5, 0.1] + domain[:, None] * 10).float().requires_grad_(grad)
    norm = DomainNorm(3, domains=2, momentum=0.25)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    out = norm(x, torch.nn.functional.one_hot(torch.from_numpy(domain), 2).float())
    commit_moments([norm])
    for s in (0, 1):
        own = _np(x[domain == s])
        unit = (own - own.mean(0)) / np.sqrt(own.var(0) + norm.eps)
        assert np.allclose(_np(out[domain == s]), unit * _np(norm.weight) + _np(norm.bias), atol=1e-3)
        assert np.allclose(_np(norm.mean_SC[s]), own.mean(0), atol=1e-5)
        assert np.allclose(_np(norm.var_SC[s]), own.var(0), atol=1e-3)


def test_one_domain_is_plain_batch_norm_with_its_gradient() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(9, 4))).float().requires_grad_()
    norm, reference = DomainNorm(4), torch.nn.BatchNorm1d(4, eps=1e-3, momentum=None)
    y = torch.from_numpy(rng.normal(size=(9, 4))).float()
    gradients = []
    for module in (lambda v: norm(v, torch.ones(9, 2)), reference):
        x.grad = None
        out = module(x)
        (out * y).sum().backward()
        assert x.grad is not None
        gradients.append((out.detach(), x.grad.clone()))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-5)


def test_running_statistics_serve_evaluation_and_follow_with_momentum() -> None:
    norm = DomainNorm(1, domains=2, momentum=0.25)
    member = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    for offset in (0.0, 8.0):
        norm(torch.tensor([[0.0], [1.0], [2.0], [3.0]]) + offset, member)
        commit_moments([norm])
    assert torch.allclose(norm.mean_SC[0], torch.tensor([1.5 + 0.25 * 8.0]))
    assert torch.equal(norm.mean_SC[1], torch.zeros(1))
    norm.eval()
    x = torch.tensor([[10.0]])
    assert torch.allclose(norm(x, member[:1]), (x - norm.mean_SC[0]) / (norm.var_SC[0] + norm.eps).sqrt())


def test_a_domain_with_one_row_is_normalised_by_running_statistics() -> None:
    norm = DomainNorm(2, domains=2)
    norm.mean_SC[1] = 4.0
    member = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    out = norm(torch.full((3, 2), 5.0), member)
    commit_moments([norm])
    assert torch.allclose(out[2], torch.full((2,), 1.0 / (1.0 + norm.eps) ** 0.5))
    assert torch.equal(norm.mean_SC[1], torch.full((2,), 4.0))


def test_a_feature_that_never_varied_in_a_domain_counts_as_zero_there() -> None:
    norm = DomainNorm(2, domains=2)
    member = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1, 1]), 2).float()
    x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 1.0], [1.0, 2.0], [0.0, 3.0]])
    norm(x, member)
    commit_moments([norm])
    norm.eval()
    out = norm(torch.ones(2, 2), torch.eye(2))
    assert float(out[0, 0]) == 0.0
    assert float(out[1, 0]) > 1.0


def test_corpus_norm_standardises_by_the_catalogue() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, (500, 4))).float()
    norm = CorpusNorm(4)
    norm.measure(x)
    assert np.allclose(_np(norm(x)), (_np(x) - _np(x).mean(0)) / _np(x).std(0), atol=1e-3)
    assert torch.allclose(norm(x[:1]), norm(x)[:1]), "an item's embedding must not depend on its batch"


def _users(attention: HistoryAttention, requests: int, length: int) -> tuple[UserSide, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    e = torch.from_numpy(rng.normal(size=(requests, length, attention.dim))).float()
    age = torch.from_numpy(rng.exponential(20.0, (requests, length))).float()
    real = torch.from_numpy(rng.random((requests, length)) < 0.6)
    real[0] = False
    keys, values, mask, pooled = attention.history(e, age, real)
    return UserSide(pooled, keys, values, mask), e, age, real


def test_attention_is_a_softmax_of_scaled_cosines_over_real_events_and_the_empty_slot() -> None:
    torch.manual_seed(0)
    attention = HistoryAttention(8, heads=2)
    for table in (attention.age_key, attention.age_value):
        torch.nn.init.normal_(table.weight)
    users, e, age, real = _users(attention, 3, 5)
    request = torch.tensor([0, 0, 1, 2, 2, 2])
    query = torch.randn(6, 2, 8)
    found = _np(attention(query, users, RowLayout.of(request, 3)))

    def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
        heads = x.reshape(2, 4)
        out: NDArray[np.float64] = heads / np.linalg.norm(heads, axis=1, keepdims=True)
        return out

    bucket = np.minimum((2 * np.log2(1 + _np(age))).astype(int), 15)
    temperature = np.exp(_np(attention.log_temperature))
    for r, b in enumerate(request.tolist()):
        events = [h for h in range(5) if real[b, h]]
        linear = [
            (_np(layer.weight), _np(layer.bias), _np(table.weight))
            for layer, table in ((attention.key, attention.age_key), (attention.value, attention.age_value))
        ]
        keys = [_np(attention.empty[0, 0, 0])] + [linear[0][0] @ _np(e[b, h]) + linear[0][1] + linear[0][2][bucket[b, h]] for h in events]
        values = [_np(attention.empty[1, 0, 0])] + [linear[1][0] @ _np(e[b, h]) + linear[1][1] + linear[1][2][bucket[b, h]] for h in events]
        for t in range(2):
            q = unit(_np(attention.query.weight) @ _np(query[r, t]))
            for head in range(2):
                score = np.array([temperature[head] * (q[head] @ unit(k)[head]) for k in keys])
                expected = _softmax(score) @ np.stack([v.reshape(2, 4)[head] for v in values])
                assert np.allclose(found[r, t].reshape(2, 4)[head], expected, atol=1e-4)


def test_a_request_with_more_rows_than_a_chunk_gets_the_same_attention() -> None:
    torch.manual_seed(0)
    attention = HistoryAttention(8, heads=2)
    users, *_ = _users(attention, 3, 5)
    request = torch.tensor([0] * 3 + [2] * (2 * CHUNK + 5))
    query = torch.randn(len(request), 1, 8)
    together = attention(query, users, RowLayout.of(request, 3))
    for r in (0, 3, 3 + CHUNK, len(request) - 1):
        alone = attention(query[r : r + 1], users, RowLayout.of(request[r : r + 1], 3))
        assert torch.allclose(together[r], alone[0], atol=1e-5)


def test_rows_out_of_request_order_are_refused() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        RowLayout.of(torch.tensor([1, 0]), 2)


def test_ages_fall_into_two_buckets_per_doubling() -> None:
    assert age_bucket(torch.tensor([0.0, 0.5, 1.0, 3.0, 90.0, 1e9])).tolist() == [0, 1, 2, 4, 13, 15]


def test_fields_are_embedded_as_declared(spec: FeatureSpec, items: ItemTable) -> None:
    torch.manual_seed(0)
    embedding = FieldEmbedding(spec.item_fields, 4)
    index, numbers = embedding.pack(items.fields, items.numbers)
    found = _np(embedding(index, numbers))
    table = _np(embedding.table.weight)
    for n in (0, 1, 5, len(items) - 1):
        parts = [table[embedding.offset[f] + items.fields[f][n]] for f in ("item_id", "brand")]
        for f in ("tags", "words"):
            rows = [table[embedding.offset[f] + b] for b in items.fields[f][n] if b > 0]
            parts.append(np.mean(rows, axis=0) if rows else np.zeros(4))
        price = float(items.numbers["price"][n])
        assert np.allclose(found[n], np.concatenate([*parts, [np.sign(price) * np.log1p(abs(price))]]), atol=1e-6)


def test_a_bucket_outside_its_declared_range_is_refused(spec: FeatureSpec, items: ItemTable) -> None:
    wrong = {**items.fields, "brand": items.fields["brand"] + 100}
    with pytest.raises(ValueError, match=r"field 'brand': bucket 1\d\d found, the spec declares 0\.\.15"):
        FieldEmbedding(spec.item_fields, 4).pack(wrong, items.numbers)


def test_a_missing_field_is_named(spec: FeatureSpec, items: ItemTable) -> None:
    with pytest.raises(ValueError, match="'tags' of the feature spec is missing"):
        FieldEmbedding(spec.item_fields, 4).pack({k: v for k, v in items.fields.items() if k != "tags"}, items.numbers)
