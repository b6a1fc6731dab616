"""Shape and training of the generator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dig_models.config import Fraction, Positive, Strict


class GeneratorSettings(Strict):
    """A T5 and its training; the defaults are those of DIGER's tables (arXiv 2601.19711)."""

    layers: Positive = Field(6, description="of the encoder, and of the decoder")
    dim: Positive = 128
    feed_forward: Positive = 512
    heads: Positive = 4
    head_dim: Positive = 64
    dropout: Fraction = 0.1
    history: Positive = Field(50, description="newest items of a user that are read")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: Annotated[int, Field(ge=0)] = Field(500, description="steps in which the rate rises to lr")
    schedule: Literal["constant", "cosine"] = Field("constant", description="of the rate after that; cosine ends at 0 with the last epoch")
    batch: Positive = Field(256, description="examples a step")
    grad_clip: float = Field(1.0, gt=0)
    epochs: Positive = 200
    validate_every: Positive = Field(1, description="epochs between two validations")
    patience: Positive = Field(10, description="validations without a better N@10 after which training ends")
    beam: Positive = Field(50, description="prefixes kept per level")
    search_batch: Positive = Field(64, description="histories searched for together")
    seed: int = 2017
