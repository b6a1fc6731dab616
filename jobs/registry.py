"""The model registry: which version is champion, where its bundle lies, which version a day starts from.

One version stands for one lineage (data, settings, code): registering the same lineage again returns the version that is
there. Aliases are lower case: ``challenger``, ``champion``, ``previous``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from dig_models.faults import reached
from dig_models.files import DiskFull, naming_full_disk, sync_dir, sync_tree
from jobs.config import Config
from jobs.entry import JobError, ServiceAway
from jobs.files import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
LINEAGE, PROMOTED_ON, WITHDRAWN, RUN_DATE = "lineage", "promoted_on", "withdrawn", "date"
GATE, PASSED, REFUSED = "gate", "passed", "refused"
BUNDLE = "artifacts/bundle"
# A server that is started again is waited for: 0, 6, 12, 24 and 48 s between six tries. MLflow's own settings would wait four minutes
# for one that refuses, and twenty for one that hangs.
PATIENCE = {"MAX_RETRIES": "5", "BACKOFF_FACTOR": "3", "TIMEOUT": "45"}
_AWAY = re.compile(r"API request to \S+ failed with (timeout )?exception|failed with error code 50[0-4]|too many 50[0-4] error responses")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """One registered version.

    Attributes:
        version: number of the version, always a string.
        run_id: MLflow run that holds its metrics and plots.
        tags: date, lineage, data window, partition markers, code and feature-spec digests.
    """

    name: str
    version: str
    run_id: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def date(self) -> date:
        """Logical date of the run that trained it."""
        return date.fromisoformat(self.tags[RUN_DATE])

    @property
    def lineage(self) -> str:
        """Digest of everything that the version was made from."""
        return self.tags.get(LINEAGE, "")


@contextmanager
def answering(config: Config) -> Iterator[None]:
    """Calls to the tracking server whose failure to answer is one clear error.

    Raises:
        ServiceAway: the server did not answer within ``PATIENCE``.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not _is_away(error):
            raise
        reason = str(error).splitlines()[0][:300]
        raise ServiceAway(
            f"mlflow.tracking_uri {config.tracking_uri()}: registry does not answer ({reason}); start it, then run the same again"
        ) from error


def _is_away(error: Exception) -> bool:
    """Whether MLflow's own client says that it got no answer, or a proxy says so for it."""
    return bool(_AWAY.search(str(error)))


