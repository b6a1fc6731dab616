"""A small synthetic data set: a spec with every kind of field, a catalogue, and a batch with both domains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dig_models.batch import Batch
from dig_models.config import ModelConfig
from dig_models.dig import Dig
from dig_models.features import SOURCE_EXPOSED, SOURCE_ORGANIC, SOURCE_RANDOM, FeatureSpec, FieldSpec, OfferSpec, hash_id
from dig_models.items import ItemTable

ITEMS = 120
# Tensors here are tiny: a second thread only waits.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def spec() -> FeatureSpec:
    """Categorical, multi-valued, text and numeric item fields; two u2i keys, two windows, one offer column."""
    return FeatureSpec(
        item_fields=(
            FieldSpec(name="item_id", buckets=256),
            FieldSpec(name="brand", buckets=16),
            FieldSpec(name="tags", kind="multi", buckets=32),
            FieldSpec(name="words", kind="text", buckets=64),
            FieldSpec(name="price", kind="numeric"),
        ),
        user_fields=(FieldSpec(name="user_id", buckets=64), FieldSpec(name="age", buckets=8)),
        context_fields=(FieldSpec(name="weekday", buckets=8),),
        u2i_keys=("item", "brand"),
        windows=(7, 30),
        offers=(OfferSpec(name="display", values=("1", "2")),),
        history_length=6,
    )


@pytest.fixture(scope="session")
def items(spec: FeatureSpec) -> ItemTable:
    """``ITEMS`` items (and the unknown one) of twelve brands."""
    rng = np.random.default_rng(0)
    ids = [f"item-{i}" for i in range(ITEMS)]
    order = np.argsort([hash_id(i) for i in ids])
    ids = [ids[i] for i in order]
    brand = np.r_[0, rng.integers(1, 13, ITEMS)]
    item_id = np.array([0, *(hash_id(i) % 255 + 1 for i in ids)], dtype=np.int64)
    tags = rng.integers(0, 32, (ITEMS + 1, 3))
    words = np.where(rng.random((ITEMS + 1, 4)) < 0.6, rng.integers(1, 64, (ITEMS + 1, 4)), 0)
    tags[0], words[0] = 0, 0
    return ItemTable(
        hash_N=np.array([np.iinfo(np.int64).min, *(hash_id(i) for i in ids)], dtype=np.int64),
        id_N=np.array(["", *ids], dtype=object),
        name_N=np.array(["(unknown)", *(f"Item {i}" for i in ids)], dtype=object),
        fields={"item_id": item_id, "brand": brand, "tags": tags, "words": words},
        numbers={"price": np.r_[0.0, rng.lognormal(1.0, 1.0, ITEMS)].astype(np.float32)},
        key_KN=np.stack([np.r_[0, np.arange(1, ITEMS + 1)], brand]).astype(np.int64),
    )


def make_batch(spec: FeatureSpec, items: ItemTable, *, requests: int = 5, rows: int = 14, seed: int = 0) -> Batch:
    """Requests with about ``rows`` rows each; clicks follow a cross feature, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(max(rows - 4, 2), rows + 5, requests)
    request_R = np.repeat(np.arange(requests), counts)
    total = len(request_R)
    source = rng.choice([SOURCE_EXPOSED, SOURCE_ORGANIC, SOURCE_RANDOM], total, p=[0.5, 0.2, 0.3])
    cross = rng.gamma(0.5, 1.0, (total, spec.cross_width)).astype(np.float32)
    click = rng.random(total) < 1 / (1 + np.exp(2.0 - 2.0 * cross[:, 0]))
    label = np.where(source == SOURCE_ORGANIC, 1, np.where(source == SOURCE_RANDOM, 0, click))
    length = spec.history_length
    history = rng.integers(1, len(items), (requests, length))
    kept = np.arange(length)[None, :] < rng.integers(0, length + 1, (requests, 1))
    kept[0] = False
    age = np.sort(rng.exponential(10.0, (requests, length)), axis=1)
    return Batch(
        user_BF=torch.from_numpy(rng.integers(0, 8, (requests, 3))),
        history_BH=torch.from_numpy(np.where(kept, history, 0)),
        history_age_BH=torch.from_numpy(np.where(kept, age, 0.0).astype(np.float32)),
        user_hash_B=torch.from_numpy(rng.integers(-(2**62), 2**62, requests)),
        ts_B=torch.from_numpy(rng.integers(10**9, 2 * 10**9, requests)),
        offer_B=torch.from_numpy(rng.integers(-(2**62), 2**62, requests)),
        request_R=torch.from_numpy(request_R),
        item_R=torch.from_numpy(rng.integers(1, len(items), total)),
        cross_RC=torch.from_numpy(cross),
        label_R=torch.from_numpy(label.astype(np.float32)),
        source_R=torch.from_numpy(source),
        offset_R=torch.from_numpy(np.where(source == SOURCE_EXPOSED, 1.0, 2.0).astype(np.float32)),
    )


@pytest.fixture(scope="session")
def batch(spec: FeatureSpec, items: ItemTable) -> Batch:
    """Five requests; the first has no history."""
    return make_batch(spec, items)


def pair_crosses(
    user: NDArray[np.int64], ts: NDArray[np.int64], offer: NDArray[np.int64], item: NDArray[np.int64], width: int
) -> NDArray[np.float32]:
    """Crosses of any pair as a fixed function of its keys: what a look-up of the real store is for the model."""
    key = (user % 1009 + ts % 997 + offer % 991 + item * 31)[:, None] * (np.arange(width) + 1)
    out: NDArray[np.float32] = ((key % 17) / 8.0).astype(np.float32)
    return out


@pytest.fixture(scope="session")
def lookup(spec: FeatureSpec):  # type: ignore[no-untyped-def]
    """A ``PairLookup`` over ``pair_crosses``."""
    return lambda user, ts, offer, item: pair_crosses(user, ts, offer, item, spec.cross_width)


def make_dig(spec: FeatureSpec, items: ItemTable, seed: int = 0, **changes: object) -> Dig:
    """A small model with its catalogue set; ``changes`` go to ``ModelConfig``."""
    shape: dict[str, object] = {"dim": 8, "levels": 3, "codes": 8, "encoder_hidden": 16, "heads": 2, "cross_rank": 4, "experts": 2}
    torch.manual_seed(seed)
    model = Dig(ModelConfig.model_validate({**shape, "expert_hidden": 8, **changes}), spec)
    model.set_items(items)
    return model
