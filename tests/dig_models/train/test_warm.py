"""Warm start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import synthetic
import torch
from tiny import Tiny

from dig_models.bundle import Bundle
from dig_models.dig import Dig
from dig_models.features import FeatureSpec, FeatureSpecMismatch
from dig_models.train.distributed import World
from dig_models.train.loop import fit
from dig_models.train.warm import warm_start


@pytest.fixture
def ancestor(tiny: Tiny) -> Bundle:
    model = tiny.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.build_codebooks(0)
    return Bundle(model.eval(), tiny.spec, tiny.items, model.code_NL.numpy().copy(), {})


def fresh(tiny: Tiny, **changes: object) -> Dig:
    return tiny.model(**changes)


def test_codes_of_items_that_stay_are_kept_and_new_items_get_codes(tiny: Tiny, ancestor: Bundle) -> None:
    items = synthetic.make_items(tiny.spec, [*(f"i{n}" for n in range(10, 60)), "new-1", "new-2"])
    model = fresh(tiny)
    assert warm_start(model, ancestor, items)
    old = ancestor.items.rows(items.hash_N)
    stay = old > 0
    assert stay.sum() == 50
    assert model.code_NL[torch.from_numpy(stay)].tolist() == ancestor.codes_NL[old[stay]].tolist()
    assert (model.code_NL[1:] >= 0).all()
    assert torch.equal(model.mixer.state_dict()[k := next(iter(model.mixer.state_dict()))], ancestor.model.mixer.state_dict()[k])


def test_a_warm_training_keeps_the_codes_of_known_items_and_can_be_told_to_move_them(tiny: Tiny, ancestor: Bundle, world: World) -> None:
    codes = {}
    for choice in ("keep", "move"):
        model = fresh(tiny)
        assert warm_start(model, ancestor, tiny.items)
        setup = tiny.setup(world, model=model, checkpoints=f"warm-{choice}", warm_codes=choice, warm_epochs=3, lr=0.02)
        record = fit(replace(setup, warm=True), world)
        assert len(record.epochs) == 3 and not record.codebooks
        codes[choice] = model.codes(model.encode_catalogue())[1:].numpy()
    assert np.array_equal(codes["keep"], ancestor.codes_NL[1:])
    assert (codes["move"] != ancestor.codes_NL[1:]).any()


def test_other_losses_still_start_warm(tiny: Tiny, ancestor: Bundle) -> None:
    assert warm_start(fresh(tiny, loss={"commit": 0.5}), ancestor, tiny.items)


def test_another_number_of_codes_takes_the_weights_but_not_the_codebooks(tiny: Tiny, ancestor: Bundle) -> None:
    model = fresh(tiny, codes=8)
    assert not warm_start(model, ancestor, tiny.items)
    assert not bool(model.quantizer.built) and (model.code_NL == -1).all()
    assert torch.equal(model.rank_bias, ancestor.model.rank_bias)


def test_a_model_of_other_features_is_refused(tiny: Tiny, ancestor: Bundle) -> None:
    spec = FeatureSpec.model_validate({**tiny.spec.model_dump(), "history_length": 7})
    model = Dig(ancestor.model.config, spec)
    with pytest.raises(FeatureSpecMismatch, match="start from"):
        warm_start(model, ancestor, tiny.items)
