"""Which items speak for which, of a date: what the affinity of ``dig_models.affinity`` goes by, fitted from the lake before training.

The events are those of the days before the first example, the items those of the catalogue on the eve of it: neither an example, a label
nor an evaluated day has a say.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from dig_models.affinity import Neighbours
from dig_models.files import replacing
from jobs.lake import code_digest
from jobs.train_inputs import TrainInputs, neighbour_catalogue, neighbour_days

log = logging.getLogger(__name__)
CODE = ("dig_models.affinity", "jobs.neighbours")
KEY = "key"


def neighbours(inputs: TrainInputs, file: Path) -> Neighbours:
    """Fit them, or read those that were fitted before from the same events by the same settings, as by a training which was cut short.

    Args:
        inputs: of the training.
        file: where they are kept until the bundle holds them; appears whole or not at all, whoever else writes it.
    """
    key = key_of(inputs)
    if Neighbours.about(file).get(KEY) == key:
        return Neighbours.load(file)
    found = _fitted(inputs)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as writing:
        found.save(writing, **{KEY: key})
    return found


def _fitted(inputs: TrainInputs) -> Neighbours:
    config, days = inputs.config.model.affinity, neighbour_days(inputs.window)
    items = inputs.lake.read_arrow("item_features", [neighbour_catalogue(inputs.window)], columns=["item_hash"])
    users, keys = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for day in days:
        table = inputs.lake.read_arrow("u2i_daily", [day], columns=["user_hash", "key_name", "key", "events"])
        bought = table.filter(pc.and_(pc.equal(table.column("key_name"), "item"), pc.greater(table.column("events"), 0)))
        users.append(bought.column("user_hash").to_numpy())
        keys.append(bought.column("key").to_numpy())
    hash_N, user_E, item_E = items.column("item_hash").to_numpy(), np.concatenate(users), np.concatenate(keys)
    found = Neighbours.fit(hash_N, user_E, item_E, ridge=config.ridge, keep=config.keep)
    if not len(found.item_X):
        log.warning(
            "affinity: no item speaks for another by the %d events of %s to %s, so it is 0 everywhere", len(user_E), days[0], days[-1]
        )
    else:
        log.info(
            "affinity: %d items, %d entries, from %d events of %s to %s", len(found), len(found.item_X), len(user_E), days[0], days[-1]
        )
    return found


def key_of(inputs: TrainInputs) -> str:
    """Digest of all that decides them: events, catalogue, settings and code."""
    facts = {
        "settings": inputs.config.model.affinity.model_dump(mode="json"),
        "events": inputs.inputs["u2i_daily"],
        "catalogue": inputs.inputs["item_features"][neighbour_catalogue(inputs.window).isoformat()],
        "code": code_digest(*CODE),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
