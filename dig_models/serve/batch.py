"""Lists for every user of a generation, part by part: what the workers of a batch job run.

A part is the users whose hash gives it modulo the number of parts, which is also how cross arrays are cut, so a worker touches few of their
pages. The generation is opened once a process, whatever number of parts the process is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from dig_models.config import RetrieveConfig
from dig_models.serve.service import Search, Service

CHUNK = 128
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("place", pa.int32()),
        pa.field("item_id", pa.string()),
        pa.field("sid", pa.string()),
        pa.field("probability", pa.float64()),
        pa.field("generation", pa.string()),
        pa.field("ds", pa.string()),
    ]
)


@lru_cache(maxsize=1)
def opened(root: str, generation: str, settings: RetrieveConfig) -> Service:
    """The generation, opened by this process once; its bytes were compared with the manifest by whoever gave the job out."""
    torch.set_num_threads(1)
    return Service.open(root, generation, settings=settings, checksums=False)


def lists(
    batches: Iterable[pa.RecordBatch], *, root: str, generation: str, settings: RetrieveConfig, search: Search, parts: int, ds: str
) -> Iterator[pa.RecordBatch]:
    """The best items of all users of some parts, as rows of ``SCHEMA``, ``CHUNK`` users at a time.

    Args:
        batches: numbers of parts in the first column, as Spark's ``mapInArrow`` hands them out.
        root: the index, on a path that every worker reaches.
        generation: id.
        settings: beam and re-ranking depth.
        search: ``k`` and whether to leave out what was bought.
        parts: how many parts there are.
        ds: day of the rows.
    """
    for batch in batches:
        for part in batch.column(0).to_pylist():
            service = opened(root, generation, settings)
            member_B = np.flatnonzero(service.reader.state.user_B % parts == part)
            for at in range(0, len(member_B), CHUNK):
                yield _rows(service, member_B[at : at + CHUNK].astype(np.int64), search, ds)


def _rows(service: Service, at_B: np.ndarray[tuple[int], np.dtype[np.int64]], search: Search, ds: str) -> pa.RecordBatch:
    reader = service.reader
    item_BJ, score_BJ = service.search(reader.state, at_B, search)
    request_R, place_R = np.nonzero(item_BJ)
    item_R = item_BJ[request_R, place_R].tolist()
    table = reader.bundle.items
    columns = [
        [reader.user_ids[row] for row in at_B[request_R].tolist()],
        (place_R + 1).astype(np.int32),
        [str(table.id_N[row]) for row in item_R],
        ["-".join(map(str, reader.sid(row))) for row in item_R],
        np.exp(score_BJ[request_R, place_R].astype(np.float64)),
        [reader.manifest.id] * len(item_R),
        [ds] * len(item_R),
    ]
    return pa.RecordBatch.from_arrays([pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
