"""Published figures beside which the rows of ``benchmarks.tokenizers`` stand: R@10 and N@10, leave-one-out in the published order.

Figures are of a method as it was run, so they are looked up by kind and by the settings that tell its variants apart.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.tokenizers_modes import SASREC
from dig_models.tokenizers.diger_settings import DigerSettings


class Published(NamedTuple):
    """A row of a published table."""

    recall: float
    ndcg: float
    source: str
    note: str = ""
    """In what the row beside it is not as published; empty where it is."""


_DIGER = "arXiv 2601.19711"
PUBLISHED: dict[tuple[str, str], Published] = {
    ("beauty", SASREC): Published(0.0588, 0.0313, _DIGER),
    ("beauty", "rqvae:tiger"): Published(0.0610, 0.0331, f"TIGER in {_DIGER}"),
    ("beauty", "rqvae:letter"): Published(0.0672, 0.0364, f"LETTER in {_DIGER}"),
    ("beauty", "diger:both"): Published(0.0696, 0.0376, f"both decays, {_DIGER}, with the generator that was trained along"),
    ("beauty", "diger:frqud"): Published(0.0683, 0.0372, f"FrqUD, {_DIGER}, with the generator that was trained along"),
    ("beauty", "unisid"): Published(0.0741, 0.0406, "TIGER with UniSID's SIDs, from a language model, arXiv 2602.10445"),
    ("yelp", SASREC): Published(0.0296, 0.0152, _DIGER),
    ("yelp", "rqvae:tiger"): Published(0.0407, 0.0213, f"TIGER in {_DIGER}"),
    ("yelp", "rqvae:letter"): Published(0.0426, 0.0231, f"LETTER in {_DIGER}"),
    ("yelp", "diger:both"): Published(0.0437, 0.0227, f"both decays, {_DIGER}, with the generator that was trained along"),
    ("yelp", "diger:frqud"): Published(0.0432, 0.0227, f"FrqUD, {_DIGER}, with the generator that was trained along"),
}
"""By data set and method. ReSID's table (arXiv 2602.02338) is of other data sets; of DIGER whose generator moves no code none is known."""
OUR_GRADIENT = "its targets moved too, the gradient of this row (`inputs`) is ours"
"""Said beside the published figures of DIGER where its targets do not move (``gradient: inputs``)."""


def published(dataset: str, kind: str, changes: dict[str, str]) -> Published | None:
    """The figures of a kind with these settings, with a note where the settings are not the published ones; None where there are none."""
    if kind == "diger":
        return _diger(dataset, changes)
    return PUBLISHED.get((dataset, f"rqvae:{changes.get('preset', 'small')}" if kind == "rqvae" else kind))


def _diger(dataset: str, changes: dict[str, str]) -> Published | None:
    """By kind of exploration; of ``gradient: inputs``, the default, with the note ``OUR_GRADIENT``."""
    default = DigerSettings()
    gradient = changes.get("gradient", default.gradient)
    found = PUBLISHED.get((dataset, f"diger:{changes.get('exploration', default.exploration)}"))
    if found is None or gradient == "detached":
        return None
    return found if gradient == "joint" else found._replace(note=OUR_GRADIENT)
