"""``python -m jobs.sids``: SIDs made beforehand, from what, kept how, and taken by the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dig_models.quantize.known import read_sids
from dig_models.tokenizers.registry import KINDS, load_tokenizer
from dig_models.tokenizers.settings import Kind, TokenizersConfig
from dig_models.train.distributed import World
from jobs import runs, sids, sids_inputs, train
from jobs.config import Config, ConfigError
from jobs.entry import JobError
from jobs.files import exclusive
from jobs.lake import Lake
from jobs.train_inputs import train_inputs
from tests.jobs import train_world as tw
from tests.jobs.sids_world import QUICK, RKMEANS, RQVAE, built, home, known, made, result
from tests.jobs.test_train import trained

__all__ = ["built", "home"]  # fixtures


# ---- settings --------------------------------------------------------------------------------------------------------


def test_the_settings_name_the_kinds_of_the_registry() -> None:
    assert set(Kind.__args__) == set(KINDS)  # type: ignore[attr-defined]
    sections = {name for name in TokenizersConfig.model_fields if name in KINDS}
    assert sections == {kind for kind in KINDS if TokenizersConfig().of(kind)}  # type: ignore[arg-type]


def test_a_daily_run_whose_ranker_makes_its_sids_has_the_lineage_it_had(home: Path) -> None:
    plain, told = tw.settings(home), tw.settings(home, "tokenizer=dig", "tokenizers.content=co_occurrence", *QUICK)
    assert plain.model == told.model and plain.model.assignment == "online_rq" and plain.model.loss.commit > 0
    lineages = {train_inputs(config, tw.DAY).lineage(ranks=1, ancestor="") for config in (plain, told)}
    assert len(lineages) == 1, "settings of tokenizers that are not in use decide nothing"


def test_the_assignment_follows_from_the_tokenizer(home: Path) -> None:
    model = tw.settings(home, *RQVAE).model
    assert (model.assignment, model.loss.commit, model.loss.recall) == ("given", 0.0, 0.1)
    assert tw.settings(home, *RQVAE, "model.assignment=given", "model.loss.commit=0.1").model.loss.commit == 0.1


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("tokenizer=rqvae", "model.assignment=gumbel_sdud"), "assignment gumbel_sdud with tokenizer rqvae"),
        (("tokenizer=rqvae", "train.given_sids=/x.parquet"), "given_sids /x.parquet with tokenizer rqvae"),
        (("tokenizer=rq",), "tokenizer: .*'rqvae'.*found 'rq'"),
        (("tokenizers.rqvae.epoch=3",), "tokenizers.rqvae.epoch: unknown key; did you mean 'epochs'"),
        (("tokenizers.conflicts=drop",), "tokenizers.conflicts: "),
        (("tokenizer=resid", "tokenizers.content=co_occurrence"), "content co_occurrence with tokenizer resid, which learns vectors"),
    ],
)
def test_a_contradiction_or_an_unknown_setting_is_refused(home: Path, sets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tw.settings(home, *sets)


# ---- the job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"dig"}))
def test_every_item_known_on_the_date_gets_the_code_of_the_tokenizer_that_is_kept(home: Path, kind: str) -> None:
    own = TokenizersConfig().of(kind)  # type: ignore[arg-type]
    short = [f"tokenizers.{kind}.epochs=1"] if own else []
    sets = (f"tokenizer={kind}", *short, *(["tokenizers.diger.rqvae.epochs=1"] if kind == "diger" else []))
    assert made(home, *sets) == 0
    config, there = tw.settings(home, *sets), result(home, *sets)
    items = known(config)
    code_NL = load_tokenizer(there.folder, config.dataset.spec()).encode(items)
    given = read_sids(there.sids, levels=config.model.levels, codes=config.model.codes)
    np.testing.assert_array_equal(given.find(items.hash_N[1:]), code_NL[1:])
    report = runs.read(config, tw.DAY, "sids")
    assert report["kind"] == kind and report["items"] == len(items) - 1 == tw.ew.ITEMS
    assert 0 <= report["collision_rate"] < 1 and len(report["codes_used"]) == config.model.levels
    assert report["seconds"]["fit"] > 0 and report["kept"] is None and "sha256" not in report


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert made(home, *RKMEANS) == 0
    first = result(home, *RKMEANS)
    before = first.sids.stat().st_mtime_ns
    (runs.run_dir(tw.settings(home), tw.DAY) / "sids.json").unlink()
    assert made(home, *RKMEANS) == 0
    assert "made already" in caplog.text and first.sids.stat().st_mtime_ns == before
    assert runs.read(tw.settings(home), tw.DAY, "sids")["lineage"] == first.lineage, "a run's folder tells of it again"
    content = first.sids.read_bytes()
    first.sids.write_bytes(content[:-9])
    assert sids_inputs.found(tw.settings(home), tw.DAY) is None
    assert made(home, *RKMEANS) == 0
    assert result(home, *RKMEANS).sids.read_bytes() == content, "the same again"


def test_another_setting_gives_another_result_in_place_of_the_old(home: Path) -> None:
    assert made(home, *RKMEANS) == 0
    first = result(home)
    assert made(home, *RKMEANS, "train.seed=5") == 0
    second = result(home)
    assert second.lineage != first.lineage and not first.folder.exists()
    assert [path.name for path in second.folder.parent.iterdir() if path.is_dir()] == [second.folder.name]


def test_a_job_that_dies_before_the_end_leaves_what_was_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(home, *RKMEANS) == 0
    first = result(home)

    def dies(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sids, "replace_text", dies)
        with pytest.raises(KeyboardInterrupt):
            made(home, *RQVAE)
    assert result(home).lineage == first.lineage
    assert made(home, *RQVAE) == 0
    assert result(home).record["kind"] == "rqvae"


def test_where_the_ranker_makes_its_own_there_is_nothing_to_do(home: Path) -> None:
    assert made(home) == 0
    assert sids_inputs.found(tw.settings(home), tw.DAY) is None


def test_two_at_once_are_refused(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with exclusive(sids_inputs.lock(tw.settings(home), tw.DAY)):
        assert made(home, *RKMEANS) == 1
        assert trained(tw.settings(home), *RKMEANS) == 1, "the training has the same lock"
    assert f"SIDs of {tw.DAY} are being made, or its training" in caplog.text and "wait for it to end" in caplog.text
    assert made(home, *RKMEANS) == 0


def only_the_first_row_is_bought(home: Path) -> None:
    """So that nothing was bought together with anything."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lake = Lake(str(home / "lake"))
    for day in lake.days("examples"):
        for file in sorted(Path(lake.folder("examples", day)).glob("*.parquet")):
            table = pq.read_table(file, partitioning=None)
            lists = [[1] + [0] * (len(v) - 1) for v in table.column("label").to_pylist()]
            at = table.column_names.index("label")
            pq.write_table(table.set_column(at, "label", pa.array(lists, pa.list_(pa.int8()))), file)


