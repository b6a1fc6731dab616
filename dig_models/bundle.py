"""A trained model on disk: weights, settings and the catalogue it was trained on; nothing else is needed to score.

``model.safetensors`` holds every tensor of the state (weights, codebooks, running statistics), ``model.json`` the model config,
the feature spec, the run's information and the sha256 of the other files, ``items.parquet`` the catalogue with its SIDs,
``reserved.parquet`` (if there are any) the SIDs of items outside the catalogue that keep theirs when they enter it,
``neighbours.safetensors`` (where ``affinity`` is on) the item-to-item matrix of ``dig_models.affinity``. No pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from dig_models.affinity import Neighbours, NeighboursError
from dig_models.config import ModelConfig
from dig_models.dig import Dig
from dig_models.faults import reached
from dig_models.features import FeatureSpec, FeatureSpecMismatch
from dig_models.files import naming_full_disk, replace_text, sync_tree
from dig_models.items import ItemTable
from dig_models.quantize.known import KnownSids

FORMAT = 1
WEIGHTS, SETTINGS, ITEMS, RESERVED = "model.safetensors", "model.json", "items.parquet", "reserved.parquet"
NEIGHBOURS = "neighbours.safetensors"
CODES = "code_NL"
# Of the items that training has shown the model keeps rows of its catalogue, the file their hashes, whatever catalogue they are in.
SHOWN_ROWS, SHOWN_BUCKETS, SHOWN_ITEMS = "shown.item_N", "shown.bucket_T", "shown.hash_X"
_RANDOM = {"normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"}


class BundleError(ValueError):
    """A bundle is missing, incomplete or damaged; the message names the file and what to do."""


class BundleMismatch(BundleError):
    """A bundle is whole, but this version of the code has another network or other settings for it."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
        model: in evaluation mode, with ``items`` and ``reserved`` set.
        codes_NL: SIDs of the items as saved, row 0 (unknown item) included; -1 where the model has no codebooks.
        info: what the training run said about itself.
    """

    model: Dig
    spec: FeatureSpec
    items: ItemTable
    codes_NL: NDArray[np.signedinteger[Any]]
    info: dict[str, Any]

    @property
    def sids(self) -> KnownSids:
        """SIDs of all items that the model knows: the catalogue's, and those in reserve."""
        return KnownSids.of(self.items.hash_N[1:], self.codes_NL[1:]).over(self.model.reserved)


def save_bundle(path: str | Path, model: Dig, items: ItemTable, info: dict[str, Any]) -> Path:
    """Write a bundle; ``model.json`` comes last, so a folder without it is no bundle.

    The codes written are those of the weights as they are now, under the model's assignment mode; ``model.reserved`` goes with them.

    Raises:
        ValueError: ``items`` is not the catalogue that the model has.
    """
    if model.items is None or not np.array_equal(model.items.hash_N, items.hash_N):
        raise ValueError("save_bundle: the items are not the model's catalogue: call model.set_items(items) first")
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / SETTINGS).unlink(missing_ok=True)
    if bool(model.quantizer.built):
        model.code_NL.copy_(model.codes(model.encode_catalogue()))
        model.code_NL[0] = -1
    with naming_full_disk(path):
        _save_weights(path, model)
        pq.write_table(items_to_arrow(items, model.spec, model.code_NL.cpu().numpy()), path / ITEMS)
        more = (*_save_reserved(path, model.reserved.without(items.hash_N[1:])), *_save_neighbours(path, model))
        reached("bundle.items_written")
    sync_tree(path)
    _save_settings(path, model, info, (WEIGHTS, ITEMS, *more))
    return path


def save_network(path: Path, model: Dig, info: dict[str, Any], reserved: KnownSids | None = None) -> None:
    """Write a model whose catalogue is kept elsewhere: weights, settings, and the SIDs in reserve for items outside that catalogue."""
    path.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(path):
        _save_weights(path, model, without=CODES)
        more = (*_save_reserved(path, reserved), *_save_neighbours(path, model))
    sync_tree(path)
    _save_settings(path, model, info, (WEIGHTS, *more))


def _save_weights(path: Path, model: Dig, without: str = "") -> None:
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name not in (SHOWN_ROWS, without)}
    save_file({**tensors, SHOWN_ITEMS: torch.from_numpy(model.shown.hashes())}, path / WEIGHTS)
    reached("bundle.weights_written")


