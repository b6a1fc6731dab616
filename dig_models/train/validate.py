"""A cheap look at both paths on held-out days: every rank scores its share, the sums are added up."""

from __future__ import annotations

import torch
from torch import Tensor

from dig_models.batch import Batch
from dig_models.dig import Dig
from dig_models.features import SOURCE_EXPOSED
from dig_models.quantize.residual import collision_rate, usage
from dig_models.train.distributed import World
from dig_models.train.figures import ScoreFigures
from dig_models.train.stream import ExampleStream, Prefetcher


@torch.no_grad()
def validate(model: Dig, stream: ExampleStream, world: World, *, prefetch: int, sids: bool) -> dict[str, float]:
    """Figures of the ranking path and, with ``sids``, of the retrieval path at full depth with u2t from ``MLP_u2t``.

    Rows weigh ``exp(offset)`` if negative and 1 if positive, which undoes the sampling; no offset is added to the logits.

    Returns:
        ``<path>_<domain>_<figure>`` for path ``rank`` or ``recall``, domain ``exposed`` or ``open`` and figures
        ``auc, logloss, calibration``; those that are undefined (no positives) are left out. With ``sids`` also ``figures_of_sids``. The
        same on every rank.
    """
    training = model.training
    model.eval()
    e_ND = model.encode_catalogue()
    code_NL = model.codes(e_ND) if sids else None
    deepest_ND = None if code_NL is None else model.prefix_embeddings(code_NL)[:, -1]
    paths = ("rank", "recall") if sids else ("rank",)
    sid_figures = {} if code_NL is None else figures_of_sids(model, code_NL)
    figures = {(path, domain): ScoreFigures() for path in paths for domain in ("exposed", "open")}
    with Prefetcher(stream.in_order(), prefetch) as batches:
        for cpu_batch in batches:
            batch = cpu_batch.to(world.device)
            for path, logit_R in _logits(model, batch, e_ND, deepest_ND).items():
                _add(figures[path, "exposed"], batch, logit_R, batch.source_R == SOURCE_EXPOSED)
                _add(figures[path, "open"], batch, logit_R, batch.source_R != SOURCE_EXPOSED)
    model.train(training)
    return {f"{path}_{domain}_{k}": v for (path, domain), f in figures.items() for k, v in f.result(world).items()} | sid_figures


def figures_of_sids(model: Dig, code_NL: Tensor) -> dict[str, float]:
    """Usage and collisions of a catalogue's SIDs as a bundle of the model would have them, and what share of it was never shown.

    In training codes also follow rows of buckets that no example has shown; in evaluation mode, which publishing reads, these are missing.

    Args:
        model: in evaluation mode.
        code_NL: its codes of the whole catalogue.

    Returns:
        ``sid_codes_used_<l>, sid_perplexity_<l>, sid_collision_rate, sid_never_shown``.
    """
    number_LK = torch.stack([torch.bincount(code_N, minlength=model.config.codes) for code_N in code_NL[1:].t()])
    found = {**usage(number_LK), "collision_rate": collision_rate(code_NL[1:], model.config.codes), "never_shown": model.shown.never}
    return {f"sid_{name}": value for name, value in found.items()}


def _logits(model: Dig, batch: Batch, e_ND: Tensor, deepest_ND: Tensor | None) -> dict[str, Tensor]:
    users = model.user_side(batch)
    e_RD = e_ND.index_select(0, batch.item_R)
    found = {"rank": model.rank_logit(users, batch.request_R, e_RD, batch.cross_RC, batch.domain_R)}
    if deepest_ND is not None:
        prefix_RD = deepest_ND.index_select(0, batch.item_R)
        u2t_RC = model.predict_u2t(users, batch.request_R, prefix_RD)
        found["recall"] = model.recall_logit(users, batch.request_R, prefix_RD, u2t_RC, batch.domain_R)
    return found


def _add(figures: ScoreFigures, batch: Batch, logit_R: Tensor, of_R: Tensor) -> None:
    label_R = batch.label_R[of_R]
    weight_R = torch.where(label_R > 0, torch.ones_like(label_R), batch.offset_R[of_R].exp())
    figures.add(logit_R[of_R], label_R, weight_R)
