"""What ``dig_promote`` makes of the conf that a person gives."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from dags import promote
from dags.publish import signed
from tests.dags.contexts import Run, TaskInstance, context

AT = datetime(2017, 11, 16, 8, tzinfo=UTC)


def asked(**conf: Any) -> dict[str, Any]:
    run = Run(conf=conf, triggering_user_name="ann", start_date=AT)
    return context(run, ti=TaskInstance(request="2017-11-15-v1-0123456789"))


def test_a_rollback_is_asked_for_with_who_when_why_and_what_was_current() -> None:
    assert promote.options(asked(version="rollback", reason="clicks fell")) == [
        *("--rollback", "--expect", "2017-11-15-v1-0123456789"),
        *("--who", "ann", "--at", "2017-11-16T08:00:00+00:00", "--reason", "clicks fell"),
    ]


def test_a_version_may_be_asked_for_past_the_gate_and_in_another_name() -> None:
    options = promote.options(asked(version="7", reason="r", who="bob", past_gate=True))
    assert options[:3] == ["--version", "7", "--past-gate"]
    assert options[options.index("--who") + 1] == "bob (triggered by ann)"


@pytest.mark.parametrize("conf", [{}, {"version": "7"}, {"reason": "r"}, {"version": " ", "reason": "r"}])
def test_without_version_or_reason_nothing_is_asked(conf: dict[str, str]) -> None:
    for step in (promote.options, lambda told: promote.seen(**told)):
        with pytest.raises(AirflowFailException, match="say what to promote and why"):
            step(asked(**conf))


def test_what_is_current_is_read_at_the_moment_of_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = promote.settings().model_copy(update={"paths": promote.settings().paths.model_copy(update={"index": str(tmp_path)})})
    monkeypatch.setattr(promote, "settings", lambda: settings)
    assert promote.seen(**asked(version="7", reason="r")) == "none"
    (tmp_path / "CURRENT").write_text("2017-11-15-v1-0123456789\n")
    assert promote.seen(**asked(version="7", reason="r")) == "2017-11-15-v1-0123456789"


def test_a_daily_promotion_is_signed_by_its_run() -> None:
    told = context(Run(run_id="asset__1", start_date=AT))
    assert signed(told) == ["--who", "airflow asset__1", "--at", "2017-11-16T08:00:00+00:00", "--reason", "passed the gate"]
