"""Settings of ``benchmarks.tokenizers``: what is published and what two cores can do, and the kinds and variants that are compared."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dig_models.config import Positive, Strict
from dig_models.generator.settings import GeneratorSettings
from dig_models.tokenizers.base import Tokenizer
from dig_models.tokenizers.settings import RqVaeSettings, TokenizersConfig

ModeName = Literal["quick", "gpu", "full"]
SASREC, POPULAR, CO_OCCURRENCE = "sasrec", "popular", "co_occurrence"
REFERENCES = (POPULAR, CO_OCCURRENCE, SASREC)
"""Rows without SIDs."""
NOT_HERE = {
    "dig": "learned by the training of a click ranker from exposures and crosses, which these data sets do not have; DIG is judged "
    "against SIDs made beforehand, on the same requests, by `benchmarks.ablation` and `benchmarks.baselines`",
}
"""Kinds that are not compared here, and why."""
VARIANTS: dict[str, dict[str, str]] = {
    "rqvae:tiger": {"preset": "tiger"},
    "rqvae:letter": {"preset": "letter"},
    "diger:joint": {"gradient": "joint"},
    "diger:detached": {"gradient": "detached"},
}
"""Kinds with settings that have a name of their own, ``KIND:NAME``."""
OF_DATASET: dict[str, dict[str, dict[str, str]]] = {"yelp": {"diger": {"tau": "1.5", "frqud_ratio": "1.1", "sdud_lambda": "1.7"}}}
"""Settings that were published for a data set, by kind."""


class SasRecSettings(Strict):
    """Training of SASRec (arXiv 1808.09781) with a softmax over all items."""

    dim: Positive = 64
    layers: Positive = 2
    history: Positive = 50
    lr: float = Field(1e-3, gt=0)
    batch: Positive = Field(256, description="stretches of users' events a step; every event but a user's first is a target")
    epochs: Positive = 200
    patience: Positive = Field(10, description="epochs without a better N@10 after which training ends")
    seed: int = 2017


class Mode(Strict):
    """Everything that differs between a quick look and the published constants."""

    name: ModeName
    generator: GeneratorSettings = GeneratorSettings()
    sasrec: SasRecSettings = SasRecSettings()
    validation_users: Positive | None = Field(None, description="users drawn to choose the best epoch by; None takes all")
    test_users: Positive | None = Field(None, description="users drawn to judge by; None takes all")
    kinds: dict[str, dict[str, str]] = Field({}, description="settings of kinds and variants that are not their defaults")
    compared: tuple[str, ...] = Field((), description="rows that are made where none are asked for")

    @property
    def comparable(self) -> bool:
        """Whether its generator has published constants, so that published figures say something of its own."""
        return self.name != "quick"


QUICK = Mode(
    name="quick",
    generator=GeneratorSettings(
        layers=1,
        dim=64,
        feed_forward=128,
        heads=4,
        head_dim=16,
        history=6,
        lr=3e-3,
        warmup_steps=300,
        schedule="cosine",
        batch=128,
        epochs=6,
        beam=20,
    ),
    sasrec=SasRecSettings(history=6, lr=3e-3, epochs=6),
    validation_users=1000,
    test_users=4000,
    kinds={
        "rqvae": {"epochs": "200"},
        "resid": {"epochs": "3"},
        "unisid": {"epochs": "4"},
        "diger": {"epochs": "1", "history": "6", "layers": "1"},
    },
    compared=(*REFERENCES, "rkmeans", "rqvae", "resid", "unisid", "diger"),
)
_PUBLISHED_KINDS = {
    "rqvae:tiger": {"epochs": "2000"},
    "rqvae:letter": {"epochs": "2000"},
}
_COMPARED = (*REFERENCES, "rkmeans", "rqvae:tiger", "rqvae:letter", "resid", "unisid", "diger")
GPU = Mode(
    name="gpu",
    generator=GeneratorSettings(
        layers=4,
        dim=128,
        feed_forward=512,
        heads=4,
        head_dim=32,
        lr=5e-3,
        weight_decay=1e-5,
        batch=2048,
        beam=50,
        epochs=150,
        validate_every=10,
        patience=5,
    ),
    validation_users=2000,
    kinds=_PUBLISHED_KINDS,
    compared=_COMPARED,
)
"""ReSID's generator (arXiv 2602.02338), for an hour or so of a GPU; tokenizers are fitted on the CPU, DIGER's joint training is small."""
FULL = Mode(
    name="full",
    kinds=_PUBLISHED_KINDS
    | {
        "resid": {"batch": "2048", "epochs": "80"},
        "diger": {
            "layers": "6",
            "dim": "128",
            "feed_forward": "512",
            "head_dim": "64",
            "history": "50",
            "warmup_steps": "500",
            "tokenizer_lr": "1e-5",
            "epochs": "100",
        },
    },
    compared=tuple("diger:joint" if name == "diger" else name for name in _COMPARED),
)
"""DIGER's generator (arXiv 2601.19711), also of its joint training, which moves targets too, as published; ``diger`` is of that size with
the gradient that is ours.

