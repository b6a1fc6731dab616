"""Embeddings of hashed fields: all fields of one side share one table, so that a step does one lookup.

Shape suffixes: ``M`` rows looked up, ``J`` bucket columns, ``D`` embedding width, ``Q`` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.features import FieldSpec
from dig_models.nn.mlp import SkipMlp


class FieldEmbedding(nn.Module):
    """Embeddings of a list of fields, concatenated.

    A categorical field gives its bucket's row (bucket 0, missing, has a row of its own); a multi-valued or text field the mean
    of its non-zero buckets (zeros if it has none); a number is ``sign(x) log(1 + |x|)``.
    """

    def __init__(self, fields: Sequence[FieldSpec], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.single = [f for f in fields if f.kind == "categorical"]
        self.bags = [f for f in fields if f.kind in ("multi", "text")]
        self.numbers = [f for f in fields if f.is_number]
        bucketed = [*self.single, *self.bags]
        starts = np.cumsum([0, *(f.buckets for f in bucketed)])
        self.offset = {f.name: int(at) for f, at in zip(bucketed, starts, strict=False)}
        self.table = nn.Embedding(max(int(starts[-1]), 1), dim)
        self.bag_widths: list[int] = [0] * len(self.bags)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    @property
    def width(self) -> int:
        """Width of the output."""
        return (len(self.single) + len(self.bags)) * self.dim + len(self.numbers)

    def pack(self, fields: dict[str, NDArray[Any]], numbers: dict[str, NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
        """Columns of a table as one index matrix ``(M, J)`` into the embedding table and one matrix of numbers ``(M, Q)``.

        Padding of multi-valued fields is the field's bucket 0, which its mean leaves out.

        Raises:
            ValueError: a field is missing, or a bucket lies outside its declared range.
        """
        columns: list[NDArray[np.int64]] = []
        for field in [*self.single, *self.bags]:
            if field.name not in fields:
                raise ValueError(f"field {field.name!r} of the feature spec is missing; found {', '.join(fields) or 'none'}")
            value = fields[field.name]
            low, high = int(value.min(initial=0)), int(value.max(initial=0))
            if low < 0 or high >= field.buckets:
                raise ValueError(f"field {field.name!r}: bucket {low if low < 0 else high} found, the spec declares 0..{field.buckets - 1}")
            columns.append((value[:, None] if field.kind == "categorical" else value).astype(np.int64) + self.offset[field.name])
        missing = [f.name for f in self.numbers if f.name not in numbers]
        if missing:
            raise ValueError(f"numeric field {missing[0]!r} of the feature spec is missing; found {', '.join(numbers) or 'none'}")
        rows = len(columns[0]) if columns else len(next(iter(numbers.values())))
        index = np.concatenate(columns, axis=1) if columns else np.zeros((rows, 0), dtype=np.int64)
        value_MQ = np.stack([numbers[f.name] for f in self.numbers], axis=1) if self.numbers else np.zeros((rows, 0), dtype=np.float32)
        self.bag_widths = [fields[f.name].shape[1] for f in self.bags]
        return torch.from_numpy(index), torch.from_numpy(value_MQ.astype(np.float32))

    def forward(self, index_MJ: Tensor, value_MQ: Tensor | None = None) -> Tensor:
        """Packed columns ``(M, J), (M, Q)`` to ``(M, width)``."""
        rows, singles = index_MJ.shape[0], len(self.single)
        parts: list[Tensor] = []
        if singles:
            parts.append(F.embedding(index_MJ[:, :singles], self.table.weight).view(rows, singles * self.dim))
        at = singles
        for field, width in zip(self.bags, self.bag_widths, strict=True):
            bag_MW, none = index_MJ[:, at : at + width], self.offset[field.name]
            parts.append(F.embedding_bag(bag_MW, self.table.weight, mode="mean", padding_idx=none))
            at += width
        if self.numbers and value_MQ is not None:
            parts.append(value_MQ.sign() * value_MQ.abs().log1p())
        return torch.cat(parts, dim=1) if parts else self.table.weight.new_zeros((rows, 0))


class ItemEncoder(nn.Module):
    """Fields and encoder of its own for what the quantizer reads, where ranking is not to shape it (an ablation)."""

    def __init__(self, fields: Sequence[FieldSpec], hidden: int, dim: int) -> None:
        super().__init__()
        self.fields = FieldEmbedding(fields, dim)
        self.mlp = SkipMlp(self.fields.width, hidden, dim)

    def forward(self, index_MJ: Tensor, number_MQ: Tensor, bag_widths: list[int]) -> Tensor:
        """Packed columns ``(M, J), (M, Q)``, as those of a ``FieldEmbedding`` of the same fields, to ``(M, D)``."""
        self.fields.bag_widths = bag_widths
        out: Tensor = self.mlp(self.fields(index_MJ, number_MQ))
        return out


def renamed(prefix: str, fields: Sequence[FieldSpec]) -> list[FieldSpec]:
    """Fields with a prefix to their names, so that a user field and a context field may have the same name."""
    return [f.model_copy(update={"name": f"{prefix}_{f.name}"}) for f in fields]