def _load_weights(path: Path, model: Dig, without: str = "", *, assign: bool = False) -> None:
    """Take the tensors of a file; one that does not say what training has shown leaves the model without such notes.

    Raises:
        RuntimeError: tensors are missing, unknown, or of another shape.
    """
    tensors = load_file(path / WEIGHTS)
    hash_X = tensors.pop(SHOWN_ITEMS, None)
    missing, unknown = model.load_state_dict(tensors, strict=False, assign=assign)
    absent = {*missing} - {SHOWN_ROWS, without}
    if hash_X is None and SHOWN_BUCKETS in absent:
        absent.remove(SHOWN_BUCKETS)
    elif hash_X is None or hash_X.dtype != torch.int64 or hash_X.ndim != 1:
        absent.add(SHOWN_ITEMS)
    else:
        model.shown.take(hash_X.numpy())
    if unknown or absent:
        raise RuntimeError(f"weights missing: {', '.join(sorted(absent)) or 'none'}; unknown: {', '.join(unknown) or 'none'}")


def _save_reserved(path: Path, sids: KnownSids | None) -> tuple[str, ...]:
    """Names of the files that hold them: none if there are none."""
    (path / RESERVED).unlink(missing_ok=True)
    if sids is None or not len(sids):
        return ()
    codes = {f"s_{level + 1}": pa.array(sids.code_XL[:, level].astype(np.int32)) for level in range(sids.levels)}
    pq.write_table(pa.table({"item_hash": pa.array(sids.hash_X), **codes}), path / RESERVED)
    return (RESERVED,)


def _save_neighbours(path: Path, model: Dig) -> tuple[str, ...]:
    """Names of the files that hold them: none where the affinity is off.

    Raises:
        ValueError: it is on, and the model has none.
    """
    (path / NEIGHBOURS).unlink(missing_ok=True)
    if not model.config.affinity.enabled:
        return ()
    if model.neighbours is None:
        raise ValueError(f"{path}: model.affinity is on, but the model has no neighbours to save: set model.neighbours")
    model.neighbours.save(path / NEIGHBOURS)
    return (NEIGHBOURS,)


def _take_neighbours(path: Path, model: Dig) -> None:
    """Read the neighbours where the affinity is on.

    Raises:
        BundleError: there is no whole file of them.
    """
    if not model.config.affinity.enabled:
        return
    try:
        model.neighbours = Neighbours.load(path / NEIGHBOURS)
    except NeighboursError as error:
        raise BundleError(str(error)) from None


def _save_settings(path: Path, model: Dig, info: dict[str, Any], files: tuple[str, ...]) -> None:
    settings = {
        "format": FORMAT,
        "model": model.config.stored(),
        "seed": model.seed,
        "spec": model.spec.model_dump(mode="json"),
        "spec_digest": model.spec.digest,
        "info": info,
        "sha256": {name: _sha256(path / name) for name in files},
    }
    replace_text(path / SETTINGS, json.dumps(settings, indent=2, sort_keys=True, allow_nan=False) + "\n")


def load_network(path: Path) -> tuple[Dig, dict[str, Any]]:
    """The model that ``save_network`` wrote, its weights memory-mapped, and the run's information; checksums are the caller's business.

    The time it takes does not grow with the weights. The model has no catalogue, and does not know the SIDs in reserve: they are not
    needed to serve; ``read_reserved`` reads them.

    Raises:
        BundleError: a file is missing or cannot be read.
        BundleMismatch: its settings or weights do not fit this version of the code.
        FeatureSpecMismatch: the spec is not the one that the digest beside it stands for.
    """
    settings = _settings(path)
    try:
        own = FeatureSpec.model_validate(settings["spec"])
        own.require(settings["spec_digest"], f"model {path}")
        with _Unset():
            model = Dig(ModelConfig.model_validate(settings["model"]), own, seed=int(settings["seed"]))
        _load_weights(path, model, without=CODES, assign=True)
        _take_neighbours(path, model)
        model.eval()
        return model, dict(settings["info"])
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path / WEIGHTS}: cannot be read as weights: {str(error).splitlines()[0]}") from None
    except (FeatureSpecMismatch, BundleError):
        raise
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise BundleMismatch(f"model {path}: made by another version of the code, whose model does not fit this one: {reason}") from None