def _answered(call: Callable[Concatenate[Config, P], R]) -> Callable[Concatenate[Config, P], R]:
    """A function of this module with the error of ``answering``."""

    @wraps(call)
    def asked(config: Config, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with answering(config):
            return call(config, *args, **kwargs)

    return asked


def client(config: Config) -> MlflowClient:
    """Client of the tracking server and registry in force; the folder of a SQLite store is made if it is missing.

    Raises:
        JobError: the store cannot be reached.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name, value in PATIENCE.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    uri = config.tracking_uri()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, OSError) as error:
        raise JobError(f"mlflow.tracking_uri {uri}: cannot be opened: {error}") from error


@_answered
def experiment_id(config: Config) -> str:
    """Id of the experiment in force, made if it is missing; under SQLite its artifacts lie beside the database."""
    from mlflow.exceptions import MlflowException

    store, name = client(config), config.mlflow.experiment
    found = store.get_experiment_by_name(name)
    if found is None:
        location = None
        if config.tracking_uri().startswith("sqlite:///"):
            location = (Path(config.paths.home).resolve() / "mlflow" / "artifacts").as_uri()
        try:
            return str(store.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process made it in between; anything else shows in the look-up below
            found = store.get_experiment_by_name(name)
    if found is None:
        raise JobError(f"mlflow.experiment {name!r} can be neither found nor created at {config.tracking_uri()}")
    return str(found.experiment_id)


@_answered
def find(config: Config, alias: str) -> ModelRef | None:
    """The version that carries ``alias``, or None (also when no model was ever registered)."""
    from mlflow.exceptions import MlflowException

    store, name = client(config), config.mlflow.model_name
    try:
        version = store.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        if _is_away(error):
            raise
        raise JobError(f"model {name!r}, alias {alias!r}: registry {config.tracking_uri()} answers: {error}") from error
    return _ref(store, version)


@_answered
def identity(config: Config) -> str:
    """Which registry this is, wherever it is reached: the model's name and when it was registered first; empty if it never was."""
    from mlflow.exceptions import MlflowException

    name = config.mlflow.model_name
    try:
        made = client(config).get_registered_model(name).creation_timestamp
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return ""
        raise
    return f"{name}, registered {datetime.fromtimestamp(made / 1000, UTC).isoformat(timespec='milliseconds')}"


@_answered
def versions(config: Config) -> list[ModelRef]:
    """Every version of the model, oldest first."""
    store = client(config)
    found = store.search_model_versions(f"name = '{config.mlflow.model_name}'", max_results=10_000)
    return sorted((_ref(store, v, aliases=False) for v in found), key=lambda ref: int(ref.version))


@_answered
def by_lineage(config: Config, lineage: str) -> ModelRef | None:
    """The version with this lineage digest, or None."""
    same = [ref for ref in versions(config) if ref.lineage == lineage]
    return _ref(store := client(config), store.get_model_version(same[0].name, same[0].version)) if same else None


@_answered
def ancestor(config: Config, day: date) -> ModelRef | None:
    """The newest version promoted with a date before ``day`` and not withdrawn since; training of ``day`` starts from it.

    It does not depend on who is champion now, so a rerun of an old day gives the same model unless a version was withdrawn.
    """
    promoted = [ref for ref in versions(config) if PROMOTED_ON in ref.tags and WITHDRAWN not in ref.tags]
    past = [ref for ref in promoted if date.fromisoformat(ref.tags[PROMOTED_ON]) < day]
    return max(past, key=lambda ref: (ref.tags[PROMOTED_ON], int(ref.version)), default=None)


@_answered
def fetch(config: Config, ref: ModelRef) -> Path:
    """Folder of the version's bundle on this machine; fetched once into ``<home>/mlflow/bundles`` if it lies elsewhere.

    Raises:
        JobError: the version's files cannot be had.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    store = client(config)
    uri = store.get_model_version_download_uri(ref.name, ref.version)
    local = Path(re.sub(r"^file:(//)?", "", uri))
    if uri.startswith(("/", "file:")) and (local / BUNDLE).is_dir():
        return local / BUNDLE
    kept = Path(config.paths.home).resolve() / "mlflow" / "bundles" / f"{ref.name}-{ref.version}-{ref.lineage[:12]}"
    fetching = kept.with_name(f".{kept.name}")
    with exclusive(kept.parent.with_name(".bundles.lock")):
        shutil.rmtree(fetching, ignore_errors=True)  # left by a process that was killed
        if kept.is_dir():
            return kept
        fetching.mkdir(parents=True)
        try:
            source = f"{uri.rstrip('/')}/{BUNDLE}"
            with naming_full_disk(fetching):
                got = Path(download_artifacts(artifact_uri=source, dst_path=str(fetching), tracking_uri=config.tracking_uri()))
                sync_tree(got)
            reached("fetch.downloaded")
            got.replace(kept)
            reached("fetch.renamed")
            sync_dir(kept.parent)
        except (MlflowException, OSError) as error:
            if isinstance(error, DiskFull) or _is_away(error):
                raise
            raise JobError(f"model {ref.name} version {ref.version}: its bundle cannot be fetched from {uri}: {error}") from error
        finally:
            shutil.rmtree(fetching, ignore_errors=True)
    return kept


@_answered
def set_alias(config: Config, alias: str, version: str) -> None:
    """Point ``alias`` (lower case) at ``version``; whoever carried it loses it.

    Raises:
        ValueError: the alias is not lower case (aliases are case-sensitive, so ``Champion`` would be a second one).
    """
    if alias != alias.lower():
        raise ValueError(f"alias {alias!r}: expected lower case")
    client(config).set_registered_model_alias(config.mlflow.model_name, alias, version)


@_answered
def drop_alias(config: Config, alias: str) -> None:
    """Take an alias off whichever version carries it; nothing happens if none does."""
    if find(config, alias) is not None:
        client(config).delete_registered_model_alias(config.mlflow.model_name, alias)


@_answered
def tag(config: Config, version: str, key: str, value: str) -> None:
    """Set one tag of a version."""
    client(config).set_model_version_tag(config.mlflow.model_name, version, key, value)


@_answered
def untag(config: Config, version: str, key: str) -> None:
    """Take one tag off a version that has it."""
    client(config).delete_model_version_tag(config.mlflow.model_name, version, key)


@_answered
def get(config: Config, version: str) -> ModelRef:
    """One version by number.

    Raises:
        JobError: there is no such version.
    """
    from mlflow.exceptions import MlflowException

    store = client(config)
    try:
        return _ref(store, store.get_model_version(config.mlflow.model_name, version))
    except MlflowException as error:
        if _is_away(error):
            raise
        raise JobError(f"model {config.mlflow.model_name!r} has no version {version!r} at {config.tracking_uri()}: {error}") from error


def _ref(store: MlflowClient, version: ModelVersion, *, aliases: bool = True) -> ModelRef:
    names: tuple[str, ...] = ()
    if aliases:
        of_model = store.get_registered_model(version.name).aliases
        names = tuple(sorted(a for a, v in of_model.items() if str(v) == str(version.version)))
    return ModelRef(
        name=version.name, version=str(version.version), run_id=str(version.run_id or ""), aliases=names, tags=dict(version.tags)
    )
