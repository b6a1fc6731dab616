"""A tiny world, built once, and a process that trains alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import Tiny

from dig_models.train.distributed import World, process_group


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    threads = torch.get_num_threads()
    with process_group("gloo", 1) as alone:
        yield alone
    torch.set_num_threads(threads)
