"""DIGER's joint training of an RQ-VAE and a generator (arXiv 2601.19711), with the corrected end-to-end gradient.

Each step encodes the items that its histories and targets hold, takes their codes with exploration (``quantize/gumbel.py``) and gives
every item the weights ``w_l`` of the codes of its levels: one-hot forward, the soft assignment backward. ``L = L_gen + L_vq + L_recon``:

- ``L_gen``: cross-entropy of the generator. An item's token embedding is ``sum_k w_lk E_lk`` in histories and at the decoder's input, so
  the loss reaches encoder and codes by what is read (``gradient: inputs``). With ``joint`` a target's loss is ``-sum_k w_lk log p_lk``, so
  that it reaches them by a third way, as published: there the target may move to what is predicted, and codes collapse. With ``detached``
  the generator reads the SIDs of the last refresh, as the first release of the method's code did.
- ``L_vq``: ``|sg[r_{l-1}] - c|^2 + beta |r_{l-1} - sg[c]|^2`` over levels; ``L_recon``: ``|x - Dec(sum_l w_l C_l)|^2``.

The scale of SDUD's noise follows ``L_gen`` by its own loss. SIDs without noise are taken anew after each epoch (the refresh).

Shape suffixes: ``M`` items, ``U`` distinct items of a batch, ``N`` the same after a row that is no item, ``B`` examples of a batch, ``H``
items of a history, ``T`` tokens of a history, ``V`` tokens, ``L`` levels, ``K`` codes, ``X`` content width, ``D`` width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.generator.examples import Examples
from dig_models.generator.t5 import SidT5
from dig_models.generator.tokens import END, PAD, tokens_of
from dig_models.tokenizers.base import without_unknown
from dig_models.tokenizers.diger_settings import DigerSettings, exploring
from dig_models.tokenizers.rqvae import RqVae


class Epoch(NamedTuple):
    """How an epoch went: mean losses, the scale of the noise at its end, and the share of items whose SID its refresh changed."""

    generator: float
    vq: float
    recon: float
    noise: float
    changed: float


class Losses(NamedTuple):
    """Of a step."""

    generator: Tensor
    vq: Tensor
    recon: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.generator + self.vq + self.recon


class JointTraining:
    """Moves an RQ-VAE and a generator together.

    Attributes:
        rqvae: what is moved; pre-trained.
        code_LKD: its codes as the parameter that they are here; the quantizer's follow after each step.
        generator: the T5.
        exploration: noise and its decay.
    """

    def __init__(self, rqvae: RqVae, x_MX: Tensor, settings: DigerSettings, seed: int) -> None:
        self.rqvae, self.network, self.quantizer = rqvae, rqvae.network, rqvae.network.quantizer
        self.x_MX, self.settings, self.seed = x_MX, settings, seed
        self._unit_latents()
        self.code_LKD = nn.Parameter(self.quantizer.code_LKD.clone())
        self.exploration = exploring(settings, rqvae.levels, rqvae.codes)
        self.code_ML = self._codes()
        self.generator = SidT5(without_unknown(self.code_ML.numpy()), (rqvae.codes,) * rqvae.levels, settings.network)
        if self.exploration.frequency_LK is not None:
            self.exploration.frequency_LK.copy_(self._number(self.code_ML) / len(x_MX))
        self.noise, self.steps = torch.Generator().manual_seed(seed), 0
        self.optimizer = self._optimizer()

    @torch.no_grad()
    def _unit_latents(self) -> None:
        """Scale latents and codes so that the mean square of a latent's entries is 1; codes taken and reconstructions stay as they are.

        The noise has a scale of its own: where distances are hundredths it decides alone.
        """
        out: Any = self.network.encoder[-1]
        back: Any = self.network.decoder[0]
        scale = self.network.encoder(self.x_MX).square().mean().sqrt().clamp_min(1e-6)
        for grown in (out.weight, out.bias, self.quantizer.code_LKD, self.quantizer.sum_LKD, self.quantizer.semantic.weight):
            grown.div_(scale)
        back.weight.mul_(scale)

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        tokenizer = [*self.network.encoder.parameters(), *self.network.decoder.parameters(), self.code_LKD]
        return torch.optim.AdamW(
            [
                {"params": list(self.generator.parameters()), "lr": settings.lr, "weight_decay": settings.weight_decay},
                {"params": tokenizer, "lr": settings.tokenizer_lr, "weight_decay": settings.weight_decay},
                {"params": list(self.exploration.parameters()), "lr": settings.lr, "weight_decay": 0.0},
            ]
        )

    def run(self, examples: Examples) -> tuple[Epoch, ...]:
        """All epochs over the examples; the RQ-VAE and the generator are then in evaluation mode."""
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min((step + 1) / max(self.settings.warmup_steps, 1), 1.0))
        epochs = []
        for epoch in range(self.settings.epochs):
            self.network.train()
            self.generator.train()
            each = []
            for batch in examples.batches(self.settings.batch, self.settings.history, self.seed + epoch):
                each.append(self.step(batch.history(self.settings.history), batch.target_X))
                schedule.step()
            generator, vq, recon = (float(torch.stack(loss).mean()) for loss in zip(*each, strict=True))
            epochs.append(Epoch(generator, vq, recon, self.exploration.scale, self.refresh()))
        self.network.eval()
        self.generator.eval()
        return tuple(epochs)

    def step(self, history_BH: Tensor, target_B: Tensor) -> Losses:
        """One optimizer step; its losses, as constants.

        Args:
            history_BH: item rows, oldest first, then 0.
            target_B: item rows.
        """
        losses = self.losses(history_BH, target_B)
        self.optimizer.zero_grad()
        (losses.total + self.exploration.loss(losses.generator)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        self._follow()
        item_U = torch.unique(torch.cat([history_BH.flatten(), target_B]))
        self.exploration.observe(self._number(self._codes(item_U[item_U > 0] - 1)))
        return Losses(*(loss.detach() for loss in losses))

    def losses(self, history_BH: Tensor, target_B: Tensor) -> Losses:
        """``L_gen``, ``L_vq`` and ``L_recon`` of a batch; arguments as for ``step``."""
        item_U = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), history_BH.flatten(), target_B]))
        x_UX = self.x_MX[item_U[1:] - 1]
        z_UD = self.network.encoder(x_UX)
        code_UL, weight_ULK = self.exploration.assign(z_UD, self.code_LKD, self.noise)
        taken_ULD = self.code_LKD[torch.arange(self.rqvae.levels), code_UL]
        before_ULD = F.pad(taken_ULD.detach(), (0, 0, 1, 0))[:, :-1].cumsum(1)
        residual_ULD = z_UD.unsqueeze(1) - before_ULD
        codebook = (residual_ULD.detach() - taken_ULD).square().sum((1, 2)).mean()
        commit = (residual_ULD - taken_ULD.detach()).square().sum((1, 2)).mean()
        vq = (codebook + self.settings.rqvae.beta * commit) / z_UD.shape[1]
        recon = F.mse_loss(self.network.decoder(torch.einsum("ulk,lkd->ud", weight_ULK, self.code_LKD)), x_UX)
        if self.settings.gradient == "detached":
            return Losses(self.generator.loss(history_BH, target_B), vq, recon)
        at_BH, at_B = torch.searchsorted(item_U, history_BH), torch.searchsorted(item_U, target_B)
        weight_NLK = F.pad(weight_ULK, (0, 0, 0, 0, 1, 0))
        return Losses(self._mixed(weight_NLK, at_BH, at_B), vq, recon)

    def _mixed(self, weight_NLK: Tensor, at_BH: Tensor, at_B: Tensor) -> Tensor:
        """``L_gen`` over mixed tokens; rows of ``weight_NLK`` are items, row 0 is none."""
        tokens, t5 = self.generator.tokens, self.generator.t5
        table_VD = t5.shared.weight
        blocks = [tokens.block(level) for level in range(tokens.levels)]
        token_NLD = torch.stack([weight_NLK[:, level] @ table_VD[block] for level, block in enumerate(blocks)], dim=1)
        history_BTD = F.pad(token_NLD[at_BH].flatten(1, 2), (0, 0, 0, 1))
        count_B1 = (at_BH > 0).sum(1, keepdim=True) * tokens.levels
        place_T = torch.arange(history_BTD.shape[1])
        history_BTD = torch.where((place_T == count_B1).unsqueeze(2), table_VD[END], history_BTD)
        start_B1D = table_VD[PAD].expand(len(at_B), 1, -1)
        out = t5(
            inputs_embeds=history_BTD,
            attention_mask=place_T <= count_B1,
            decoder_inputs_embeds=torch.cat([start_B1D, token_NLD[at_B, :-1]], dim=1),
            use_cache=False,
        )
        log_BLK = torch.stack([out.logits[:, level, block].log_softmax(1) for level, block in enumerate(blocks)], dim=1)
        target_BLK = weight_NLK[at_B]
        return -((target_BLK if self.settings.gradient == "joint" else target_BLK.detach()) * log_BLK).sum(2).mean()

    @torch.no_grad()
    def refresh(self) -> float:
        """Take the SIDs of all items anew, without noise; the share of items whose SID changed."""
        before_ML, self.code_ML = self.code_ML, self._codes()
        self.generator.tokens.token_NL.copy_(
            torch.from_numpy(tokens_of(without_unknown(self.code_ML.numpy()), self.generator.tokens.sizes))
        )
        return float((before_ML != self.code_ML).any(1).double().mean())

    @torch.no_grad()
    def _codes(self, row_U: Tensor | None = None) -> Tensor:
        return self.quantizer.assign(self.network.encoder(self.x_MX if row_U is None else self.x_MX[row_U]))

    def _number(self, code_UL: Tensor) -> Tensor:
        """Items of each code, ``(L, K)``."""
        return F.one_hot(code_UL, self.rqvae.codes).sum(0).float()

    @torch.no_grad()
    def _follow(self) -> None:
        self.quantizer.code_LKD.copy_(self.code_LKD)
        self.quantizer.semantic.weight.copy_(self.code_LKD.flatten(0, 1))
