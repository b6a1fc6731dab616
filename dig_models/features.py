"""The feature spec: what every part of the pipeline agrees a model sees.

One ``FeatureSpec`` is derived from the data-set config; its digest is stored in examples, models and indexes, and a
mismatch is refused. Transforms live here once, in NumPy, for training, evaluation and serving.

Shape suffixes: ``B`` requests, ``R`` rows (request x item), ``P`` pairs, ``N`` catalogue items, ``H`` history, ``C`` model
crosses, ``W`` raw crosses.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from dig_models.config import Positive, Strict

HASH_SEED = 42
SECONDS_PER_DAY = 86_400
SOURCE_EXPOSED, SOURCE_ORGANIC, SOURCE_RANDOM = 0, 1, 2


class FeatureSpecMismatch(ValueError):
    """Two artefacts were made with different feature specs and must not be used together."""


def hash_id(value: str) -> int:
    """Signed 64-bit xxhash64 of a UTF-8 string, equal to Spark's ``xxhash64(string)`` (seed 42)."""
    unsigned = xxhash.xxh64_intdigest(value.encode(), seed=HASH_SEED)
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned


def bucket_of(value: str | None, buckets: int) -> int:
    """Bucket of a categorical value in ``1..buckets-1``; 0 for a missing one (none, or an empty string)."""
    return 0 if not value else hash_id(value) % (buckets - 1) + 1


class FieldSpec(Strict):
    """One field of an item, user or context: hashed buckets, or a number; ``popularity`` is a number that every catalogue item has."""

    name: str
    kind: Literal["categorical", "multi", "text", "numeric", "popularity"] = "categorical"
    buckets: Annotated[int, Field(ge=2)] = 1024  # bucket 0 stands for a missing value

    @property
    def is_number(self) -> bool:
        """Whether the field is a number, not buckets."""
        return self.kind in ("numeric", "popularity")

    @property
    def column(self) -> str:
        """Column of ``item_features`` that holds the field (``x_`` for numbers, ``f_`` for buckets, popularity by its own name)."""
        if self.kind == "popularity":
            return self.name
        return f"x_{self.name}" if self.kind == "numeric" else f"f_{self.name}"


class OfferSpec(Strict):
    """A categorical column of an offer (display, mailer): the code is the 1-based position in ``values``; 0 otherwise."""

    name: str
    values: tuple[str, ...]


class FeatureSpec(Strict):
    """What a model sees, in a fixed order (architecture: taxonomy I item static, II request, III cross)."""

    item_fields: tuple[FieldSpec, ...]
    user_fields: tuple[FieldSpec, ...]
    context_fields: tuple[FieldSpec, ...]
    u2i_keys: tuple[str, ...]
    windows: tuple[Positive, ...]
    offers: tuple[OfferSpec, ...] = ()
    history_length: Positive = 60
    history_days: Positive = 90
    half_life_days: float = 14.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the spec."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def lake_digest(self) -> str:
        """Digest of the spec without what no partition of the lake depends on: which popularity the item encoder reads."""
        own = {name: getattr(self, name) for name in FeatureSpec.model_fields}
        return FeatureSpec(**own | {"item_fields": tuple(f for f in self.item_fields if f.kind != "popularity")}).digest

    def require(self, digest: str, what: str) -> None:
        """Refuse ``what`` if it was made with another spec.

        Raises:
            FeatureSpecMismatch: the digests differ.
        """
        if digest != self.digest:
            raise FeatureSpecMismatch(
                f"{what} was made with feature spec {digest[:12]}, the config in force gives {self.digest[:12]}: "
                "rebuild it, or restore the data-set config it was made with"
            )

    @cached_property
    def raw_cross_names(self) -> tuple[str, ...]:
        """Names of the raw crosses ``W``, in stored order."""
        u2i = [n for k in self.u2i_keys for n in (*(f"u2i_{k}_n_{w}" for w in self.windows), f"u2i_{k}_days")]
        return (*u2i, *(f"pop_{w}" for w in self.windows), *(f"offer_{o.name}" for o in self.offers))

    @property
    def month(self) -> int:
        """The window nearest to 30 days, the shorter of two that are as near."""
        return min(self.windows, key=lambda w: (abs(w - 30), w))

    @property
    def cross_width_raw(self) -> int:
        """Number of raw crosses ``W``."""
        return len(self.raw_cross_names)

    @cached_property
    def cross_names(self) -> tuple[str, ...]:
        """Names of the model crosses ``C``, in the order of ``transform``."""
        plain = self.raw_cross_names[: self.cross_width_raw - len(self.offers)]
        return (*plain, *(f"offer_{o.name}={v}" for o in self.offers for v in o.values))

    @property
    def cross_width(self) -> int:
        """Number of model crosses ``C``."""
        return len(self.cross_names)

    def transform(self, raw_PW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw crosses to model crosses, ``(P, W) -> (P, C)`` float32.

        log1p for counts and popularity, ``2 ** (-days / half_life)`` for recency (0 if never), one-hot for offers.

        Raises:
            ValueError: the last axis is not ``W`` wide.
        """
        if raw_PW.shape[-1] != self.cross_width_raw:
            raise ValueError(f"raw crosses have {raw_PW.shape[-1]} columns, the feature spec expects {self.cross_width_raw}")
        head = self.cross_width_raw - len(self.offers)
        out_PC = np.zeros((*raw_PW.shape[:-1], self.cross_width), dtype=np.float32)
        np.log1p(np.maximum(raw_PW[..., :head], 0.0), out=out_PC[..., :head])
        step = len(self.windows) + 1
        for i in range(len(self.u2i_keys)):
            days = raw_PW[..., i * step + step - 1]
            out_PC[..., i * step + step - 1] = np.where(days < 0, 0.0, np.exp2(-days / self.half_life_days))
        at = head
        for i, offer in enumerate(self.offers):
            code = raw_PW[..., head + i].astype(np.int64)
            for j in range(len(offer.values)):
                out_PC[..., at + j] = code == j + 1
            at += len(offer.values)
        return out_PC
