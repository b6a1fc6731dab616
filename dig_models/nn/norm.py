"""Batch normalisation, per domain and over the catalogue.

Shape suffixes: ``R`` rows, ``C`` features, ``S`` domains.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

CONSTANT = 1e-8


class DomainNorm(nn.Module):
    """BatchNorm whose statistics belong to a domain while scale and shift are shared: ``y = w (x - mean_s) / std_s + b``.

    In training a row is normalised by the moments of its own domain in the batch of its own rank; running statistics follow
    the moments of all ranks (``commit_moments``) and serve evaluation. A domain that has fewer than two rows in a batch is
    normalised by the running statistics. With several domains a feature that is constant within one (an offer nobody saw yet)
    counts as zero there.
    """

    mean_SC: Tensor
    var_SC: Tensor
    seen_S: Tensor

    def __init__(self, width: int, domains: int = 1, momentum: float = 0.05, eps: float = 1e-3) -> None:
        super().__init__()
        self.momentum, self.eps, self.domains = momentum, eps, domains
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean_SC", torch.zeros(domains, width))
        self.register_buffer("var_SC", torch.ones(domains, width))
        self.register_buffer("seen_S", torch.zeros(domains))
        self.pending: Tensor | None = None

    def forward(self, x_RC: Tensor, member_RS: Tensor) -> Tensor:
        """Normalise rows ``(R, C)``; ``member_RS`` is 1 where the row belongs to the domain (one domain: all ones)."""
        if self.domains == 1:
            return self._whole(x_RC)
        with torch.set_grad_enabled(x_RC.requires_grad and torch.is_grad_enabled()):
            mean_SC, var_SC = self._moments(x_RC, member_RS) if self.training else (self.mean_SC, self.var_SC)
            # A feature that never varied says nothing, and must not say something enormous once it does.
            scale_SC = torch.rsqrt(var_SC + self.eps) * (var_SC > CONSTANT)
            unit_RC = torch.addcmul(member_RS @ (-mean_SC * scale_SC), x_RC, member_RS @ scale_SC)
        return torch.addcmul(self.bias, unit_RC, self.weight)

    @torch.no_grad()
    def affine(self, domain: int = 0) -> tuple[Tensor, Tensor]:
        """Scale and shift ``(C,)`` that evaluation applies to rows of a domain: ``forward(x) = x * scale + shift``."""
        at = domain if self.domains > 1 else 0
        scale_C = torch.rsqrt(self.var_SC[at] + self.eps)
        if self.domains > 1:
            scale_C = scale_C * (self.var_SC[at] > CONSTANT)
        scale_C = self.weight * scale_C
        return scale_C, self.bias - self.mean_SC[at] * scale_C

    def _whole(self, x_RC: Tensor) -> Tensor:
        """One domain, the usual batch normalisation."""
        if not self.training or len(x_RC) < 2:
            scale_C = self.weight * torch.rsqrt(self.var_SC[0] + self.eps)
            return torch.addcmul(self.bias - self.mean_SC[0] * scale_C, x_RC, scale_C)
        out_RC, mean_C, inverse_C = torch.native_batch_norm(x_RC, self.weight, self.bias, None, None, True, 0.0, self.eps)
        var_C = inverse_C.detach().double().pow(-2) - self.eps
        self._keep(var_C.new_full((1, 1), len(x_RC)), mean_C.unsqueeze(0), var_C.unsqueeze(0))
        if out_RC.requires_grad:
            # The kernel's backward is some ten times slower on a strided gradient, such as a slice of a concatenation's.
            out_RC.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        return out_RC

    def _keep(self, count_S1: Tensor, mean_SC: Tensor, var_SC: Tensor) -> None:
        mean_SC, var_SC = mean_SC.detach().double(), var_SC.detach().double()
        self.pending = torch.cat([count_S1, mean_SC * count_S1, (var_SC + mean_SC.square()) * count_S1], dim=1)

    def _moments(self, x_RC: Tensor, member_RS: Tensor) -> tuple[Tensor, Tensor]:
        count_S1 = member_RS.sum(0).unsqueeze(1)
        mean_SC = member_RS.t() @ x_RC / count_S1.clamp_min(1.0)
        var_SC = member_RS.t() @ (x_RC - member_RS @ mean_SC).square() / count_S1.clamp_min(1.0)
        self._keep(count_S1.double(), mean_SC, var_SC)
        enough_S1 = count_S1 >= 2
        return torch.where(enough_S1, mean_SC, self.mean_SC), torch.where(enough_S1, var_SC, self.var_SC)

    @torch.no_grad()
    def absorb(self, moments_SM: Tensor) -> None:
        """Move the running statistics towards reduced moments ``(S, 1 + 2 C)``: count, sum, sum of squares."""
        width = self.mean_SC.shape[1]
        count_S1 = moments_SM[:, :1]
        mean_SC = moments_SM[:, 1 : 1 + width] / count_S1.clamp_min(1.0)
        var_SC = (moments_SM[:, 1 + width :] / count_S1.clamp_min(1.0) - mean_SC.square()).clamp_min(0.0)
        known_S1 = self.seen_S.unsqueeze(1)
        rate_S1 = torch.where(count_S1 >= 2, torch.where(known_S1 > 0, self.momentum, 1.0), 0.0)
        self.mean_SC += (rate_S1 * (mean_SC - self.mean_SC)).to(self.mean_SC.dtype)
        self.var_SC += (rate_S1 * (var_SC - self.var_SC)).to(self.var_SC.dtype)
        self.seen_S.copy_(torch.maximum(self.seen_S, (count_S1[:, 0] >= 2).to(self.seen_S.dtype)))
        self.pending = None


def members(domain_R: Tensor, domains: int) -> Tensor:
    """One-hot domain of each row, float32 ``(R, S)``."""
    return F.one_hot(domain_R, domains).float()


def rank_here() -> int:
    """This process among those that train together."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce(value: Tensor) -> Tensor:
    """Sum over all ranks in place; the value itself where nothing is distributed."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
    return value


def gathered(value_X: Tensor) -> Tensor:
    """What all ranks have, of any length each, in the order of ranks; the value itself where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value_X
    length_W = value_X.new_zeros(dist.get_world_size(), dtype=torch.int64)
    length_W[dist.get_rank()] = len(value_X)
    lengths = all_reduce(length_W).tolist()
    if not max(lengths):
        return value_X
    padded_WX = [value_X.new_zeros(max(lengths)) for _ in lengths]
    dist.all_gather(padded_WX, F.pad(value_X, (0, max(lengths) - len(value_X))))
    return torch.cat([padded_X[:length] for padded_X, length in zip(padded_WX, lengths, strict=True)])