How long that and FAMAE ran is not told: 100 and 80 epochs are ours. The RQ-VAE's 2,000 epochs are a tenth of what was published:
``--set rqvae.epochs=20000`` asks for all. UniSID has its defaults, for what is published is a language model. Tokenizers are fitted on the
CPU, DIGER with a generator of published size too, which takes days.
"""
MODES = {"quick": QUICK, "gpu": GPU, "full": FULL}


def kind_of(name: str) -> str:
    """The kind of a kind or variant."""
    return name.partition(":")[0]


def settings_of(mode: Mode, dataset: str, name: str) -> dict[str, str]:
    """Settings of a kind or variant: those of the mode for the kind, of the data set, of the variant, of the mode for the variant.

    Raises:
        ValueError: a variant that there is not.
    """
    kind = kind_of(name)
    if name != kind and name not in VARIANTS:
        raise ValueError(f"--kinds {name}: no such variant, expected one of {', '.join(VARIANTS)}")
    out = mode.kinds.get(kind, {}) | OF_DATASET.get(dataset, {}).get(kind, {})
    return out if name == kind else out | VARIANTS[name] | mode.kinds.get(name, {})


def variant_of(kind: str, changes: dict[str, str]) -> str:
    """The variant that settings make of a kind, the kind itself where none."""
    found = [name for name, own in VARIANTS.items() if kind_of(name) == kind and own.items() <= changes.items()]
    return found[0] if found else kind


def kind_settings(found: type[Tokenizer], changes: dict[str, str]) -> Strict | None:
    """Settings of a kind from ``KEY=VALUE`` as on the command line; None leaves the kind its own defaults.

    ``preset`` starts from the RQ-VAE's settings of that name instead.

    Raises:
        ValueError: the kind has no settings, or not these.
    """
    if not changes:
        return None
    default = getattr(TokenizersConfig(), found.kind, None)
    if not isinstance(default, Strict):
        raise ValueError(f"tokenizer {found.kind!r} has no settings, found {', '.join(changes)}")
    try:
        if isinstance(default, RqVaeSettings) and "preset" in changes:
            return RqVaeSettings.preset(**{"name" if key == "preset" else key: value for key, value in changes.items()})
        return type(default).model_validate(changes)
    except ValueError as error:
        raise ValueError(f"tokenizer {found.kind!r}: {error}") from None


def reads_sequences(kind: str, settings: Strict | None) -> bool:
    """Whether a fit reads what users did; if not, its SIDs are the same in every order."""
    return kind in ("resid", "diger") or getattr(settings, "align", 0.0) > 0


def fit_arguments(settings: Strict | None) -> dict[str, Any]:
    """Keyword arguments of ``Tokenizer.fit`` for settings."""
    return {} if settings is None else {"settings": settings}
