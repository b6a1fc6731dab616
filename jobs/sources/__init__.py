"""Sources: raw data as lake tables."""

from __future__ import annotations

from jobs.config import DatasetConfig
from jobs.sources.base import Source


def open_source(dataset: DatasetConfig) -> Source:
    """The source that a data set's ``source.kind`` names."""
    if dataset.source.kind == "complete_journey":
        from jobs.sources.complete_journey import CompleteJourney

        return CompleteJourney(dataset)
    from jobs.sources.tables import Tables

    return Tables(dataset)
