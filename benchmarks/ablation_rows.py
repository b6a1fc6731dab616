"""Rows of the ablation: what each is trained with, and how its model retrieves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dig_models.retrieve.options import U2t


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        name: for options and files; ``label`` for people.
        sets: settings of its training, beside those in force.
        tokenizer: SIDs made beforehand by it, ``rqvae`` or ``rkmeans``; empty if the model makes its own.
        model_of: row whose model it uses; empty if it is trained itself.
        u2t: crosses of prefixes at inference; empty for what the settings say.
        resolve: whether the published SIDs, collisions resolved, are searched instead of the model's.
    """

    name: str
    label: str
    sets: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""
    model_of: str = ""
    u2t: U2t | None = None
    resolve: bool = False

    @property
    def model(self) -> str:
        """Name of the row whose model this is."""
        return self.model_of or self.name


BASE, DIG = "base", "dig"
TWO_STAGE = ("rqvae", "rkmeans")
_GIVEN = {"model.assignment": "given", "model.loss.commit": "0"}

GRID = (
    Row(name=BASE, label="Base: the ranker alone", sets={"model.loss.recall": "0"}),
    Row(name=DIG, label="DIG, settings in force"),
    Row(name="oracle_u2t", label="oracle u2t: true means at inference", model_of=DIG, u2t="exact"),
    Row(name="mlp_u2t", label="MLP_u2t at inference, as published", model_of=DIG, u2t="mlp"),
    Row(name="no_inference_u2t", label="without MLP_u2t at inference", model_of=DIG, u2t="none"),
    Row(name="no_training_u2t", label="without training u2t", sets={"model.u2t_teacher": "none"}, u2t="none"),
    Row(name="cut_off", label="tokenizer cut off from L_rank", sets={"model.rank_gradient_to_encoder": "false"}),
    Row(name="coupled_ste", label="coupled codebook + STE", sets={"model.codebook": "coupled_ste"}),
    Row(name="rqvae", label="two-stage: RQ-VAE SIDs, same Mixer", sets=_GIVEN, tokenizer="rqvae"),
    Row(name="rkmeans", label="two-stage: k-means SIDs, same Mixer", sets=_GIVEN, tokenizer="rkmeans"),
    Row(name="resolved", label="DIG, collisions resolved", model_of=DIG, resolve=True),
)
"""The grid of the paper's ablation, and what collision resolution costs."""

FURTHER = (
    Row(name="frozen_tree", label="SIDs of the first tree for good", sets={"model.assignment": "frozen_tree"}),
    Row(name="gumbel_sdud", label="Gumbel exploration, SDUD", sets={"model.assignment": "gumbel_sdud"}),
    Row(name="gumbel_frqud", label="Gumbel exploration, FrqUD", sets={"model.assignment": "gumbel_frqud"}),
    Row(
        name="gumbel_detached",
        label="Gumbel exploration, no gradient",
        sets={"model.assignment": "gumbel_frqud", "model.gumbel_gradient": "false"},
    ),
    Row(name="batch_mean", label="u2t teacher: batch mean, as published", sets={"model.u2t_teacher": "batch_mean"}),
    Row(name="leave_one_out", label="u2t teacher: leave one out", sets={"model.u2t_teacher": "leave_one_out"}),
    Row(name="item_popularity", label="popularity as a static item field", sets={"dataset.item_popularity": "[30]"}),
    Row(name="hard_negatives", label="10 hard negatives a request", sets={"train.hard_negatives": "10"}),
    Row(name="token_buckets", label="buckets by level token", sets={"model.bucket_key": "token"}),
    Row(name="pool_query", label="target-free history in retrieval", sets={"model.retrieval_query": "pool"}),
    Row(name="sum_log", label="path score: sum of logs", sets={"model.path_score": "sum_log"}),
)
"""Further switches of the method, asked for by name."""

ROWS = {row.name: row for row in (*GRID, *FURTHER)}


def chosen(names: Sequence[str]) -> list[Row]:
    """Rows by name, with ``base`` and ``dig`` first, which the others are compared with; all of ``GRID`` if none is named.

    Raises:
        ValueError: there is no such row.
    """
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise ValueError(f"row {unknown[0]!r}: expected some of {', '.join(ROWS)}")
    if not names:
        return list(GRID)
    return [ROWS[name] for name in dict.fromkeys((BASE, DIG, *names))]
