"""What follows every move of ``CURRENT``: mirrors of the index (``index.mirrors``) and the item maps in Redis (``serve.redis``).

The DAGs give each a task of its own; whoever moves ``CURRENT`` by hand has them brought along here.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config import Config
from jobs.entry import ServiceAway
from jobs.mirrors import push_all
from jobs.redis_sink import sink


@dataclass(frozen=True, kw_only=True)
class Following:
    """A copy that was brought to what serves.

    Attributes:
        place: what it is and where, as ``mirror s3://bucket/index``.
        generation: what it serves now.
    """

    place: str
    generation: str


def follow_all(config: Config, *, only_behind: bool = False) -> list[Following]:
    """Bring every copy that the settings name to what ``CURRENT`` serves; Redis is tried also after a mirror has failed.

    Doing it again changes nothing where nothing is missing.

    Args:
        config: settings in force.
        only_behind: leave a mirror alone that serves the same already; else all that it holds is read and compared.

    Raises:
        IndexMissing: nothing was published yet.
        IndexCorrupt: what serves is damaged.
        JobError: the same, found while Redis was written.
        ServiceAway: some copies were not brought up to date; names each, and what tries again. What serves stays as it was moved.
    """
    done, failed = [], []
    try:
        done += [Following(place=f"mirror {one.url}", generation=one.generation) for one in push_all(config, only_behind=only_behind)]
    except ServiceAway as error:
        failed.append(str(error))
    if config.serve.redis.url:
        try:
            sunk = sink(config)
            done.append(Following(place=f"redis {sunk.url}", generation=sunk.generation))
        except ServiceAway as error:
            failed.append(f"{error} (python -m jobs.redis_sink tries again)")
    if failed:
        raise ServiceAway("; ".join(failed))
    return done
