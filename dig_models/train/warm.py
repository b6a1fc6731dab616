"""What a model takes over from the one promoted before it, and what it leaves to the next: weights, codes, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dig_models.bundle import Bundle
from dig_models.dig import Dig
from dig_models.evaluate.sid_quality import Churn, churn
from dig_models.items import ItemTable
from dig_models.quantize.align import inverse, labels_for, renamed
from dig_models.quantize.known import KnownSids

READ = ("norm_u2i.", "norm_u2t.", "mixer.cross.down.", "mixer.experts.gate.weight", "mixer.experts.first.weight", "mixer.wide.")
"""Tensors whose last axis ends with ``c_uv``: its norms, and the layers that read the Mixer's input, which it closes."""
GIVEN = ("mixer.cross.up.", "u2t_head.out.")
"""Tensors whose first axis does: the cross layers' way back to their input, and what MLP_u2t says in its place."""


@torch.no_grad()
def warm_start(model: Dig, ancestor: Bundle, items: ItemTable, everyone: ItemTable | None = None) -> bool:
    """Copy every tensor of the ancestor that has the same name and shape; ``model`` then has the catalogue ``items``.

    Where one of them reads the affinity and the other does not, that column of ``c_uv`` alone is left out: what is new begins without
    weight, so the model scores as the ancestor did until it has learned to use it, and what is gone is dropped.

    Codes and codebooks are copied all together or not at all. Items that the ancestor did not know get the codes nearest to its
    embedding of them, which are those that it was published with if it was published for their day.

    Args:
        model: freshly made, for the same feature spec as the ancestor.
        ancestor: the older model; left as it is.
        items: what the model is to be trained on.
        everyone: all items that have or soon get a SID, ``items`` among them; the codes of the others go into ``model.reserved``.

    Returns:
        Whether the codebooks were taken over; if not, they must be built anew.

    Raises:
        FeatureSpecMismatch: the ancestor reads other features.
    """
    model.spec.require(ancestor.spec.digest, "the model to start from")
    model.set_items(ancestor.items)
    own, old = model.state_dict(), ancestor.model.state_dict()
    if model.config.affinity.enabled != ancestor.model.config.affinity.enabled:
        old = {name: _refitted(name, value, own[name]) if name in own else value for name, value in old.items()}
    fits = {name for name, value in own.items() if name in old and old[name].shape == value.shape}
    addressing = {name for name in own if name.startswith("quantizer.") or name == "code_NL"}
    kept = addressing <= fits and bool(ancestor.model.quantizer.built)
    kept &= (model.token_encoder is None) == (ancestor.model.token_encoder is None)  # codes go with the embeddings that they quantize
    if not kept:
        fits -= addressing
    reading = {name for name in own if name.startswith(("item_fields.", "encoder."))}
    if not reading <= fits:  # what was shown to another encoder says nothing of this one
        fits -= {name for name in own if name.startswith("shown.")}
    model.load_state_dict({name: old[name] if name in fits else value for name, value in own.items()})
    if reading <= fits:
        model.shown.take(ancestor.model.shown.hashes())
    if kept:
        model.reserved = ancestor.model.reserved
        model.settled = True  # of an item that the ancestor knew the code stays; what training does with it is the caller's business
        settle(model, items if everyone is None else everyone)
    model.set_items(items)
    return kept


def _refitted(name: str, old: Tensor, own: Tensor) -> Tensor:
    """A tensor of a model with one column of ``c_uv`` more or less, the last, as one of the shape of ``own``; others as they are.

    A new column of the norms and of MLP_u2t is as ``own`` has it; the Mixer's is 0, so nothing of it reaches a logit.
    """
    if not name.startswith((*READ, *GIVEN)):
        return old
    axis = 0 if name.startswith(GIVEN) else old.dim() - 1
    if old.dim() != own.dim() or abs(old.shape[axis] - own.shape[axis]) != 1:
        return old
    shared = min(old.shape[axis], own.shape[axis])
    fitted = torch.zeros_like(own) if name.startswith("mixer.") else own.clone()
    before, after = old.narrow(axis, 0, shared), fitted.narrow(axis, 0, shared)
    if before.shape != after.shape:
        return old  # other sizes differ too
    after.copy_(before)
    return fitted


