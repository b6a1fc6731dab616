"""Typed settings of the model and its runtime; free of torch so that DAGs may read them.

Every switch of the method (arXiv 2605.14853) is a field here, with the default that served best on real data.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """Base of all settings: unknown keys are refused and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LossWeights(Strict):
    """Weights of the five losses; ``rank`` is 1 by definition. ``recall: 0`` gives the Base ranker."""

    recall: float = Field(
        0.1,
        ge=0,
        description="Adam steps the SID side alike at any weight, while user tower and Mixer are shared: at 0.5 both paths "
        "judged worse on validation days, in the mean of three seeds",
    )
    commit: float = Field(
        0.001,
        ge=0,
        description="0.01 lets embeddings collapse onto their codes and costs 0.004 of ranking AUC",
    )
    recon: float = Field(
        0.05, ge=0, description="ties the sum of a SID's semantic rows to the item's embedding; recon_stop stops one of them"
    )
    u2t: float = Field(0.02, ge=0, description="MLP_u2t learns from it alone, towards the teacher's crosses; see u2t_gradient")


class AffinityConfig(Strict):
    """A user-to-item cross of what the history says of an item by an item-to-item matrix; see ``dig_models.affinity``."""

    enabled: bool = Field(False, description="whether c_uv has one more column, the affinity of history and item")
    ridge: float = Field(100.0, gt=0, description="lambda of EASE, on the binary users x items matrix of the days before training")
    keep: Positive = Field(100, description="strongest positive entries kept an item")
    max_items: Positive = Field(
        20_000, description="items above which a training refuses: the fit inverts items x items, 8 N^2 bytes and N^3 operations"
    )


class ModelConfig(Strict):
    """Shape of the DIG network and the switches of its method."""

    dim: Positive = Field(32, description="width of item, SID and user embeddings")
    levels: Positive = Field(3, description="SID length L")
    codes: Annotated[int, Field(ge=2)] = Field(64, description="codes per level K")
    encoder_hidden: Positive = 64
    item_id_dropout: Fraction = Field(
        0.1, description="share of items whose item-id field is masked in training, so that a cold item has a sensible SID"
    )
    heads: Positive = Field(4, description="heads of the DIN attention")
    cross_layers: Positive = Field(2, description="DCNv2 cross layers")
    cross_rank: Positive = Field(32, description="rank of a DCNv2 cross layer")
    experts: Positive = Field(4, description="experts of the MoE")
    expert_hidden: Positive = 64
    dropout: Fraction = Field(0.3, description="dropout in the experts; a few thousand positives are soon learned by heart")

    assignment: Literal["online_rq", "frozen_tree", "gumbel_sdud", "gumbel_frqud", "given"] = Field(
        "online_rq",
        description="nearest residual code every step; codes of the initial balanced tree for good; nearest codes, with Gumbel exploration "
        "in training that decays with the loss (SDUD) or holds for crowded codes only (FrqUD); or SIDs made beforehand (train.given_sids)",
    )
    codebook: Literal["decoupled", "coupled_ste"] = Field(
        "decoupled",
        description="scores read a semantic table of their own, or the code vectors with a straight-through gradient (ablation)",
    )
    gumbel_tau: float = Field(2.0, gt=0, description="temperature of the soft assignment that carries the gradient (gumbel_*)")
    gumbel_gradient: bool = Field(
        True, description="L_recall reaches the encoder through the soft assignment; False explores only (ablation)"
    )
    sdud_sigma: float = Field(0.5, ge=0, description="scale of the Gumbel noise at the start (gumbel_sdud)")
    sdud_lambda: float = Field(
        0.45, ge=0, description="the noise decays towards max(0, sqrt(L_recall) - lambda) (gumbel_sdud); L_recall ends near .27"
    )
    frqud_ratio: float = Field(1.5, gt=0, description="a code with more than ratio / K of a level's items is crowded (gumbel_frqud)")
    ema_decay: Fraction = Field(
        0.8,
        description="a step sees the whole catalogue, so no sampling noise needs averaging; slower codes lag behind the encoder",
    )
    dead_code_steps: Positive = Field(20, description="a code unused for so many steps is reset, with its semantic row")

    u2t_teacher: Literal["batch_mean", "leave_one_out", "catalogue_sample", "none"] = Field(
        "catalogue_sample", description="what stands in for c_uv of a prefix in training; none trains the recall path without it (ablation)"
    )
    u2t_samples: Positive = Field(4, description="catalogue items drawn per row and level (teacher catalogue_sample)")
    u2t_min_bucket: Positive = Field(2, description="leave_one_out backs off to a shorter prefix below this bucket size")
    u2t_mix: Fraction = Field(0.9, description="share of rows whose recall path sees the teacher, the rest sees MLP_u2t")
    u2t_gradient: bool = Field(False, description="L_u2t also trains what MLP_u2t reads, user tower and prefixes; that cost 0.002 AUC")
    u2t_inference: Literal["mlp", "exact", "none"] = Field(
        "exact", description="the true mean of c_uv over the prefix's items, MLP_u2t, or the same for every prefix (ablation)"
    )
    bucket_key: Literal["prefix", "token"] = Field(
        "prefix", description="items whose crosses u2t of a level is the mean of: those of the prefix s_1..s_l, or of the token s_l alone"
    )
    path_score: Literal["last", "sum_log"] = Field(
        "last", description="what beam search ranks by: the probability of the prefix reached, or the sum of the path's log-probabilities"
    )
    retrieval_query: Literal["sid", "pool"] = Field("sid", description="DIN query on the retrieval path")
    recon_stop: Literal["item", "sid"] = Field("item", description="which side of L_recon is stopped")
    rank_gradient_to_encoder: bool = Field(
        True,
        description="False cuts the tokenizer off from L_rank: the quantizer reads an encoder of its own, which L_commit and, with "
        "recon_stop sid, L_recon train; such a model is not indexed (ablation)",
    )
    open_positives: Literal["all", "organic"] = Field(
        "all", description="positives of the open-catalogue source: every purchase, or only those not exposed"
    )
    affinity: AffinityConfig = AffinityConfig()
    loss: LossWeights = LossWeights()

    def stored(self) -> dict[str, Any]:
        """As bundles and digests hold it: settings of a part that is off decide nothing and are left out."""
        held = self.model_dump(mode="json")
        if not self.affinity.enabled:
            del held["affinity"]
        return held