def commit_moments(norms: Iterable[DomainNorm]) -> None:
    """Reduce the moments that a training pass left behind over all ranks, in one collective, and move the running statistics.

    Sums do not depend on the order of ranks, so every rank ends with the same statistics.
    """
    waiting = [n for n in norms if n.pending is not None]
    if not waiting:
        return
    flat = all_reduce(torch.cat([n.pending.reshape(-1) for n in waiting if n.pending is not None]))
    at = 0
    for norm in waiting:
        size = norm.domains * (1 + 2 * norm.mean_SC.shape[1])
        norm.absorb(flat[at : at + size].view(norm.domains, -1))
        at += size


class CorpusNorm(nn.Module):
    """Standardise by the moments of the whole catalogue, measured by a pass over it (never by a batch).

    Every row uses the same constants, in training and in serving, so an item's embedding does not depend on its batch.
    """

    mean_D: Tensor
    var_D: Tensor
    measured: Tensor

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("var_D", torch.ones(width))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))

    def forward(self, x_MD: Tensor) -> Tensor:
        """``(M, D) -> (M, D)``."""
        scale_D = torch.rsqrt(self.var_D + self.eps)
        return torch.addcmul(-self.mean_D * scale_D, x_MD, scale_D)

    @torch.no_grad()
    def measure(self, x_ND: Tensor) -> None:
        """Take the moments of this rank's share of the catalogue, summed over ranks."""
        x_ND = x_ND.double()
        count = x_ND.new_tensor([[float(len(x_ND))]]).expand(1, x_ND.shape[1])
        sums = all_reduce(torch.cat([count, x_ND.sum(0, keepdim=True), x_ND.square().sum(0, keepdim=True)]))
        mean_D = sums[1] / sums[0].clamp_min(1.0)
        self.mean_D.copy_(mean_D)
        self.var_D.copy_((sums[2] / sums[0].clamp_min(1.0) - mean_D.square()).clamp_min(0.0))
        self.measured.fill_(True)
