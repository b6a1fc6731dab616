"""A backfill does not retrain unless it is asked to, and the UI shows why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from dags import common, guard
from tests.dags.contexts import Run, context

SCHEDULED, BACKFILL = "scheduled__2017-11-15", "backfill__2017-11-15__x"


@pytest.mark.parametrize(
    ("run_id", "conf", "wanted"),
    [
        (SCHEDULED, {}, True),
        ("manual__1", {}, True),
        ("manual__1", {"retrain": False}, False),
        ("manual__1", {"retrain": None}, True),
        (BACKFILL, {}, False),
        (BACKFILL, {"retrain": None}, False),
        (BACKFILL, {"retrain": True}, True),
    ],
)
def test_a_run_wants_a_training_unless_it_is_a_backfill_or_says_otherwise(run_id: str, conf: dict[str, Any], wanted: bool) -> None:
    assert guard.wants_retrain(context(Run(run_id=run_id, conf=conf))) is wanted


def set_off_by(*events: tuple[str | None, Any]) -> dict[str, Any]:
    made = [SimpleNamespace(source_run_id=run_id, extra={} if wants is None else {"retrain": wants}) for run_id, wants in events]
    return context(triggering_asset_events={common.EXAMPLES: made})


@pytest.mark.parametrize(
    ("events", "skipped"),
    [
        ([], False),
        ([(SCHEDULED, True)], False),
        ([(SCHEDULED, None)], False),
        ([(None, None)], False),
        ([(BACKFILL, None)], True),
        ([(BACKFILL, False)], True),
        ([(BACKFILL, True)], False),
        ([("manual__1", False)], True),
        ([(BACKFILL, False), (SCHEDULED, True)], False),
    ],
)
def test_a_run_goes_on_if_any_of_its_events_wants_it_to(events: list[tuple[str | None, Any]], skipped: bool) -> None:
    assert bool(guard.unwanted(set_off_by(*events))) is skipped


def test_the_reason_of_a_skip_stands_where_the_ui_shows_it() -> None:
    told = set_off_by((BACKFILL, False))
    with pytest.raises(AirflowSkipException, match="the champion and the index stay as they are"):
        guard.skip_unwanted(told)
    assert told["ti"].pushed["skipped"].startswith(f"set off by a backfill ({BACKFILL}) without")
