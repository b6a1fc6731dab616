"""The registered model as MLflow loads it: raw values in, the chance of an event and the semantic ID out.

Stored as source beside the bundle (no pickle). Each row of the input is one user, moment and item:

* ``u_<field>``, ``c_<field>``: user and context fields as strings, null if unknown; unseen values are fine, they are hashed;
* ``ts``: seconds of the local clock since 1970-01-01; ``history_item_ids`` and ``history_ts``: the user's past events, newest first;
* ``item_id``: the item; one that the catalogue does not hold is scored as an item of which nothing is known, and has no SID;
* ``crosses``: raw u2i crosses, popularity and offer codes in the order of ``FeatureSpec.raw_cross_names``, counts as of ``ts``;
  the affinity of history and item, where the model reads it, is not among them: the model computes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from dig_models.affinity import beside
from dig_models.bundle import Bundle, load_bundle
from dig_models.features import SECONDS_PER_DAY, FeatureSpec, bucket_of, hash_id
from dig_models.train.data import RequestTable, collate

EXPOSED = 0


def example(bundle: Bundle) -> pd.DataFrame:
    """Two rows that predict: items of the catalogue, a user with a short history and one with none."""
    spec, items = bundle.spec, bundle.items
    known = [str(i) for i in items.id_N[1:3]]
    rows: list[dict[str, Any]] = []
    for item, past in ((known[0], known[-1:]), (known[-1], [])):
        fields: dict[str, Any] = {f"u_{f.name}": "1" for f in spec.user_fields} | {f"c_{f.name}": "1" for f in spec.context_fields}
        moment = 1_500_000_000
        times = [moment - SECONDS_PER_DAY for _ in past]
        crosses = [0.0] * spec.cross_width_raw
        rows.append({**fields, "ts": moment, "history_item_ids": past, "history_ts": times, "item_id": item, "crosses": crosses})
    return pd.DataFrame(rows)


def signature(spec: FeatureSpec) -> ModelSignature:
    """Columns in and out; fields of users and context may be missing, everything else is required."""
    fields = [f"u_{f.name}" for f in spec.user_fields] + [f"c_{f.name}" for f in spec.context_fields]
    text, number, real = DataType.string, DataType.long, DataType.double
    required = {
        "ts": number,
        "history_item_ids": Array(text),
        "history_ts": Array(number),
        "item_id": text,
        "crosses": Array(real),
    }
    inputs = [ColSpec(text, name, required=False) for name in fields] + [ColSpec(kind, name) for name, kind in required.items()]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([ColSpec(real, "probability"), ColSpec(text, "sid")]))


@torch.no_grad()
def predict(bundle: Bundle, rows: pd.DataFrame) -> pd.DataFrame:
    """Probability that the promoted item is taken, and the item's SID.

    Returns:
        One row per input row: ``probability`` in [0, 1], ``sid`` such as ``3-17-60`` (empty for an unknown item).

    Raises:
        ValueError: ``crosses`` are not as many as the feature spec names.
    """
    spec, items, model = bundle.spec, bundle.items, bundle.model
    requests = _requests(bundle, rows)
    batch = collate(requests, np.arange(len(rows)), spec=spec, items=items, lookup=_never, keep_rate=1.0)
    item_R = items.rows(_hashes(rows["item_id"]))
    raw_RW = np.array([np.asarray(c, dtype=np.float32) for c in rows["crosses"]]).reshape(len(rows), -1)
    cross_RC, request_R = spec.transform(raw_RW), torch.arange(len(rows))
    if model.affinity is not None:
        cross_RC = beside(cross_RC, model.affinity.pairs(batch.history_BH.numpy(), request_R.numpy(), item_R))
    e_RD = model.encode_items(torch.from_numpy(item_R))
    logit_R = model.rank_logit(model.user_side(batch), request_R, e_RD, torch.from_numpy(cross_RC), torch.full_like(request_R, EXPOSED))
    sids = ["-".join(map(str, bundle.codes_NL[row])) if row else "" for row in item_R]
    return pd.DataFrame({"probability": torch.sigmoid(logit_R.double()).numpy(), "sid": sids})


def _requests(bundle: Bundle, rows: pd.DataFrame) -> RequestTable:
    spec = bundle.spec
    history = [_hashes(past)[: spec.history_length] for past in rows["history_item_ids"]]
    times = [np.asarray(past, dtype=np.int64)[: spec.history_length] for past in rows["history_ts"]]
    for row, (past, at) in enumerate(zip(history, times, strict=True)):
        if len(past) != len(at):
            raise ValueError(f"row {row}: history_item_ids has {len(past)} entries, history_ts {len(at)}; they must be parallel")
    none = np.zeros(0, dtype=np.int64)
    return RequestTable(
        user_B=np.zeros(len(rows), dtype=np.int64),
        ts_B=rows["ts"].to_numpy().astype(np.int64),
        offer_B=np.zeros(len(rows), dtype=np.int64),
        user_BF=_fields(spec, rows),
        history_start=np.cumsum([0, *map(len, history)]).astype(np.int64),
        history_item=bundle.items.rows(np.concatenate([none, *history])),
        history_ts=np.concatenate([none, *times]),
        row_start=np.zeros(len(rows) + 1, dtype=np.int64),
        item_R=none,
        label_R=np.zeros(0, dtype=np.int8),
        source_R=np.zeros(0, dtype=np.int8),
        weight_R=np.zeros(0, dtype=np.float32),
        cross_RW=np.zeros((0, spec.cross_width_raw), dtype=np.float32),
    )


def _fields(spec: FeatureSpec, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    columns = [(f"u_{f.name}", f.buckets) for f in spec.user_fields] + [(f"c_{f.name}", f.buckets) for f in spec.context_fields]
    out_BF = np.zeros((len(rows), len(columns)), dtype=np.int64)
    for at, (name, buckets) in enumerate(columns):
        if name in rows:
            out_BF[:, at] = [bucket_of(None if pd.isna(value) else str(value), buckets) for value in rows[name]]
    return out_BF


def _hashes(values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([hash_id(str(value)) for value in values], dtype=np.int64)


def _never(user_P: Any, ts_P: Any, offer_P: Any, item_P: Any) -> Any:
    raise AssertionError("a batch without random negatives looked up pairs")


class DigModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are Any to mypy here
    """DIG's ranking path behind MLflow's pyfunc interface; see the module."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle that lies beside this source."""
        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """See ``predict`` of the module."""
        return predict(self.bundle, model_input)


if __name__ == "__main__" or not __name__.startswith("jobs."):  # MLflow runs this file, the registration imports it
    mlflow.models.set_model(DigModel())
