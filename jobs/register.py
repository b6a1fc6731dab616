"""Register the trained model of a date: one MLflow version per lineage, with all that is needed to judge and to serve it.

The version holds the bundle, the code that serves it, signature and input example, tags (date, data window, partition
digests, code and feature-spec digests), metrics, parameters, a model card and plots. Alias ``challenger`` moves to it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dig_models.bundle import Bundle, BundleError, load_bundle
from dig_models.faults import reached
from jobs import plots, registry, runs, tracking
from jobs.config import Config
from jobs.entry import Invocation, JobError, run
from jobs.lake import code_digest, digest_of
from jobs.model_card import card, number, tokenizer_of
from jobs.progress import emit
from jobs.registry import ModelRef
from jobs.train_inputs import CODE

log = logging.getLogger("jobs.register")
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "safetensors", "scipy", "torch", "xxhash")


def register(config: Config, day: date) -> tuple[ModelRef, bool]:
    """The version of the model trained for ``day``, registered now or found by its lineage; it becomes ``challenger``.

    Returns:
        The version, and whether it is new.

    Raises:
        JobError: the model was not trained or not evaluated, or was trained again since it was evaluated.
    """
    path = Path(config.paths.at("checkpoints")) / day.isoformat() / "bundle"
    evaluation, train = runs.read(config, day, "evaluate"), runs.read(config, day, "train")
    try:
        bundle = load_bundle(path)
    except BundleError as error:
        raise JobError(str(error)) from error
    lineage = str(bundle.info["lineage"])
    if evaluation["lineage"] != lineage:
        raise JobError(
            f"evaluate.json of {day} judges lineage {evaluation['lineage'][:12]}, the trained model has {lineage[:12]}: "
            f"run python -m jobs.evaluate --date {day} again"
        )
    found = registry.by_lineage(config, lineage)
    if found is None:
        made = _log(config, day, path, bundle, train, evaluation)
        registry.set_alias(config, registry.CHALLENGER, made)
        reached("register.challenger_set")
        return registry.get(config, made), True
    # A champion that is registered again stays what it is; the alias challenger goes to it all the same.
    registry.set_alias(config, registry.CHALLENGER, found.version)
    return registry.get(config, found.version), False


def _log(config: Config, day: date, path: Path, bundle: Bundle, train: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Log the model into the run that trained it and register it; returns the version."""
    import mlflow

    from jobs import pyfunc_model

    store = registry.client(config)
    run_id = _run_id(config, day, train, str(bundle.info["lineage"]))
    reached("register.run_found")
    sample = pyfunc_model.example(bundle)
    tags = version_tags(config, day, bundle, evaluation)
    mlflow.set_tracking_uri(config.tracking_uri())
    mlflow.set_registry_uri(config.tracking_uri())
    text = card(config, day, bundle, train, evaluation, tags)
    with TemporaryDirectory() as scratch:
        for name, content in _artifacts(train, evaluation, tags, text):
            file = Path(scratch) / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
        store.log_artifacts(run_id, scratch)
    reached("register.artifacts_logged")
    for name, value in metrics(evaluation):
        store.log_metric(run_id, name, value)
    reached("register.metrics_logged")
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        logged = mlflow.pyfunc.log_model(
            name="dig",
            python_model=str(Path(pyfunc_model.__file__)),
            artifacts={"bundle": str(path)},
            code_paths=[str(ROOT / "dig_models")],
            signature=pyfunc_model.signature(bundle.spec),
            input_example=sample,
            pip_requirements=[f"{name}=={installed(name).split('+')[0]}" for name in PACKAGES],
        )
    reached("register.model_logged")
    if not store.search_registered_models(f"name = '{config.mlflow.model_name}'"):
        store.create_registered_model(config.mlflow.model_name, description="DIG: one network that ranks items and retrieves them.")
    reached("register.model_named")
    made = store.create_model_version(
        config.mlflow.model_name, logged.model_uri, run_id=run_id, tags=tags, description=_short(evaluation), model_id=logged.model_id
    )
    reached("register.version_created")
    return str(made.version)


def _short(evaluation: Mapping[str, Any]) -> str:
    """One line for the registry's list; the whole card is an artifact of the run."""
    found = evaluation["retrieval"]["all"]
    figures = (evaluation["ranking"]["auc"], found["dig"]["recall@10"], found["popularity"]["recall@10"])
    auc, recall, popular = (number(value) for value in figures)
    return (
        f"{evaluation['dataset']}, {evaluation['date']}: AUC {auc}, recall@10 {recall} (popularity {popular}); see model_card.md of the run"
    )


