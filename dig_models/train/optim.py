"""Optimizer and learning rate.

Embedding tables (items, users, semantic IDs) see few of their rows in a step: they may have a rate of their own and are not
decayed. Biases and norms are not decayed either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dig_models.config import TrainConfig

FINAL_LR = 0.05
LONGEST_WARMUP = 50


def build(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters, with its state made at once so that a checkpoint always has the same entries."""
    tables, matrices, rest = [], [], []
    embedding = {id(p) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) for p in m.parameters(recurse=False)}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in embedding:
            tables.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [
        {"params": tables, "lr": config.lr * config.embedding_lr_scale, "weight_decay": 0.0},
        {"params": matrices, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": rest, "lr": config.lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
        for parameter in group["params"]:
            zeros = {k: torch.zeros_like(parameter, memory_format=torch.preserve_format) for k in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **zeros}
    return optimizer


def lr_factor(step: int, steps: int) -> float:
    """Share of the base learning rate at a step: a short linear warm-up, then half a cosine down to ``FINAL_LR``."""
    warmup = max(min(LONGEST_WARMUP, steps // 20), 1)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rate of a step; a function of the step alone, so a resumed run needs no scheduler state."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * lr_factor(step, steps)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors by parameter name; loading into them changes the optimizer in place."""
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}