class _Unset(TorchFunctionMode):
    """Leaves out the random start of weights that are about to be replaced; it would take longer than all else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return (*args, kwargs.get("tensor"))[0] if getattr(func, "__name__", "") in _RANDOM else func(*args, **kwargs)


def load_bundle(path: str | Path, spec: FeatureSpec | None = None) -> Bundle:
    """Read a bundle and check every file.

    Args:
        path: the bundle's folder.
        spec: refuse a bundle made with another feature spec.

    Raises:
        BundleError: a file is missing, truncated or changed, or the format is newer than this code.
        BundleMismatch: its settings or weights do not fit this version of the code.
        FeatureSpecMismatch: made with a spec other than ``spec``.
    """
    path = Path(path)
    settings = _settings(path)
    _check(path, settings, settings["sha256"])
    own = FeatureSpec.model_validate(settings["spec"])
    own.require(settings["spec_digest"], f"bundle {path}")
    if spec is not None:
        spec.require(own.digest, f"bundle {path}")
    table = pq.read_table(path / ITEMS)
    items = ItemTable.from_arrow(table, own)
    try:
        model = Dig(ModelConfig.model_validate(settings["model"]), own, seed=int(settings["seed"]))
        model.reserved = _reserved(path, settings)
        model.set_items(items)
        _load_weights(path, model)
        _take_neighbours(path, model)
    except (ValidationError, RuntimeError) as error:  # torch: names or shapes of the weights differ
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise BundleMismatch(f"bundle {path}: made by another version of the code, whose model does not fit this one: {reason}") from None
    model.eval()
    model.settled = True
    return Bundle(model, own, items, model.code_NL.cpu().numpy().copy(), settings["info"])


def read_sids(path: str | Path) -> KnownSids:
    """SIDs of all items that a bundle knows, without its model: also of one whose network or features this code no longer has.

    Raises:
        BundleError: as ``load_bundle``.
    """
    path = Path(path)
    settings = _settings(path)
    _check(path, settings, [name for name in settings["sha256"] if name != WEIGHTS])
    return _sids_from_arrow(pq.read_table(path / ITEMS)).over(_reserved(path, settings))


def read_info(path: str | Path) -> dict[str, Any]:
    """What the training run said about itself, without the model.

    Raises:
        BundleError: ``model.json`` is missing or damaged, or its format is newer than this code.
    """
    settings = _settings(Path(path))
    try:
        return dict(settings["info"])
    except (KeyError, TypeError, ValueError):
        raise BundleError(f"{Path(path) / SETTINGS}: says nothing of the training; restore it or train again") from None


def read_reserved(path: Path) -> KnownSids:
    """SIDs of items outside the catalogue, of a bundle or of what ``save_network`` wrote; checksums are the caller's business.

    Raises:
        BundleError: a file is missing or holds no SIDs.
    """
    settings = _settings(path)
    try:
        return _reserved(path, settings)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise BundleError(f"{path / RESERVED}: cannot be read as SIDs of items: {str(error).splitlines()[0]}") from None


def _check(path: Path, settings: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if not (path / name).is_file():
            raise BundleError(f"{path / name}: missing; the bundle is incomplete, restore it or train again")
        found, digest = _sha256(path / name), settings["sha256"][name]
        if found != digest:
            raise BundleError(f"{path / name}: damaged: sha256 {found[:12]} found, {digest[:12]} expected; restore it or train again")


def _reserved(path: Path, settings: dict[str, Any]) -> KnownSids:
    if RESERVED not in settings["sha256"]:
        return KnownSids.none(int(settings["model"]["levels"]))
    return _sids_from_arrow(pq.read_table(path / RESERVED))


def _sids_from_arrow(table: pa.Table) -> KnownSids:
    levels = sum(name.startswith("s_") for name in table.column_names)
    codes = [table.column(f"s_{level + 1}").to_numpy().astype(np.int64) for level in range(levels)]
    return KnownSids.of(table.column("item_hash").to_numpy().astype(np.int64), np.stack(codes, axis=1))


def _settings(path: Path) -> dict[str, Any]:
    file = path / SETTINGS
    if not file.is_file():
        raise BundleError(f"{file}: not found; {path} holds no complete bundle")
    try:
        settings: dict[str, Any] = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file}: not valid JSON ({error}); restore it or train again") from None
    if not isinstance(settings, dict):
        raise BundleError(f"{file}: not the settings of a model; restore it or train again")
    if settings.get("format") != FORMAT:
        raise BundleError(f"{file}: format {settings.get('format')!r} found, this code reads format {FORMAT}")
    return settings


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def items_to_arrow(items: ItemTable, spec: FeatureSpec, code_NL: NDArray[np.int64]) -> pa.Table:
    """Rows ``1..N-1`` of an item table as columns that ``ItemTable.from_arrow`` reads back, with ``s_1..s_L``."""
    columns: dict[str, Any] = {
        "item_id": pa.array(items.id_N[1:], pa.string()),
        "item_hash": pa.array(items.hash_N[1:]),
        "name": pa.array(items.name_N[1:], pa.string()),
    }
    for field in spec.item_fields:
        if field.is_number:
            columns[field.column] = pa.array(items.numbers[field.name][1:])
        elif field.kind == "categorical":
            columns[field.column] = pa.array(items.fields[field.name][1:].astype(np.int32))
        else:
            columns[field.column] = pa.array([row[row > 0].astype(np.int32) for row in items.fields[field.name][1:]], pa.list_(pa.int32()))
    for index, key in enumerate(spec.u2i_keys):
        columns[f"k_{key}"] = pa.array(items.key_KN[index, 1:])
    for level in range(code_NL.shape[1]):
        columns[f"s_{level + 1}"] = pa.array(code_NL[1:, level].astype(np.int32))
    return pa.table(columns)
