"""What several integration tests share: the live stack."""

from __future__ import annotations

import pytest
from live import live, released

__all__ = ["live", "released"]

pytest.register_assert_rewrite("tests.crash.harness")
