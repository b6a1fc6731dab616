"""Warm start: today's model begins where an older one ended, so that semantic IDs stay stable from day to day."""

from __future__ import annotations

import torch

from dig_models.bundle import Bundle
from dig_models.dig import Dig
from dig_models.items import ItemTable


@torch.no_grad()
def warm_start(model: Dig, ancestor: Bundle, items: ItemTable) -> bool:
    """Copy every tensor of the ancestor that has the same name and shape; ``model`` then has the catalogue ``items``.

    Codes and codebooks are copied all together or not at all. Items that the ancestor did not know get their nearest codes.

    Args:
        model: freshly made, for the same feature spec as the ancestor.
        ancestor: the older model; left as it is.
        items: today's catalogue.

    Returns:
        Whether the codebooks were taken over; if not, they must be built anew.

    Raises:
        FeatureSpecMismatch: the ancestor reads other features.
    """
    model.spec.require(ancestor.spec.digest, "the model to start from")
    model.set_items(ancestor.items)
    own, old = model.state_dict(), ancestor.model.state_dict()
    fits = {name for name, value in own.items() if name in old and old[name].shape == value.shape}
    addressing = {name for name in own if name.startswith("quantizer.") or name == "code_NL"}
    kept = addressing <= fits and bool(ancestor.model.quantizer.built)
    if not kept:
        fits -= addressing
    model.load_state_dict({name: old[name] if name in fits else value for name, value in own.items()})
    model.set_items(items)
    if kept:
        model.eval()
        model.settled = True  # of an item that the ancestor knew the code stays; what training does with it is the caller's business
        model.code_NL.copy_(model.codes(model.encode_catalogue()))
        model.code_NL[0] = -1
    return kept
