"""One run of the ablation: train a row with a seed, judge it, and keep the figures with their bootstrap samples.

A run is a JSON file named by a digest of all that decides it (settings of training, search and evaluation, date, judged
days, seed, tokenizer, and the content of the partitions that are read), so what is there is not done again unless the lake was built anew
with other rows, and two rows that mean the same share one. The draws of the bootstrap are the same in every run, so differences
of samples are paired by user (``ablation_samples``). Code is not part of the digest: the file says which code made it, and the table says
if that differs.

Shape suffixes: ``S`` bootstrap replicates, ``U`` users, ``Q`` requests, ``N`` catalogue rows, ``L`` levels.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation_rows import BASE, DIG, Row
from benchmarks.judging import Floats, Ints, Judged, Part, changes_of, judged_days, model_home, trained
from dig_models.bundle import NEIGHBOURS, Bundle
from dig_models.config import LAUNCH, Strict
from dig_models.evaluate import bootstrap, ranking, sid_quality
from dig_models.evaluate.lists import VARIANTS, Contender, Lists, Search, recommend_all
from dig_models.evaluate.scoring import Rows, exposed_rows, rank_rows, score_rows
from dig_models.files import replacing
from dig_models.index.resolve import publish
from dig_models.quantize.known import write_sids
from dig_models.retrieve.options import U2t
from dig_models.retrieve.rerank import Retriever
from dig_models.tokenizers.settings import Conflicts
from jobs.config import Config, ConfigError, load
from jobs.dataset_config import digest_of
from jobs.evaluate import Draws, finite
from jobs.lake import Lake, code_digest
from jobs.neighbours import key_of, neighbours
from jobs.runs import write_json
from jobs.tokenizing import encoded, fitted
from jobs.train_inputs import CODE, NoAffinity, lake_inputs

K = 10
JUDGED_BY = (
    "benchmarks.ablation_runs", "benchmarks.judging", "dig_models.evaluate", "dig_models.index.resolve", "dig_models.retrieve",
    "dig_models.tokenizers", "jobs.tokenizing",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all runs have in common.

    Attributes:
        config: settings in force; its ``train.seed`` draws the bootstrap.
        settings, sets: the file and overrides that they were read from.
        home: folder of the ablation.
        part: days that the models are judged on.
    """

    config: Config
    day: date
    settings: Path | None
    sets: tuple[str, ...]
    home: Path
    part: Part = "evaluation"

    @cached_property
    def _read(self) -> dict[str, str]:
        return {}

    def inputs(self, config: Config) -> str:
        """Digest of the content of all that a training by ``config`` and judging read of the lake; looked up once for each model.

        Raises:
            JobError: something is missing from the lake, or was made with other settings.
        """
        key = digest_of({"settings": config.digest("model", "window"), "rows": config.dataset.rows_digest()})
        if key not in self._read:
            judged = {"examples": judged_days(self.config, self.day, self.part)}
            found = [lake_inputs(config, self.day).inputs, Lake(self.config.paths.at("lake")).inputs(judged)]
            self._read[key] = digest_of({"read": found})
        return self._read[key]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row with a seed."""

    place: Place
    row: Row
    seed: int

    @cached_property
    def home(self) -> Path:
        """``paths.home`` of its training; rows that use one model share it."""
        return model_home(self.place.home, self.row.model, self.seed)

    @cached_property
    def sets(self) -> list[str]:
        """All overrides of its training but the file of SIDs."""
        return [*self.place.sets, *changes_of(self.place.config, self.place.home, self.home, self.seed, self.row.sets)]

    @cached_property
    def config(self) -> Config:
        """Settings of its training, without the file of SIDs."""
        return load(self.place.settings, self.sets)

    @cached_property
    def key(self) -> str:
        """Digest of all that decides its figures, but the code.

        Raises:
            ConfigError: see ``u2t``.
            JobError: see ``Place.inputs``.
        """
        config, row = self.config, self.row
        facts = {
            "date": self.place.day.isoformat(),
            "judged_on": self.place.part,
            "lake": self.place.inputs(config),
            "settings": config.digest("model", "window", "retrieve", "evaluate"),
            "train": config.train.model_dump(mode="json", exclude={*LAUNCH, "given_sids"}),
            "processes": config.train.ranks * config.train.hosts,
            "dataset": [config.dataset.rows_digest(), config.dataset.spec().digest],
            "tokenizer": row.tokenizer or "" if row.content == "fields" else f"{row.tokenizer} of {row.content}",
            "u2t": self.u2t,
            "path_score": row.path_score or config.model.path_score,
            "resolve": row.resolve,
            "draws": self.place.config.train.seed,
        }
        own = self.tokenizer_settings
        if own and own != type(own)():
            facts["tokenizer_settings"] = own.model_dump(mode="json")
        return digest_of(facts)[:20]

    @property
    def tokenizer_settings(self) -> Strict | None:
        """Settings of the row's tokenizer; None if there is no tokenizer, or it has none."""
        return self.config.tokenizers.of(self.row.tokenizer) if self.row.tokenizer else None

    @property
    def u2t(self) -> U2t:
        """Crosses of prefixes at inference.

        Raises:
            ConfigError: exact ones are asked of a model whose buckets are no prefixes.
        """
        asked, buckets = self.row.u2t or self.config.model.u2t_inference, self.config.model.bucket_key
        if asked == "exact" and buckets != "prefix":
            raise ConfigError(
                f"row {self.row.name}: exact u2t is the mean over the items of a prefix, and model.bucket_key is {buckets}, so the model "
                "learns from means over other items; leave the row out (--rows), or set model.bucket_key=prefix"
            )
        return asked

    @property
    def file(self) -> Path:
        """Where its figures are kept."""
        return self.place.home / "runs" / f"{self.key}.json"

    def kept(self) -> dict[str, Any] | None:
        """Its figures, if it was done; what a killed run left is none, for files appear whole."""
        if not self.file.is_file():
            return None
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def done(self) -> dict[str, Any]:
        """Its figures; trains and judges if they are not there.

        Raises:
            CalledProcessError: the training failed; ``train.log`` in its home says why.
        """
        found = self.kept()
        if found is not None:
            return found
        since = time.perf_counter()
        sets, spent = self._with_sids()
        with self._with_neighbours():
            bundle = trained(self.place.day, self.home, self.place.settings, sets, self.home / "train.log")
        report = json.loads((self.home / "checkpoints" / self.place.day.isoformat() / "train.json").read_text())
        record = {
            "key": self.key,
            "model": self.row.model,
            "seed": self.seed,
            "lineage": report["lineage"],
            "code": code_digest(*CODE, *JUDGED_BY),
            "train": {name: report[name] for name in ("seconds", "steps", "examples")} | {"tokenizer_seconds": spent},
            **judge(self.place.config, self.place.day, bundle, self.row, self.place.part),
            "wall_seconds": time.perf_counter() - since,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        cleaned: dict[str, Any] = finite(record)
        write_json(self.file, cleaned)
        return cleaned

    @contextmanager
    def _with_neighbours(self) -> Iterator[None]:
        """Lay the affinity's matrix where the training looks for it, if it reads one: fitted once for all rows and seeds that share it."""
        if not self.config.model.affinity.enabled:
            yield
            return
        inputs = lake_inputs(self.config, self.place.day)
        kept = self.place.home / "neighbours" / f"{key_of(inputs)[:20]}.safetensors"
        neighbours(inputs, kept)
        own = self.home / "checkpoints" / self.place.day.isoformat() / NEIGHBOURS
        own.parent.mkdir(parents=True, exist_ok=True)
        with replacing(own) as writing:
            shutil.copyfile(kept, writing)
        yield
        own.unlink(missing_ok=True)  # of a training that was done

    def _with_sids(self) -> tuple[list[str], float]:
        """Overrides with the file of SIDs, made by the row's tokenizer from the items that training shows; and the seconds it took.

        Co-occurrence is that of the days that move weights: none of validation or evaluation.
        """
        row, since = self.row, time.perf_counter()
        if row.tokenizer is None:
            return self.sets, 0.0
        inputs = lake_inputs(self.config, self.place.day)
        conflicts: Conflicts = "nearest" if row.resolve else "none"
        own = self.tokenizer_settings
        tokenizer = fitted(inputs, row.tokenizer, content=row.content, conflicts=conflicts, seed=self.seed, settings=own)
        done = encoded(inputs, tokenizer, conflicts=conflicts)
        path = self.home / "sids.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sids(path, [str(item) for item in done.items.id_N[1:]], done.code_NL[1:])
        return [*self.sets, f"train.given_sids={path}"], time.perf_counter() - since


def judge(config: Config, day: date, bundle: Bundle, row: Row, part: Part = "evaluation") -> dict[str, Any]:
    """Figures of a model on the days that it is judged on, and each figure's bootstrap samples.

    Args:
        config: settings of the comparison: window, search, draws.
        day: date of the run.
        bundle: the model.
        row: how it retrieves; a model without SIDs is judged on ranking alone.
        part: the days.

    Returns:
        ``figures`` and ``samples`` by name, ``references`` (the baselines' the same way), ``sid``, and ``rows, requests, users``.
    """
    judged = Judged.open(config, day, config.evaluate.max_requests, bundle, part)
    requests, draws, rows = judged.requests, judged.draws, exposed_rows(judged.requests)
    out: dict[str, Any] = {"rows": len(rows.label_R), "users": len(draws.users), "requests": 0, "references": {}, "sid": None}
    if bundle.model.config.loss.recall == 0:
        figures = _ranked("rank", rank_rows(bundle.model, requests, bundle.items), rows, draws)
        return out | _split(figures)
    code_NL = _codes(bundle, resolve=row.resolve)
    retriever = Retriever.of(bundle.model, bundle.spec, bundle.items, judged.store, codes_NL=code_NL)
    u2t = row.u2t or bundle.model.config.u2t_inference
    scores = score_rows(retriever, requests, none=u2t == "none")
    path_R = {"exact": scores.exact_R, "mlp": scores.mlp_R, "none": scores.none_R}[u2t]
    figures = _ranked("rank", scores.rank_R, rows, draws) | _ranked("path", path_R, rows, draws)
    path_score = row.path_score or bundle.model.config.path_score
    search = Search(beam=config.retrieve.beam, rerank=config.retrieve.rerank, u2t=u2t, path_score=path_score)
    lists, _ = recommend_all([Contender(name="dig", retriever=retriever, search=search)], requests, judged.index_Q, k=K)
    found = _retrieved(lists, judged)
    figures |= found.pop("dig") | {f"path_{name}": of for name, of in found.pop("dig_path").items()}
    quality = sid_quality.measure(code_NL[1:], bundle.model.config.codes)
    sid = {
        "collision_rate": quality.collision_rate,
        "shared_rate": 1.0 - quality.unique_rate,
        "codes_used": [level.used / level.codes for level in quality.levels],
    }
    return out | _split(figures) | {"requests": len(judged.index_Q), "references": {n: _split(of) for n, of in found.items()}, "sid": sid}


def _codes(bundle: Bundle, *, resolve: bool) -> Ints:
    code_NL = np.array(bundle.codes_NL, dtype=np.int64)
    if resolve:
        model, known_N = bundle.model, np.ones(len(code_NL), dtype=np.bool_)
        embedding_ND, code_LKD = model.encode_catalogue().numpy(), model.quantizer.code_LKD.numpy()
        publish(code_NL, embedding_ND, code_LKD, bundle.items.hash_N, known_N=known_N, before=None)
    return code_NL


Figures = dict[str, tuple[float, Floats]]
"""By name: the figure, and its bootstrap samples ``(S,)``."""


def _ranked(path: str, score_R: Floats, rows: Rows, draws: Draws) -> Figures:
    user_R = draws.of(rows.user_R)
    users = ranking.auc_by_group(score_R, rows.label_R, user_R, rows.weight_R)
    both = np.isfinite(users.auc_G)
    weight_G, draw_SG = users.weight_G[both], draws.draw_SU[:, users.group_G[both]]
    gauc_S = draw_SG @ (weight_G * users.auc_G[both]) / np.maximum(draw_SG @ weight_G, 1e-300)
    auc_S = bootstrap.auc_samples(score_R, rows.label_R, rows.weight_R, user_R, draws.draw_SU)
    return {
        f"{path}_auc": (ranking.auc(score_R, rows.label_R, rows.weight_R), auc_S),
        f"{path}_gauc": (ranking.gauc(score_R, rows.label_R, rows.user_R, rows.weight_R), gauc_S),
    }


def _retrieved(lists: Lists, judged: Judged) -> dict[str, Figures]:
    """By method: ``<figure>_<variant>``, as ``recall@10_new``."""
    out: dict[str, Figures] = {}
    for variant in VARIANTS:
        for method, list_QK in lists[variant].items():
            values = judged.values(variant, list_QK, K)
            figures = {f"{name}_{variant}": (judged.mean(value_Q), judged.samples(value_Q)) for name, value_Q in values.items()}
            out.setdefault(method, {}).update(figures)
    return out


def _split(figures: Figures) -> dict[str, Any]:
    return {"figures": {n: value for n, (value, _) in figures.items()}, "samples": {n: of.tolist() for n, (_, of) in figures.items()}}


def runs_of(place: Place, rows: Sequence[Row], seeds: Sequence[int]) -> list[Run]:
    """Every row with every seed; a seed is finished before the next begins, so that there is a whole table early."""
    return [Run(place=place, row=row, seed=seed) for seed in seeds for row in rows]


def possible(place: Place, rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """Rows that the data set can have; and by name of the others, those with the affinity, why it cannot be fitted.

    Raises:
        NoAffinity: the settings in force ask for it, so ``base`` and ``dig``, which all are compared with, cannot be trained either.
        JobError: see ``Place.inputs``.
    """
    kept: list[Row] = []
    left_out: dict[str, str] = {}
    for row in rows:
        try:
            place.inputs(Run(place=place, row=row, seed=place.config.train.seed).config)
        except NoAffinity as error:
            if row.name in (BASE, DIG):
                raise
            left_out[row.name] = str(error)
        else:
            kept.append(row)
    return kept, left_out