def _run_id(config: Config, day: date, train: Mapping[str, Any], lineage: str) -> str:
    """The run of the training, or one made here if training was tracked elsewhere."""
    from mlflow.exceptions import MlflowException

    store = registry.client(config)
    run_id = train.get("mlflow_run_id")
    if run_id:
        try:
            return str(store.get_run(run_id).info.run_id)
        except MlflowException:
            log.warning("MLflow run %s of the training is not at %s; one is made for the registration", run_id, config.tracking_uri())
    return tracking.run_of(config, lineage) or tracking.new_run(config, day, lineage, f"register-{day}")


def version_tags(config: Config, day: date, bundle: Bundle, evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a version: where it comes from, in strings short enough for any store."""
    window, info = evaluation["window"], bundle.info
    inputs: dict[str, dict[str, str]] = info.get("inputs", {})
    return {
        registry.RUN_DATE: day.isoformat(),
        registry.LINEAGE: str(info["lineage"]),
        "dataset": config.dataset.name,
        "train_window": f"{window['train_first']}..{window['train_last']}",
        "eval_window": f"{window['eval_first']}..{window['eval_last']}",
        "feature_spec": bundle.spec.digest,
        "code": code_digest(*CODE),
        "ancestor": str(info.get("ancestor") or "none"),
        "aligned_to": str((info.get("alignment") or {}).get("version") or "none"),
        "tokenizer": tokenizer_of(bundle),
        "items": str(len(bundle.items) - 1),
        **{f"inputs.{table}": f"{len(days)} days, {digest_of(days)}" for table, days in sorted(inputs.items())},
    }


def metrics(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Headline figures that could be measured, by the names MLflow shows."""
    ranking, sid = evaluation["ranking"], evaluation["sid"]
    found: dict[str, float | None] = {f"eval/{name}": ranking[name] for name in ("auc", "gauc", "logloss", "calibration")}
    found |= {f"eval/auc_gap_{name}": value for name, value in ranking["auc_gap"].items()}
    for variant, methods in evaluation["retrieval"].items():
        for method in ("dig", "dig_path", "popularity", "own_frequency"):
            for figure, value in methods[method].items():
                if figure != "ci":
                    found[f"eval/{variant}/{method}/{figure.replace('@', '_at_')}"] = value
    found |= {f"sid/{name}": sid[name] for name in ("collision_rate", "unique_rate", "largest_bucket", "entropy_ratio")}
    for at, level in enumerate(sid["levels"], start=1):
        found |= {f"sid/level_{at}/{name}": level[name] for name in ("used", "perplexity", "gini", "balance")}
    if churn := evaluation["churn"]:
        found["sid/churn"] = churn["rate"]
        found |= {f"sid/churn_first_at_level_{level}": share for level, share in enumerate(churn["first"], start=1)}
        if churn["unaligned"]:
            found["sid/churn_unaligned"] = churn["unaligned"]["rate"]
    for name, value in found.items():
        if value is not None:
            yield name, float(value)


def _artifacts(train: Mapping[str, Any], evaluation: Mapping[str, Any], tags: Mapping[str, str], text: str) -> Iterator[tuple[str, bytes]]:
    yield "model_card.md", text.encode()
    yield "evaluate.json", json.dumps(evaluation, indent=1, sort_keys=True).encode()
    yield "lineage.json", json.dumps({"tags": dict(tags), "inputs": train.get("inputs", {})}, indent=1, sort_keys=True).encode()
    yield "plots/training.png", plots.png(plots.training(train))
    yield "plots/codebooks.png", plots.png(plots.codebooks(evaluation["sid"]))
    yield "plots/calibration.png", plots.png(plots.calibration(evaluation["ranking"]))
    yield "plots/retrieval.png", plots.png(plots.retrieval(evaluation["retrieval"]))


def main(call: Invocation) -> None:
    """``python -m jobs.register --date D``."""
    emit("register", 0, 1)
    with registry.answering(call.config):
        ref, new = register(call.config, call.date)
    runs.save(
        call.config,
        call.date,
        "register",
        {
            "date": call.date.isoformat(),
            "name": ref.name,
            "version": ref.version,
            "run_id": ref.run_id,
            "lineage": ref.lineage,
            "tags": dict(ref.tags),
        },
    )
    log.info("%s version %s %s", ref.name, ref.version, "registered" if new else "is there already: same data, settings and code")
    emit("register", 1, 1, version=ref.version)


if __name__ == "__main__":
    sys.exit(run("register", main))
