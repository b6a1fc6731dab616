"""Processes that train together: one group, whether torchrun started them or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: 0 decides and writes.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def total(self, values: Tensor) -> Tensor:
        """Sum over all ranks, on the CPU; ``values`` is left as it is."""
        summed = values.detach().to("cpu", copy=True)
        dist.all_reduce(summed)
        return summed

    def agreed(self, text: str | None) -> str | None:
        """What rank 0 says, on every rank."""
        said = [text]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def handed(self, value: ValueT | None) -> ValueT:
        """What rank 0 gives, on every rank; the others give None."""
        given = [value]
        dist.broadcast_object_list(given, src=0)
        return cast(ValueT, given[0])

    def spread(self, module: nn.Module) -> None:
        """Give every rank the parameters and persistent buffers of rank 0."""
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


@contextmanager
def process_group(backend: str, threads: int) -> Iterator[World]:
    """Join the group that torchrun's environment describes; alone, a group of one.

    Args:
        backend: ``gloo`` computes on the CPU, ``nccl`` on the GPU with the local rank's number.
        threads: threads that Torch may use in this process.

    Raises:
        ValueError: ``nccl`` without a GPU for this local rank.
    """
    torch.set_num_threads(threads)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if backend == "nccl":
        if torch.cuda.device_count() <= local:
            raise ValueError(
                f"train.backend nccl: local rank {local} needs GPU {local}, this host has {torch.cuda.device_count()} GPU(s); "
                "use train.backend=gloo or fewer train.ranks"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # figures and decisions travel on the CPU
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)
    finally:
        dist.destroy_process_group()
