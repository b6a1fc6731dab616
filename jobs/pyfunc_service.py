"""A generation of the index behind MLflow's pyfunc interface: user ids in, items out; ``mlflow models serve`` answers over HTTP.

``package`` writes a model folder that holds one generation whole, this file as its code (no pickle), and ``dig_models``. Loading it runs
these sources and reads weights and arrays, nothing else; but MLflow runs whatever code a model folder names, so load only folders that
you would run a program from. Input, one row a question:

* ``user_id``: one that the generation holds no state of is answered as a cold user;
* ``items`` (may be left out or null): for ``retrieve`` the only items that may be returned, for ``rank`` the items to put in order.

Params: ``mode`` (``retrieve`` or ``rank``), ``k``, ``beam`` (0: the settings'), ``exclude_bought``; they hold for all rows of a call.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from dig_models.config import RetrieveConfig, ServeConfig
from dig_models.index import generation as g
from dig_models.serve.service import InvalidQuery, Reply, Search, Service

ARTIFACT = "index"
PACKAGES = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "torch", "xxhash")
RETRIEVE, RANK = "retrieve", "rank"


def package(root: Path, to: Path, retrieve: RetrieveConfig, limits: ServeConfig, generation: str | None = None) -> str:
    """Write an MLflow model folder from a generation, by default the current one.

    Args:
        root: the index.
        to: the folder; it must not be there yet.
        retrieve: beam, re-ranking depth and default ``k`` of the model.
        limits: ``max_k``, ``max_users``, ``max_items`` and ``max_beam`` hold for it too.
        generation: id.

    Returns:
        The generation's id.

    Raises:
        IndexMissing: no such generation, or nothing was published.
        IndexCorrupt: the generation is damaged.
        FileExistsError: ``to`` is there.
    """
    if to.exists():
        raise FileExistsError(f"{to}: is there already; give a folder that is not")
    service = Service.open(root, generation, settings=retrieve)
    chosen = service.source.generation
    config = retrieve.model_dump() | limits.model_dump(include={"max_k", "max_users", "max_items", "max_beam"})
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.parent) as scratch:
        index = Path(scratch) / ARTIFACT
        shutil.copytree(g.generation_dir(root, chosen), index / g.GENERATIONS / chosen, copy_function=_link)
        (index / g.CURRENT).write_text(f"{chosen}\n")
        mlflow.pyfunc.save_model(
            path=str(to),
            python_model=str(Path(__file__)),
            artifacts={ARTIFACT: str(index)},
            model_config=config,
            code_paths=[str(Path(__file__).resolve().parent.parent / "dig_models")],
            signature=signature(retrieve),
            input_example=(example(service), {"mode": RETRIEVE, "k": min(3, limits.max_k)}),
            pip_requirements=[f"{name}=={installed(name).split('+')[0]}" for name in PACKAGES],
            metadata={"generation": chosen, "model": service.source.model_name, "version": service.source.model_version},
        )
    return chosen


def _link(source: str, target: str) -> str:
    """A second name for a file, which costs no space; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        return str(shutil.copy2(source, target))
    return target


def signature(retrieve: RetrieveConfig) -> ModelSignature:
    """Columns in and out, and params with their defaults."""
    text, texts = DataType.string, Array(DataType.string)
    inputs = Schema([ColSpec(text, "user_id"), ColSpec(texts, "items", required=False)])
    outputs = {"user_id": text, "known": DataType.boolean, "item_ids": texts, "sids": texts, "probabilities": Array(DataType.double)}
    outputs |= {"unknown_items": texts, "generation": text, "model_version": text}
    params = {"mode": (text, RETRIEVE), "k": (DataType.long, retrieve.k), "beam": (DataType.long, 0)}
    params |= {"exclude_bought": (DataType.boolean, False)}
    return ModelSignature(
        inputs=inputs,
        outputs=Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
        params=ParamSchema([ParamSpec(name, *of) for name, of in params.items()]),
    )


