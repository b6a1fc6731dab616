"""Residual quantizer with decoupled addressing and semantics (DIG, arXiv 2605.14853).

Addressing: code vectors ``c_{l,k}``, used for the argmin only, moved by exponential moving averages over the catalogue and
never by a gradient. Semantics: a learnable table ``e_sid_{l,k}`` that the losses train; the scoring path reads nothing else.
Coupled (an ablation), the table is a copy of the code vectors after every move and no gradient trains it, as in VQ-VAE with moving
averages (arXiv 1711.00937, appendix A.1).

Shape suffixes: ``M`` items, ``L`` levels, ``K`` codes of a level, ``D`` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.nn.norm import all_reduce


class ResidualQuantizer(nn.Module):
    """``r_0 = e_v; s_l = argmin_k |r_{l-1} - c_{l,k}|; r_l = r_{l-1} - c_{l,s_l}``.

    Attributes:
        code_LKD: code vectors, buffers.
        count_LK, sum_LKD: moving averages of how many items a code has and of their residuals' sum; ``c = sum / count``.
        idle_LK: steps since a code last had an item.
        semantic: ``e_sid`` as an embedding of ``L * K`` rows; ``coupled``: the code vectors.
        built: whether ``start`` has been called.
    """

    code_LKD: Tensor
    count_LK: Tensor
    sum_LKD: Tensor
    idle_LK: Tensor
    built: Tensor

    def __init__(self, levels: int, codes: int, dim: int, decay: float, dead_after: int, *, coupled: bool = False) -> None:
        super().__init__()
        self.levels, self.codes, self.decay, self.dead_after, self.coupled = levels, codes, decay, dead_after, coupled
        self.semantic = nn.Embedding(levels * codes, dim)
        nn.init.zeros_(self.semantic.weight)
        self.semantic.weight.requires_grad_(not coupled)
        self.register_buffer("code_LKD", torch.zeros(levels, codes, dim))
        self.register_buffer("count_LK", torch.zeros(levels, codes))
        self.register_buffer("sum_LKD", torch.zeros(levels, codes, dim))
        self.register_buffer("idle_LK", torch.zeros(levels, codes, dtype=torch.int64))
        self.register_buffer("built", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def start(self, code_LKD: Tensor, count_LK: Tensor) -> None:
        """Take initial codes; ``e_sid`` starts as a copy, so that ``e_sid(1:L)`` lies near ``e_v``.

        Args:
            code_LKD: code vectors.
            count_LK: items of each code; a code without items keeps a count of one so that it can move.
        """
        self.code_LKD.copy_(code_LKD)
        self.count_LK.copy_(count_LK.clamp_min(1.0))
        self.sum_LKD.copy_(self.code_LKD * self.count_LK.unsqueeze(2))
        self.idle_LK.zero_()
        self.semantic.weight.copy_(self.code_LKD.flatten(0, 1))
        self.built.fill_(True)

    @torch.no_grad()
    def assign(self, e_MD: Tensor) -> Tensor:
        """Nearest residual codes ``(M, D) -> (M, L)`` int64; the lower index wins a tie."""
        residual_MD, codes = e_MD, []
        for level in range(self.levels):
            code_KD = self.code_LKD[level]
            distance_MK = torch.addmm(code_KD.square().sum(1), residual_MD, code_KD.t(), alpha=-2.0)
            s_M = distance_MK.argmin(1)
            residual_MD = residual_MD - code_KD.index_select(0, s_M)
            codes.append(s_M)
        return torch.stack(codes, dim=1)

    def residuals(self, e_MD: Tensor, code_ML: Tensor) -> Tensor:
        """``r_0 .. r_{L-1}``: what each level sees, ``(M, L, D)``; gradients flow to ``e_MD``, never to the codes."""
        taken_MLD = self.quantized(code_ML)
        before_MLD = torch.cat([torch.zeros_like(taken_MLD[:, :1]), taken_MLD[:, :-1]], dim=1).cumsum(1)
        return e_MD.unsqueeze(1) - before_MLD

    def quantized(self, code_ML: Tensor) -> Tensor:
        """``c_{l,s_l}``, ``(M, L) -> (M, L, D)``."""
        return F.embedding(self._flat(code_ML), self.code_LKD.flatten(0, 1))

    def prefixes(self, code_ML: Tensor) -> Tensor:
        """``e_sid(1:l) = sum_{i <= l} e_sid_{i,s_i}`` for each level, ``(M, L) -> (M, L, D)``."""
        return F.embedding(self._flat(code_ML), self.semantic.weight).cumsum(1)

    def _flat(self, code_ML: Tensor) -> Tensor:
        return code_ML + torch.arange(code_ML.shape[1], device=code_ML.device) * self.codes

    @torch.no_grad()
    def update(self, e_MD: Tensor, code_ML: Tensor) -> Tensor:
        """One EMA step on this rank's share of the catalogue; sums are reduced over ranks, so all ranks agree.

        ``count <- g count + (1 - g) n``, ``sum <- g sum + (1 - g) sum r``, ``c <- sum / count``; a code without items keeps its
        vector, for both of its averages shrink alike.

        Returns:
            How many items each code has, ``(L, K)``.
        """
        levels, codes, dim = self.code_LKD.shape
        flat = self._flat(code_ML).flatten()
        number_X = torch.bincount(flat, minlength=levels * codes).double()
        sum_XD = torch.zeros(levels * codes, dim, dtype=torch.float64, device=e_MD.device)
        sum_XD.index_add_(0, flat, self.residuals(e_MD, code_ML).flatten(0, 1).double())
        reduced = all_reduce(torch.cat([number_X.unsqueeze(1), sum_XD], dim=1)).view(levels, codes, dim + 1)
        number_LK = reduced[:, :, 0].to(self.count_LK.dtype)
        self.count_LK.lerp_(number_LK, 1.0 - self.decay)
        self.sum_LKD.lerp_(reduced[:, :, 1:].to(self.sum_LKD.dtype), 1.0 - self.decay)
        # Averages of a code that stays empty shrink towards 0/0 together; below this its vector is left alone.
        alive_LK1 = (self.count_LK > 1e-6).unsqueeze(2)
        self.code_LKD.copy_(torch.where(alive_LK1, self.sum_LKD / self.count_LK.clamp_min(1e-6).unsqueeze(2), self.code_LKD))
        if self.coupled:
            self.semantic.weight.copy_(self.code_LKD.flatten(0, 1))
        self.idle_LK.copy_(torch.where(number_LK > 0, 0, self.idle_LK + 1))
        return number_LK

    def dead(self) -> Tensor:
        """Codes without an item for ``dead_after`` steps, as ``(X, 2)`` pairs (level, code)."""
        return (self.idle_LK >= self.dead_after).nonzero()

    @torch.no_grad()
    def reset(self, dead_X2: Tensor, vector_XD: Tensor) -> None:
        """Put codes, their averages and their semantic rows at new vectors."""
        level_X, code_X = dead_X2[:, 0], dead_X2[:, 1]
        self.code_LKD[level_X, code_X] = vector_XD
        self.sum_LKD[level_X, code_X] = vector_XD
        self.count_LK[level_X, code_X] = 1.0
        self.idle_LK[level_X, code_X] = 0
        self.semantic.weight[level_X * self.codes + code_X] = vector_XD

    @torch.no_grad()
    def rename(self, label_LK: Tensor) -> None:
        """Code ``k`` of level ``l`` is called ``label_LK[l, k]`` from now on, with all that belongs to it; a permutation in every row."""
        source_LK = label_LK.argsort(dim=1).to(self.code_LKD.device)
        level_L1 = torch.arange(self.levels, device=source_LK.device).unsqueeze(1)
        for of in (self.code_LKD, self.count_LK, self.sum_LKD, self.idle_LK):
            of.copy_(of[level_L1, source_LK])
        self.semantic.weight.copy_(self.semantic.weight.index_select(0, self._flat(source_LK.t()).t().flatten()))


def usage(number_LK: Tensor) -> dict[str, float]:
    """Per level ``l`` (from 1): codes in use and perplexity ``exp(H)`` of the assignment counts ``(L, K)``."""
    figures = {}
    share_LK = number_LK.double() / number_LK.double().sum(1, keepdim=True).clamp_min(1.0)
    for level, share_K in enumerate(share_LK, start=1):
        figures[f"codes_used_{level}"] = float((share_K > 0).sum())
        figures[f"perplexity_{level}"] = float(torch.exp(-torch.xlogy(share_K, share_K).sum()))
    return figures


def collision_rate(code_NL: Tensor, codes: int) -> float:
    """``(N - distinct SIDs) / N``; 0 for an empty catalogue."""
    if not len(code_NL):
        return 0.0
    return 1.0 - len(torch.unique(sid_number(code_NL, codes))) / len(code_NL)


def sid_number(code_ML: Tensor, codes: int) -> Tensor:
    """A SID, or a prefix of one, as one integer in base ``codes``: ``(M, L) -> (M,)``.

    Raises:
        ValueError: so many levels do not fit 63 bits.
    """
    if codes ** code_ML.shape[1] >= 1 << 63:
        raise ValueError(f"{code_ML.shape[1]} levels of {codes} codes do not fit a 64-bit number: use fewer levels or codes")
    number_M = torch.zeros_like(code_ML[:, 0])
    for level in range(code_ML.shape[1]):
        number_M = number_M * codes + code_ML[:, level]
    return number_M


def zero_moments(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Forget what an optimizer knows of some rows of a parameter, after the rows were put elsewhere (dead-code reset)."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.index_fill_(0, rows, 0.0)