def test_what_a_tokenizer_cannot_learn_from_is_one_message(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    only_the_first_row_is_bought(home)
    assert made(home, *RKMEANS, "tokenizers.content=co_occurrence") == 2
    assert "tokenizer rkmeans: 0 item(s) were bought beside another one" in caplog.text


# ---- collisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflicts", ["nearest", "sinkhorn", "suffix"])
def test_items_that_share_a_sid_are_told_apart_where_that_is_asked_for(home: Path, conflicts: str) -> None:
    assert made(home, *RKMEANS) == 0
    plain = runs.read(tw.settings(home), tw.DAY, "sids")
    sets = (*RKMEANS, f"tokenizers.conflicts={conflicts}", "model.codes=12")
    assert made(home, *sets) == 0
    told = runs.read(tw.settings(home), tw.DAY, "sids")
    assert plain["collision_rate"] == plain["collision_rate_before"] > 0
    assert told["collision_rate"] < told["collision_rate_before"]
    config = tw.settings(home, *sets)
    given = read_sids(result(home).sids, levels=config.model.levels, codes=config.model.codes)
    assert len(given) == tw.ew.ITEMS
    fitted = load_tokenizer(result(home).folder, config.dataset.spec())
    assert fitted.levels == config.model.levels - (conflicts == "suffix")
    items = known(config)
    np.testing.assert_array_equal(
        given.find(items.hash_N[1:])[:, : config.model.levels - 1], fitted.encode(items)[1:, : config.model.levels - 1]
    )


# ---- the training ----------------------------------------------------------------------------------------------------


def test_a_training_without_sids_names_the_command_that_makes_them(home: Path) -> None:
    with pytest.raises(JobError, match=f"tokenizer is rkmeans: no SIDs of {tw.DAY} in .*run python -m jobs.sids --date {tw.DAY} first"):
        train_inputs(tw.settings(home, *RKMEANS), tw.DAY)


def test_sids_of_other_settings_are_refused_by_the_training(home: Path) -> None:
    assert made(home, *RQVAE) == 0
    assert train_inputs(tw.settings(home, *RQVAE), tw.DAY).given == result(home).sids
    with pytest.raises(JobError, match=r"SIDs by rqvae made from other data, settings or code .*run python -m jobs\.sids"):
        train_inputs(tw.settings(home, *RKMEANS), tw.DAY)


def test_the_lineage_of_a_training_covers_the_tokenizer(home: Path) -> None:
    lineages = set()
    for sets in (RKMEANS, RQVAE, (*RQVAE, "tokenizers.rqvae.beta=0.5")):
        assert made(home, *sets) == 0
        inputs = train_inputs(tw.settings(home, *sets), tw.DAY)
        assert inputs.sids and inputs.made is not None
        lineages.add(inputs.lineage(ranks=1, ancestor=""))
    assert len(lineages) == 3


def test_a_training_reads_the_sids_once_it_has_the_lock(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert made(home, *RKMEANS) == 0
    alone = train._alone

    @contextmanager
    def overtaken(config: Config, day: date, world: World) -> Iterator[None]:
        assert made(home, *RQVAE) == 0  # the last moment at which it can be
        with alone(config, day, world):
            yield

    monkeypatch.setattr(train, "_alone", overtaken)
    assert trained(tw.settings(home), *RKMEANS) == 2
    assert "SIDs by rqvae made from other data, settings or code" in caplog.text


@pytest.mark.slow
def test_after_a_switch_back_to_dig_nothing_is_left_of_the_sids_made_beforehand(home: Path) -> None:
    config = tw.settings(home)
    places = (sids_inputs.home(config, tw.DAY), runs.run_dir(config, tw.DAY) / "sids.json")
    for _ in ("trained now", "trained already"):
        assert made(home, *RKMEANS) == 0
        assert all(place.exists() for place in places)
        assert trained(config, "model.assignment=given") == 2, "a training that ends with an error"
        assert all(place.exists() for place in places)
        assert trained(config) == 0
        assert not any(place.exists() for place in places)
    assert made(home, *RKMEANS) == 0 == trained(config, *RKMEANS)
    assert all(place.exists() for place in places), "those of the ranker that was trained on them stay"


@pytest.mark.slow
def test_the_sids_of_a_training_stay_until_it_has_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(home, *RKMEANS) == 0
    write, found = train._write, []

    def last_step(*args: Any) -> None:
        found.append(made(home, *RQVAE))
        write(*args)

    monkeypatch.setattr(train, "_write", last_step)
    assert trained(tw.settings(home), *RKMEANS) == 0
    assert found == [1], "refused, to be tried again"
    bundle = Path(tw.settings(home).paths.at("checkpoints")) / str(tw.DAY) / "bundle"
    assert sids_inputs.read(bundle / sids_inputs.PLACE).lineage == result(home).lineage