def example(service: Service) -> pd.DataFrame:
    """Two rows that are answered: a known user, if there is one, and a cold one."""
    return pd.DataFrame({"user_id": [*service.reader.user_ids[:1], "a new user"]})


def predict(service: Service, rows: pd.DataFrame, params: Mapping[str, Any], limits: Mapping[str, int]) -> pd.DataFrame:
    """Answers, one row a question, in the order asked.

    Raises:
        InvalidQuery: an unknown mode, or more than the limits allow.
    """
    users = [str(user) for user in rows["user_id"]]
    items: list[list[str] | None] = [None] * len(users)
    if "items" in rows:
        items = [None if _none(value) else [str(item) for item in value] for value in rows["items"]]
    most = {"rows": (len(users), limits["max_users"]), "k": (params["k"], limits["max_k"]), "beam": (params["beam"], limits["max_beam"])}
    most |= {"items": (max((len(i) for i in items if i is not None), default=0), limits["max_items"])}
    for name, (found, allowed) in most.items():
        if found > allowed:
            message = f"{name}: {found} asked, at most {allowed} allowed"
            raise InvalidQuery(message, where=name, expected=f"at most {allowed}", found=str(found))
    if params["mode"] not in (RETRIEVE, RANK):
        expected, found = f"{RETRIEVE} or {RANK}", params["mode"]
        raise InvalidQuery(f"mode {found!r}: expected {expected}", where="mode", expected=expected, found=str(found))
    replies = _ranked(service, users, items) if params["mode"] == RANK else _retrieved(service, users, items, params)
    return pd.DataFrame([_row(reply) for reply in replies])


def _none(value: Any) -> bool:
    return value is None or isinstance(value, float)  # pandas writes NaN where a column of lists has nothing


def _ranked(service: Service, users: list[str], items: list[list[str] | None]) -> list[Reply]:
    return [service.rank(user, wanted or ()) for user, wanted in zip(users, items, strict=True)]


def _retrieved(service: Service, users: list[str], items: list[list[str] | None], params: Mapping[str, Any]) -> list[Reply]:
    """Rows with the same items are answered together."""
    groups: dict[tuple[str, ...] | None, list[int]] = {}
    for place, wanted in enumerate(items):
        groups.setdefault(None if wanted is None else tuple(wanted), []).append(place)
    replies: dict[int, Reply] = {}
    for allowed, places in groups.items():
        search = Search(k=params["k"], beam=params["beam"] or None, exclude_bought=params["exclude_bought"], items=allowed)
        found = service.retrieve([users[place] for place in places], search)
        for place, answer in zip(places, found.answers, strict=True):
            replies[place] = Reply(source=found.source, answers=(answer,), unknown_items=found.unknown_items)
    return [replies[place] for place in range(len(users))]


def _row(reply: Reply) -> dict[str, Any]:
    answer, source = reply.answers[0], reply.source
    return {
        "user_id": answer.user,
        "known": answer.known,
        "item_ids": [i.item_id for i in answer.items],
        "sids": ["-".join(map(str, i.sid)) for i in answer.items],
        "probabilities": [i.probability for i in answer.items],
        "unknown_items": list(reply.unknown_items),
        "generation": source.generation,
        "model_version": source.model_version,
    }


class GenerationModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are Any to mypy here
    """``retrieve`` and ``rank`` of one generation; see the module."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the generation that lies beside this source, every byte compared with its manifest."""
        config = dict(context.model_config)
        self.limits = {name: config.pop(name) for name in ("max_k", "max_users", "max_items", "max_beam")}
        self.service = Service.open(context.artifacts[ARTIFACT], settings=RetrieveConfig.model_validate(config))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """See ``predict`` of the module; what cannot be answered is a 400 of MLflow's server."""
        default = {"mode": RETRIEVE, "k": self.service.settings.k, "beam": 0, "exclude_bought": False}
        try:
            return predict(self.service, model_input, default | (params or {}), self.limits)
        except InvalidQuery as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


if __name__ == "__main__" or not __name__.startswith("jobs."):  # MLflow runs this file, the packaging imports it
    mlflow.models.set_model(GenerationModel())
