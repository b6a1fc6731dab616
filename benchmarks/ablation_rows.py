"""Rows of the ablation: what each is trained with, and how its model retrieves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dig_models.retrieve.options import U2t
from dig_models.tokenizers.settings import WITHOUT_CONTENT, Content, Kind

PathScore = Literal["last", "sum_log"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        name: for options and files; ``label`` for people.
        sets: settings of its training, beside those in force.
        tokenizer: kind of the tokenizer that makes its SIDs beforehand; None if the model makes its own.
        content: what the tokenizer knows of an item: its static fields, or what it was bought with on the training days.
        model_of: row whose model it uses; empty if it is trained itself.
        u2t: crosses of prefixes at inference; empty for what the settings say.
        path_score: how the search scores a path; empty for what the settings say.
        resolve: whether the published SIDs, collisions resolved, are searched instead of the model's; those made beforehand are
            resolved before the training, which then learns from the SIDs that are searched.
    """

    name: str
    label: str
    sets: dict[str, str] = field(default_factory=dict)
    tokenizer: Kind | None = None
    content: Content = "fields"
    model_of: str = ""
    u2t: U2t | None = None
    path_score: PathScore | None = None
    resolve: bool = False

    @property
    def model(self) -> str:
        """Name of the row whose model this is."""
        return self.model_of or self.name


BASE, DIG = "base", "dig"
IN_GRID: tuple[Kind, ...] = ("rqvae", "rkmeans")
# No L_commit: in a two-stage system nothing of the SIDs pulls at the ranker's embeddings. The daily run does so too (jobs.config).
_GIVEN = {"model.assignment": "given", "model.loss.commit": "0"}
_TOKENIZERS: dict[Kind, str] = {"rqvae": "RQ-VAE", "rkmeans": "k-means", "resid": "ReSID", "diger": "DIGER", "unisid": "UniSID"}
"""Every kind of the registry that makes SIDs before a ranker is trained, for people."""


def _shape(levels: int, codes: int) -> dict[str, str]:
    return {"model.levels": str(levels), "model.codes": str(codes)}


def _plain(kind: Kind) -> Row:
    return Row(name=kind, label=f"two-stage: {_TOKENIZERS[kind]} SIDs, same Mixer", sets=_GIVEN, tokenizer=kind)


def _two_stage() -> tuple[Row, ...]:
    """Further two-stage systems: those that the grid does not have, collaborative vectors, and SIDs without collisions, by tokenizer."""
    rows = [_plain(kind) for kind in _TOKENIZERS if kind not in IN_GRID]
    for name, label in _TOKENIZERS.items():
        known: tuple[tuple[str, Content, str], ...] = (
            ("", "fields", ""),
            ("_cooc", "co_occurrence", " of co-occurrence"),
        )
        for suffix, content, of in known[: 1 if name in WITHOUT_CONTENT else 2]:
            made = Row(name=f"{name}{suffix}", label=f"two-stage: {label} SIDs{of}", sets=_GIVEN, tokenizer=name, content=content)
            rows += [made] if suffix else []
            rows.append(replace(made, name=f"{made.name}_resolved", label=f"{made.label}, no collisions", resolve=True))
    return tuple(rows)


GRID = (
    Row(name=BASE, label="Base: the ranker alone", sets={"model.loss.recall": "0"}),
    Row(name=DIG, label="DIG, settings in force"),
    Row(name="oracle_u2t", label="oracle u2t: true means at inference", model_of=DIG, u2t="exact"),
    Row(name="mlp_u2t", label="MLP_u2t at inference, as published", model_of=DIG, u2t="mlp"),
    Row(name="no_inference_u2t", label="without MLP_u2t at inference", model_of=DIG, u2t="none"),
    Row(name="no_training_u2t", label="without training u2t", sets={"model.u2t_teacher": "none"}, u2t="none"),
    Row(
        name="cut_off",
        label="tokenizer cut off from L_rank",
        sets={"model.rank_gradient_to_encoder": "false", "model.recon_stop": "sid"},
    ),
    Row(name="coupled_ste", label="coupled codebook + STE", sets={"model.codebook": "coupled_ste"}),
    *(_plain(kind) for kind in IN_GRID),
    Row(name="resolved", label="DIG, collisions resolved", model_of=DIG, resolve=True),
)
"""The grid of the paper's ablation, and what collision resolution costs."""