class TrainConfig(Strict):
    """Optimisation and distribution."""

    epochs: Positive = Field(2, description="a third pass over the examples lost ranking AUC on the validation days")
    requests_per_batch: Positive = Field(16, description="requests per rank and step")
    random_negatives: Positive = Field(30, description="random catalogue items per request")
    history_negatives: Annotated[int, Field(ge=0)] = Field(
        10, description="further negatives per request, distinct items of its history: what a user's own items are told apart by"
    )
    popular_negatives: Annotated[int, Field(ge=0)] = Field(
        0, description="further negatives per request, drawn by their popularity before the first example: what many buy and this user not"
    )
    hard_negatives: Annotated[int, Field(ge=0)] = Field(
        0, description="further catalogue items per request, drawn from the prefixes that the recall path scores highest as it is by now"
    )
    hard_beam: Positive = Field(5, description="prefixes kept per level to draw hard negatives from")
    given_sids: str = Field("", description="Parquet file with item_id and s_1 .. s_L of SIDs made beforehand (model.assignment given)")
    lr: float = Field(2e-3, gt=0)
    embedding_lr_scale: float = Field(1.0, gt=0, description="rate of embeddings and semantic tables against lr; 4 overfits in two epochs")
    weight_decay: float = Field(1e-5, ge=0)
    grad_clip: float = Field(5.0, gt=0)
    warmup_fraction: float = Field(0.2, ge=0, lt=1, description="share of the steps before the codebooks are built and L_recall starts")
    warm_start: bool = Field(True, description="start from the champion's weights and codes when there is a champion")
    warm_epochs: Positive = Field(1, description="epochs of a training that starts from the champion")
    warm_codes: Literal["keep", "move"] = Field(
        "keep",
        description="SIDs of known items in a training that starts from the champion: kept, or nearest codes, which moves nearly all",
    )
    align_codes: bool = Field(
        True,
        description="codes of a trained model are renamed so that items keep the SIDs of the model promoted before it where renaming can; "
        "scores stay the same",
    )
    seed: int = 2017
    ranks: Positive = Field(2, description="processes per host")
    threads_per_rank: Positive = 1
    hosts: Positive = Field(1, description="hosts that train together; all of them, or none: their number decides the result")
    rendezvous: str = Field("", description="host:port of the c10d rendezvous, on one of the hosts; empty means standalone")
    address: str = Field("", description="where other hosts reach this one, if not by its host name; differs by host: $DIG_TRAIN__ADDRESS")
    max_restarts: Annotated[int, Field(ge=0)] = Field(0, description="times that ranks start anew after one failed or a host was lost")
    join_minutes: Positive = Field(10, description="how long hosts wait for each other, at the start and for a lost one to come back")
    lost_seconds: Annotated[int, Field(ge=3)] = Field(15, description="a host that was not heard of for so long is lost")
    backend: Literal["gloo", "nccl"] = "gloo"
    prefetch: Positive = Field(4, description="batches prepared ahead by the loader thread")
    shuffle_row_groups: Positive = Field(4, description="row groups mixed in the shuffle buffer")
    checkpoint_steps: Positive = 100


