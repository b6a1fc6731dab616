"""Settings of ``benchmarks.tokenizers``: what is published and what two cores can do, the kinds compared, and published figures."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_type_hints

from pydantic import Field

from dig_models.config import Positive, Strict
from dig_models.generator.settings import GeneratorSettings
from dig_models.tokenizers.base import Tokenizer

ModeName = Literal["quick", "full"]
SASREC = "sasrec"
NOT_HERE = {
    "dig": "learned by the training of a click ranker from exposures and crosses, which these data sets do not have; DIG is judged "
    "against SIDs made beforehand, on the same requests, by `benchmarks.ablation` and `benchmarks.baselines`",
}
"""Kinds that are not compared here, and why."""


class SasRecSettings(Strict):
    """Training of SASRec (arXiv 1808.09781) with a softmax over all items."""

    dim: Positive = 64
    layers: Positive = 2
    history: Positive = 50
    lr: float = Field(1e-3, gt=0)
    batch: Positive = Field(256, description="users a step; every event of theirs is a target")
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
    kinds: dict[str, dict[str, str]] = Field({}, description="settings of kinds that are not their defaults")


QUICK = Mode(
    name="quick",
    generator=GeneratorSettings(
        layers=2,
        dim=64,
        feed_forward=128,
        heads=4,
        head_dim=16,
        history=6,
        lr=5e-3,
        warmup_steps=100,
        schedule="cosine",
        epochs=3,
        beam=20,
    ),
    sasrec=SasRecSettings(history=20, epochs=8),
    validation_users=1000,
    test_users=4000,
)
FULL = Mode(name="full", kinds={"rqvae": {"preset": "tiger", "epochs": "2000"}})
"""Published constants; TIGER's 20,000 epochs of the RQ-VAE are a tenth here, ``--set rqvae.epochs=20000`` asks for all."""
MODES = {"quick": QUICK, "full": FULL}

PUBLISHED: dict[tuple[str, str], tuple[float, float, str]] = {
    ("beauty", SASREC): (0.0588, 0.0313, "arXiv 2601.19711"),
    ("beauty", "rqvae"): (0.0610, 0.0331, "TIGER in arXiv 2601.19711"),
    ("beauty", "diger"): (0.0683, 0.0372, "FrqUD, arXiv 2601.19711"),
    ("beauty", "unisid"): (0.0741, 0.0406, "TIGER with UniSID's SIDs, from a language model, arXiv 2602.10445"),
    ("yelp", SASREC): (0.0296, 0.0152, "arXiv 2601.19711"),
    ("yelp", "rqvae"): (0.0407, 0.0213, "TIGER in arXiv 2601.19711"),
    ("yelp", "diger"): (0.0432, 0.0227, "FrqUD, arXiv 2601.19711"),
}
"""By data set and kind: R@10, N@10 on the published order, and where they stand. ReSID's table (arXiv 2602.02338) is of other data sets."""


def kind_settings(found: type[Tokenizer], changes: dict[str, str]) -> Strict | None:
    """Settings of a kind from ``KEY=VALUE`` as on the command line; None leaves the kind its own defaults.

    ``preset`` starts from the kind's settings of that name instead, where it has such.

    Raises:
        ValueError: the kind has no settings, or not these.
    """
    if not changes:
        return None
    hint = get_type_hints(found.fit).get("settings") if "settings" in inspect.signature(found.fit).parameters else None
    shapes = [one for one in (hint, *get_args(hint)) if inspect.isclass(one) and issubclass(one, Strict)]
    if not shapes:
        raise ValueError(f"tokenizer {found.kind!r} has no settings, found {', '.join(changes)}")
    try:
        if "preset" in changes and hasattr(shapes[0], "preset"):
            preset: Strict = shapes[0].preset(**{"name" if key == "preset" else key: value for key, value in changes.items()})
            return preset
        out: Strict = shapes[0].model_validate(changes)
    except ValueError as error:
        raise ValueError(f"tokenizer {found.kind!r}: {error}") from None
    return out


def fit_arguments(settings: Strict | None) -> dict[str, Any]:
    """Keyword arguments of ``Tokenizer.fit`` for settings."""
    return {} if settings is None else {"settings": settings}
