"""Which modules decide what each job writes: their sources are the code digest of a marker. Needs no Spark."""

from __future__ import annotations

from functools import cache

from jobs.lake import code_digest, job_of

RAW_TABLES = ("interactions", "requests", "offers", "items", "users")
#: Every table of the lake, each after those that its days are made from.
TABLES = (*RAW_TABLES, "item_daily", "item_features", "u2i_daily", "u2i_crosses", "cross_arrays", "examples", "user_state")
#: Modules that decide the rows of every feature job.
SHARED_CODE = ("dig_models.features", "jobs.build", "jobs.dates", "jobs.hashing", "jobs.reach")
INGEST = ("jobs.ingest", "jobs.sources")
ITEM_FEATURES = ("jobs.item_features",)
U2I_CROSSES = ("dig_models.arrays", "dig_models.cross_files", "jobs.cross_arrays", "jobs.u2i_crosses")
EXAMPLES = ("dig_models.arrays", "dig_models.cross_files", "jobs.cross_arrays", "jobs.examples", "jobs.user_state")
#: What decides the lists that ``jobs.recommend`` writes, beside the generation.
RECOMMEND = (
    "dig_models.affinity",
    "dig_models.arrays",
    "dig_models.crosses",
    "dig_models.dig",
    "dig_models.index.catalogue",
    "dig_models.index.reader",
    "dig_models.index.state",
    "dig_models.nn",
    "dig_models.retrieve",
    "dig_models.serve.batch",
    "dig_models.serve.service",
    "dig_models.train.data",
    "jobs.recommend",
)

_OF_JOB = {
    "jobs.ingest": INGEST,
    "jobs.item_features": (*ITEM_FEATURES, *SHARED_CODE),
    "jobs.u2i_crosses": (*U2I_CROSSES, *SHARED_CODE),
    "jobs.examples": (*EXAMPLES, *SHARED_CODE),
}


@cache
def code_of(table: str) -> str:
    """Code digest that the marker of a day of a table holds if the day were built now."""
    return code_digest(*_OF_JOB[job_of(table)])
