"""Typed settings of the tokenizers; free of torch so that DAGs may read them.

A kind without a class here has nothing to set.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dig_models.config import Fraction, Positive, Strict
from dig_models.generator.settings import GeneratorSettings

Kind = Literal["dig", "rqvae", "rkmeans", "resid", "diger", "unisid"]
"""The names of ``registry.KINDS``: ``dig`` learns SIDs within the ranker, the others make them before it is trained."""

DIG: Kind = "dig"

WITHOUT_CONTENT: frozenset[Kind] = frozenset({"dig", "resid"})
"""Kinds that learn their vectors of items themselves and read none."""

Content = Literal["fields", "co_occurrence"]
Conflicts = Literal["none", "nearest", "sinkhorn", "suffix"]
"""What becomes of items that share a SID; ``conflicts.Method`` without torch."""


class RqVaeSettings(Strict):
    """Shape and training of the autoencoder."""

    latent: Positive = Field(32, description="width of the latent that is quantized")
    hidden: tuple[Positive, ...] = Field(
        (128,), min_length=1, description="widths of the encoder's layers before it; the decoder has them reversed"
    )
    activation: Literal["silu", "relu"] = "silu"
    epochs: Positive = 200
    batch: Positive = 1024
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    beta: float = Field(0.25, ge=0, description="weight of the commitment of latents to their codes")
    start: Literal["catalogue", "batch"] = Field("catalogue", description="items whose latents the k-means start of the codes sees")
    codebook: Literal["ema", "gradient"] = Field("ema", description="codes move by averages of their items, or by the loss")
    decay: float = Field(0.95, ge=0, lt=1, description="of the moving averages that are the codes (ema)")
    dead_code_steps: int = Field(30, ge=0, description="a code without an item for so many steps goes to a random residual; 0: never")
    diversity: float = Field(0.0, ge=0, description="weight of LETTER's diversity loss; needs codebook: gradient")
    clusters: Positive = Field(10, description="of the codes of a level, for the diversity loss")
    align: float = Field(0.0, ge=0, description="weight of LETTER's alignment with collaborative vectors")

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.diversity and self.codebook == "ema":
            raise ValueError("diversity > 0 needs codebook: gradient; codes that are averages of their items (ema) follow no loss")
        return self

    @classmethod
    def preset(cls, name: str, **changes: Any) -> RqVaeSettings:
        """Settings by name, with changes.

        ``small`` is the default. ``tiger`` has the constants that TIGER was published with (section 4.1: encoder 512-256-128 with ReLU,
        latent 32, beta .25, batches of 1024, Adagrad at .4, k-means start from the first batch; 3 levels of 256 codes are arguments of
        ``fit``). ``letter`` has those of LETTER's released training (AdamW at .001, diversity .0001 over 10 clusters, alignment .01; its
        encoder 2048-1024-512-256-128-64 is made for vectors of 4096 and here TIGER's; 4 levels of 256 codes). Both were trained for
        20,000 epochs, which takes a GPU: here ``epochs`` are 200 unless changed.

        Raises:
            ValueError: there is none of this name, or changes that do not fit.
        """
        if name not in PRESETS:
            raise ValueError(f"RQ-VAE preset {name!r}: unknown, expected one of {', '.join(PRESETS)}")
        return cls.model_validate(PRESETS[name] | changes)


_PUBLISHED = {"latent": 32, "hidden": (512, 256, 128), "activation": "relu", "codebook": "gradient", "start": "batch", "dead_code_steps": 0}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "tiger": _PUBLISHED | {"optimizer": "adagrad", "lr": 0.4},
    "letter": _PUBLISHED | {"lr": 1e-3, "diversity": 1e-4, "clusters": 10, "align": 0.01},
}


class FamaeSettings(Strict):
    """Shape and training; sizes are the paper's, batch and epochs are for two cores."""

    dim: Positive = Field(128, description="width of a field's embedding; a multiple of heads")
    layers: Positive = 2
    heads: Positive = 4
    hidden: Positive = Field(512, description="width of the feed-forward layers")
    dropout: Fraction = 0.1
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    batch: Positive = Field(256, description="sequences of a step; the paper's 2048 leave few steps where there are some thousand users")
    length: Annotated[int, Field(ge=2)] = Field(32, description="items of a sequence at most, the target included")
    negatives: Positive = Field(128, description="values drawn, once a step, where a vocabulary is not scored whole")
    whole: Annotated[int, Field(ge=0)] = Field(1024, description="vocabularies of up to so many values are scored whole")
    epochs: Positive = 10
    targets: Positive = Field(4, description="targets drawn of each user in an epoch, at most")
    held_out: Annotated[int, Field(ge=0)] = Field(
        1000, description="users whose last item is kept from training to measure recall by, at most, and at most a fifth of all"
    )


class ReSidSettings(FamaeSettings):
    """FAMAE's, and the tree's shape."""

    branching: tuple[int, ...] = Field(
        (),
        description="children of a node on each level, the last at least the largest bucket; empty: buckets of some 15 items, levels even",
    )


