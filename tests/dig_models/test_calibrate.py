"""Source corrections."""

from __future__ import annotations

import numpy as np
import torch

from dig_models.batch import Batch
from dig_models.calibrate import bias_shift, calibrate
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.u2t import PairLookup
from tests.dig_models.conftest import make_dig


def _rows(rows: int = 4000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    logit, domain = rng.normal(-2, 1, rows), rng.integers(0, 2, rows)
    label = rng.random(rows) < 1 / (1 + np.exp(-(logit + 0.5 + np.where(domain == 1, 1.0, -1.0))))
    return (
        torch.from_numpy(logit).float(),
        torch.full((rows,), 0.5),
        torch.from_numpy(label).float(),
        torch.from_numpy(domain),
    )


def test_after_the_shift_predictions_add_up_to_the_positives_of_each_domain() -> None:
    logit, offset, label, domain = _rows()
    shift = bias_shift(logit, offset, label, domain)
    for s in (0, 1):
        own = domain == s
        assert np.isclose(float(torch.sigmoid(logit[own] + offset[own] + shift[s]).sum()), float(label[own].sum()), rtol=1e-6)
    assert abs(float(shift[0]) + 1.0) < 0.2
    assert abs(float(shift[1]) - 1.0) < 0.2


def test_a_domain_without_positives_is_left_alone() -> None:
    logit, offset, label, domain = _rows()
    assert float(bias_shift(logit, offset, torch.where(domain == 0, 0.0, label), domain)[0]) == 0.0
    assert bias_shift(logit[:0], offset[:0], label[:0], domain[:0]).tolist() == [0.0, 0.0]


def test_few_positives_move_the_bias_less_than_many() -> None:
    logit, offset, label, domain = _rows(60)
    free, held = bias_shift(logit, offset, label, domain), bias_shift(logit, offset, label, domain, prior=100.0)
    assert bool((held.abs() < 0.5 * free.abs()).all())


def test_a_model_is_shifted_on_both_paths_and_keeps_its_order(
    spec: FeatureSpec, items: ItemTable, batch: Batch, lookup: PairLookup
) -> None:
    model = make_dig(spec, items)
    model(batch, "warmup", lookup)
    domain = (batch.source_R > 0).long()

    def scores() -> torch.Tensor:
        model.eval()
        e = model.encode_items(batch.item_R)
        return model.rank_logit(model.user_side(batch), batch.request_R, e, batch.cross_RC, domain).detach()

    before, recall_before = scores(), model.recall_bias.detach().clone()
    shift = calibrate(model, [batch, batch], prior=0.0)
    after = scores()
    assert torch.allclose(after - before, torch.where(domain == 0, shift["shift_exposed"], shift["shift_open"]), atol=1e-5)
    assert torch.allclose((model.recall_bias - recall_before) * 10.0, torch.tensor(list(shift.values())), atol=1e-5)
    for s in (0, 1):
        own = domain == s
        predicted = torch.sigmoid(after[own] + batch.offset_R[own]).sum()
        assert np.isclose(float(predicted), float(batch.label_R[own].sum()), rtol=1e-4)