QUICK_ROWS = (BASE, DIG, "oracle_u2t", "mlp_u2t", "no_inference_u2t", "no_training_u2t", "cut_off", "coupled_ste", "rqvae", "rkmeans")
"""What a quick run does of it: the paper's rows, with seven trainings."""

FURTHER = (
    *_two_stage(),
    Row(name="frozen_tree", label="SIDs of the first tree for good", sets={"model.assignment": "frozen_tree"}),
    Row(name="gumbel_sdud", label="Gumbel exploration, SDUD", sets={"model.assignment": "gumbel_sdud"}),
    Row(name="gumbel_frqud", label="Gumbel exploration, FrqUD", sets={"model.assignment": "gumbel_frqud"}),
    Row(
        name="gumbel_detached",
        label="Gumbel exploration, no gradient",
        sets={"model.assignment": "gumbel_frqud", "model.gumbel_gradient": "false"},
    ),
    Row(name="batch_mean", label="u2t teacher: batch mean, as published", sets={"model.u2t_teacher": "batch_mean"}),
    Row(
        name="published_u2t",
        label="u2t as published: batch mean, MLP",
        sets={"model.u2t_teacher": "batch_mean", "model.u2t_mix": "1.0", "model.u2t_gradient": "true", "model.u2t_inference": "mlp"},
    ),
    Row(name="leave_one_out", label="u2t teacher: leave one out", sets={"model.u2t_teacher": "leave_one_out"}),
    Row(
        name="back_off_8",
        label="leave one out, back-off below 8 rows",
        sets={"model.u2t_teacher": "leave_one_out", "model.u2t_min_bucket": "8"},
    ),
    Row(name="u2t_mix_0", label="MLP_u2t alone in training", sets={"model.u2t_mix": "0.0"}),
    Row(name="u2t_mix_1", label="u2t teacher alone in training", sets={"model.u2t_mix": "1.0"}),
    Row(name="u2t_gradient", label="L_u2t trains tower and prefixes too", sets={"model.u2t_gradient": "true"}),
    Row(name="no_id_dropout", label="item ids never masked", sets={"model.item_id_dropout": "0.0"}),
    Row(name="recon_stop_sid", label="L_recon moves the item, not the SID", sets={"model.recon_stop": "sid"}),
    *(
        Row(name=f"codes_{levels}x{codes}", label=f"{levels} levels of {codes} codes", sets=_shape(levels, codes))
        for levels, codes in ((2, 256), (4, 32))
    ),
    *(Row(name=f"no_{loss}", label=f"without L_{loss}", sets={f"model.loss.{loss}": "0"}) for loss in ("commit", "recon", "u2t")),
    *(Row(name=f"recall_{w}", label=f"L_recall weighs {w}", sets={"model.loss.recall": w}) for w in ("0.03", "0.25", "0.5")),
    Row(name="organic_positives", label="open positives: organic alone", sets={"model.open_positives": "organic"}),
    Row(name="item_popularity", label="popularity as a static item field", sets={"dataset.item_popularity": "[30]"}),
    Row(name="hard_negatives", label="10 hard negatives a request", sets={"train.hard_negatives": "10"}),
    *(
        Row(name=f"history_negatives_{n}", label=f"{n} negatives of the history", sets={"train.history_negatives": str(n)})
        for n in (0, 20, 60)
    ),
    Row(name="popular_negatives", label="40 popular negatives a request", sets={"train.popular_negatives": "40"}),
    Row(name="no_affinity", label="without the affinity in c_uv", sets={"model.affinity.enabled": "false"}),
    Row(name="affinity", label="affinity of history and item in c_uv", sets={"model.affinity.enabled": "true"}),
    Row(
        name="affinity_popular",
        label="affinity, 40 popular negatives",
        sets={"model.affinity.enabled": "true", "train.popular_negatives": "40"},
    ),
    Row(
        name="token_buckets",
        label="buckets by level token, MLP",  # an exact mean is over a prefix
        sets={"model.bucket_key": "token", "model.u2t_inference": "mlp"},
    ),
    Row(name="pool_query", label="target-free history in retrieval", sets={"model.retrieval_query": "pool"}),
    Row(name="sum_log", label="path score: sum of logs", model_of=DIG, path_score="sum_log"),
)
"""Further switches of the method, asked for by name or all together; one that says what is in force shares the runs of ``dig``."""

ROWS = {row.name: row for row in (*GRID, *FURTHER)}
TWO_STAGE = tuple(name for name, row in ROWS.items() if row.tokenizer)
"""Rows that DIG's recall is put over."""


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
