"""Settings of DIGER, and what they give its exploration."""

from __future__ import annotations

from typing import Any

from dig_models.quantize.gumbel import Exploration
from dig_models.tokenizers.settings import DigerSettings

__all__ = ["DigerSettings", "exploring"]


def exploring(settings: DigerSettings, levels: int, codes: int) -> Exploration:
    """Noise and its decay at the start."""
    made: dict[str, Any] = {"tau": settings.tau}
    if settings.exploration in ("sdud", "both", "gaussian"):
        made |= {"sigma": settings.sdud_sigma, "offset": settings.sdud_lambda}
    if settings.exploration in ("frqud", "both"):
        made["ratio"] = settings.frqud_ratio
    if settings.exploration in ("none", "gaussian"):
        made["noise"] = settings.exploration
    return Exploration(levels, codes, **made)