class UniSidSettings(Strict):
    """Shape and training of the network; the paper's own values are those of a language model of 3 billion weights."""

    dim: Positive = 64
    heads: Positive = 4
    layers: Positive = 2
    field_tokens: Positive = Field(12, description="buckets of a multi-valued or text field that are read")
    content_tokens: Positive = Field(2, description="tokens that the content vector is projected to")
    epochs: Positive = 30
    batch: Positive = Field(256, description="items of a step, half of them drawn from the categories of the others; two views of each")
    lr: float = Field(1e-3, gt=0, description="4e-5 in the paper")
    temperature: float = Field(0.1, gt=0, description="of all InfoNCE terms")
    mask: Fraction = Field(0.3, description="share of an item's buckets that a view hides")
    path: tuple[str, ...] | None = Field(
        None, description="category fields from coarse to fine; by default all single-valued categorical ones by their number of values"
    )
    reconstruction: float = Field(0.1, ge=0, description="weight of the summary, as in the paper")
    balance: float = Field(2.0, ge=0, description="weight of the balance term; without it a level uses a code for each category or so")
    encoder_path: str = Field("", description="folder of a Hugging Face encoder that reads the items' names (extra llm); empty: none")
    encoder_tokens: Positive = Field(4, description="tokens that an encoded name is averaged to")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} found with {self.heads} heads: a multiple of the heads expected")
        return self


class DigerSettings(Strict):
    """Pre-training, generator, exploration and joint training.

    Constants of the method (tau, lambda, sigma, r, rates, weight decay, batch) are the paper's for Beauty; the generator, its history, the
    warm-up and the number of epochs are cut down to what a CPU trains in minutes, and ``tokenizer_lr`` is raised for the fewer steps.
    """

    rqvae: RqVaeSettings = Field(RqVaeSettings(), description="of the pre-training; beta also of the joint training")
    exploration: Literal["sdud", "frqud", "both", "constant", "none", "gaussian"] = Field(
        "both",
        description="Gumbel noise whose scale follows the loss, that crowded codes alone have, both, or that stays; no noise; or SDUD with "
        "normal noise (the last three are ablations)",
    )
    gradient: Literal["inputs", "joint", "detached"] = Field(
        "inputs",
        description="where the generator's loss reaches the tokenizer: by what is read; joint: by the targets too, as published; "
        "detached: nowhere, it reads SIDs of the last refresh (both ablations: with the first, codes collapse)",
    )
    tau: float = Field(2.0, gt=0, description="temperature of the soft assignment; the paper has 1.5 for Yelp")
    sdud_sigma: float = Field(2.0, ge=0, description="scale of the noise at the start; 1 for Instruments")
    sdud_lambda: float = Field(1.7, ge=0, description="the noise decays towards max(0, sqrt(L_gen) - lambda); 1.8 for Instruments")
    frqud_ratio: float = Field(
        1.5, gt=0, description="a code with more than r / K of the items is crowded; 2.0 for Instruments, 1.1 for Yelp"
    )
    layers: Positive = Field(2, description="of the generator's encoder, and of its decoder; 6 in the paper")
    dim: Positive = Field(64, description="128 in the paper")
    feed_forward: Positive = Field(256, description="512 in the paper")
    heads: Positive = 4
    head_dim: Positive = Field(16, description="64 in the paper")
    dropout: Fraction = 0.1
    history: Positive = Field(20, description="newest items of a user that are read; 50 in the paper")
    epochs: Positive = Field(10, description="of the joint training")
    batch: Positive = 256
    lr: float = Field(1e-3, gt=0, description="of generator and sigma")
    tokenizer_lr: float = Field(1e-4, gt=0, description="of encoder, decoder and codes; 1e-5 in the paper, over some ten times the steps")
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: Annotated[int, Field(ge=0)] = Field(50, description="steps in which the rates rise; 500 in the paper")
    grad_clip: float = Field(1.0, gt=0, description="norm of the generator's gradient")

    @property
    def network(self) -> GeneratorSettings:
        """Shape of the generator."""
        own = ("layers", "dim", "feed_forward", "heads", "head_dim", "dropout", "history")
        return GeneratorSettings(**{name: getattr(self, name) for name in own})


class TokenizersConfig(Strict):
    """How SIDs are made beforehand, where ``tokenizer`` names another kind than ``dig``; a section a kind that has settings of its own."""

    content: Content = Field(
        "fields", description="what is known of an item: its static fields, or what it was bought with on the days that move weights"
    )
    conflicts: Conflicts = Field(
        "none",
        description="items that share a SID before the ranker is trained: left so; the nearest free last code, which keeps SIDs from "
        "day to day; last codes by balanced transport; or the last of the model's levels told by rank (suffix), which keeps no SIDs",
    )
    refit: Literal["on_change", "daily"] = Field(
        "on_change",
        description="on_change keeps the tokenizer of the version promoted before while these settings, SID shape, seed and features stay "
        "(train.warm_start); daily fits it anew, which moves nearly all SIDs",
    )
    rqvae: RqVaeSettings = RqVaeSettings()
    resid: ReSidSettings = ReSidSettings()
    unisid: UniSidSettings = UniSidSettings()
    diger: DigerSettings = DigerSettings()

    def of(self, kind: Kind) -> Strict | None:
        """Settings of a kind; None if it has none of its own."""
        found = getattr(self, kind, None)
        return found if isinstance(found, Strict) else None