LAUNCH = frozenset({"ranks", "hosts", "rendezvous", "address", "max_restarts", "join_minutes", "lost_seconds"})
"""Settings of ``TrainConfig`` that say how processes find each other; of them the result knows only how many processes there are."""


class RetrieveConfig(Strict):
    """Beam search and re-ranking."""

    beam: Positive = Field(200, description="prefixes kept per level; the paper's notes have 50, which reaches some hundred items")
    rerank: Positive = Field(400, description="retrieved items handed to the ranking path")
    k: Positive = 10


Port = Annotated[int, Field(ge=0, le=65535)]


class RedisConfig(Strict):
    """A copy of item -> SID and SID -> items in Redis, switched with the index."""

    url: str = Field("", description="redis://host:port/db or rediss://…; empty means none. Its password belongs into $DIG_REDIS_PASSWORD")
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_{}.-]+$")] = Field(
        "{dig}", description="of every key; the braces keep a cluster's keys in one slot"
    )
    keep: Positive = Field(2, description="generations that stay: the current one and those before it")

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        scheme, _, place = url.partition("://")
        if url and (scheme not in ("redis", "rediss") or not place):
            raise ValueError(f"a URL such as redis://host:6379/0 expected, found {url!r}")
        if "@" in place:
            raise ValueError("a URL without user or password expected; the password belongs into $DIG_REDIS_PASSWORD")
        return url


class BatchConfig(Strict):
    """``jobs.recommend``: a list for every user, as a table of the lake."""

    enabled: bool = Field(False, description="whether dig_publish makes the lists after each promotion")
    k: Positive = Field(50, description="items a user")
    partitions: Positive = Field(8, description="Spark partitions, by user hash; each opens the generation once a process")
    exclude_bought: bool = Field(False, description="leave out what a user bought before")


class ServeConfig(Strict):
    """The HTTP server, and the other ways in which answers leave: Redis and the daily table."""

    host: str = Field("127.0.0.1", description="any other than loopback needs a token in $DIG_SERVE_TOKEN")
    port: Port = Field(8000, description="0 picks a free one, which the log names")
    poll_seconds: Annotated[float, Field(gt=0)] = Field(2.0, description="how often CURRENT is read")
    checksums: bool = Field(True, description="compare every byte of a generation with its manifest before it serves")
    workers: Positive = Field(
        1, description="threads that answer; they share one interpreter: several processes, not threads, use more cores"
    )
    torch_threads: Positive = Field(1, description="threads of one tensor operation; workers x this should not exceed the cores")
    waiting: Positive = Field(64, description="questions that may wait; one more gets 503 and Retry-After")
    coalesce: Positive = Field(16, description="users of equal questions that are answered together when they wait anyway; 1: never")
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(10.0, description="for reading a body, and for an answer; then 408, 503")
    max_k: Positive = Field(500, description="items a user")
    max_users: Positive = Field(64, description="users a question")
    max_items: Positive = Field(1000, description="item ids a question")
    max_beam: Positive = Field(1000, description="beam that a question may ask for")
    max_body_bytes: Positive = 262_144
    access_log: bool = Field(True, description="a line a request: route, status, time; never a user or an item")
    redis: RedisConfig = RedisConfig()
    batch: BatchConfig = BatchConfig()