@torch.no_grad()
def settle(model: Dig, everyone: ItemTable) -> None:
    """Give every item its code by the weights as they are now, and keep it from now on, whatever catalogue the model is shown.

    Where the model's codes are fixed, items that have one keep it. ``model.reserved`` then knows exactly these items, and
    ``everyone`` is the catalogue. A model without codebooks is only put into evaluation mode.
    """
    model.eval()
    model.set_items(everyone)
    if not bool(model.quantizer.built):
        return
    model.code_NL.copy_(model.codes(model.encode_catalogue()))
    model.code_NL[0] = -1
    model.reserved = KnownSids.of(everyone.hash_N[1:], model.code_NL[1:].cpu().numpy())
    model.settled = True


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How the codes of a model were renamed.

    Attributes:
        label_LK: the new name of each code; see ``quantize.align.labels_for``.
        churn: against the SIDs aligned with, under the new names; None if no item is in both.
        unaligned: the same under the names before.
    """

    label_LK: NDArray[np.int64]
    churn: Churn | None
    unaligned: Churn | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``renamed`` is the number of codes of each level with another name."""
        moved_L = (self.label_LK != np.arange(self.label_LK.shape[1])).sum(axis=1)
        return {
            "labels": self.label_LK.tolist(),
            "renamed": moved_L.tolist(),
            "churn": self.churn.as_dict() if self.churn else None,
            "unaligned": self.unaligned.as_dict() if self.unaligned else None,
        }


@torch.no_grad()
def rename_codes(model: Dig, label_LK: NDArray[np.int64]) -> None:
    """Give a model's codes other names: code vectors, their averages and idle times, semantic rows, and the items' codes.

    What the model computes of an item or a prefix stays bit for bit the same. An optimizer's state and checkpoints are not
    renamed: do this to a model that is trained.

    Raises:
        ValueError: ``label_LK`` is not a permutation in every row.
    """
    levels, codes = model.config.levels, model.config.codes
    if label_LK.shape != (levels, codes) or not np.array_equal(np.sort(label_LK, axis=1), np.tile(np.arange(codes), (levels, 1))):
        raise ValueError(f"expected for each of {levels} levels a permutation of 0..{codes - 1}, found labels of shape {label_LK.shape}")
    model.quantizer.rename(torch.from_numpy(label_LK))
    if model.exploration is not None:
        model.exploration.rename(torch.from_numpy(label_LK))
    code_NL = renamed(model.code_NL.cpu().numpy(), label_LK)
    model.code_NL.copy_(torch.from_numpy(code_NL))
    model.reserved = KnownSids(model.reserved.hash_X, renamed(model.reserved.code_XL, label_LK))
    model.reset_rows = torch.zeros(0, dtype=torch.int64)
    if model.items is not None:
        model.set_items(model.items)  # drops what was derived from the codes


def align(model: Dig, old: KnownSids) -> Alignment:
    """Rename the codes of a settled model so that its items keep the SIDs ``old`` where renaming can do that.

    Raises:
        ValueError: SIDs of another length.
    """
    label_LK = labels_for(old, model.reserved, model.config.codes)
    before = between(old, model.reserved)
    rename_codes(model, label_LK)
    return Alignment(label_LK=label_LK, churn=between(old, model.reserved), unaligned=before)


def between(old: KnownSids, new: KnownSids) -> Churn | None:
    """Churn of the items that both know; None if there are none, or their SIDs differ in length."""
    return churn(old.hash_X, old.code_XL, new.hash_X, new.code_XL)


def unaligned(sids: KnownSids, alignment: dict[str, Any]) -> KnownSids:
    """SIDs of a model under the names that its codes had before the alignment that its bundle's ``info`` tells of."""
    return KnownSids(sids.hash_X, renamed(sids.code_XL, inverse(np.array(alignment["labels"], dtype=np.int64))))
