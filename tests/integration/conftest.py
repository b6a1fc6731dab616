"""What several integration tests share: the live stack, and the table of the crash tests after all tests."""

from __future__ import annotations

from typing import Any

import pytest
from live import live, released
from rich.console import Console

__all__ = ["live", "released"]

pytest.register_assert_rewrite("tests.crash.harness")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the crash tests found, if they ran."""
    from tests.crash.table import show

    show(Console(file=terminalreporter._tw._file, width=max(terminalreporter._tw.fullwidth, 200)))
