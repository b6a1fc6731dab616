"""RQ-VAE (arXiv 2203.01941) as TIGER uses it for semantic IDs (arXiv 2305.05065).

An autoencoder of content vectors with a residual quantizer in its middle: ``z = Enc(x)``, ``q = sum_l c_{l,s_l}`` by nearest residual
codes, ``x^ = Dec(z + sg[q - z])``; the loss is ``|x - x^|^2`` (mean) and ``beta sum_l |r_{l-1} - sg[c_{l,s_l}]|^2``. Codes start from
residual k-means of ``z``, move by averages of their items (arXiv 1711.00937, appendix A.1) and go to a random residual when they have
been without an item for some steps. No interaction is seen beyond those that the vectors were made of.

Shape suffixes: ``M`` items, ``X`` content width, ``D`` latent width, ``L`` levels, ``K`` codes.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.config import Positive, Strict
from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.quantize.residual import ResidualQuantizer
from dig_models.tokenizers.base import Ints, Tokenizer, without_unknown
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.rkmeans import residual_kmeans
from dig_models.tokenizers.sequences import Sequences


class RqVaeSettings(Strict):
    """Shape and training of the autoencoder."""

    latent: Positive = Field(32, description="width of the latent that is quantized")
    hidden: Positive = 128
    epochs: Positive = 200
    batch: Positive = 1024
    lr: float = Field(1e-3, gt=0)
    beta: float = Field(0.25, ge=0, description="weight of the commitment of latents to their codes")
    decay: float = Field(0.95, ge=0, lt=1, description="of the moving averages that are the codes")
    dead_code_steps: Positive = 30


class _Network(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, width: int, levels: int, codes: int, settings: RqVaeSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = nn.Sequential(nn.Linear(width, settings.hidden), nn.SiLU(), nn.Linear(settings.hidden, settings.latent))
        self.decoder = nn.Sequential(nn.Linear(settings.latent, settings.hidden), nn.SiLU(), nn.Linear(settings.hidden, width))
        self.quantizer = ResidualQuantizer(levels, codes, settings.latent, settings.decay, settings.dead_code_steps, coupled=True)

    def forward(self, x_MX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, latents ``(M, D)`` and codes ``(M, L)``."""
        z_MD = self.encoder(x_MX)
        code_ML = self.quantizer.assign(z_MD.detach())
        taken_MLD = self.quantizer.quantized(code_ML)
        out_MX = self.decoder(z_MD + (taken_MLD.sum(1) - z_MD).detach())
        commit = (self.quantizer.residuals(z_MD, code_ML) - taken_MLD).square().sum((1, 2)).mean()
        return F.mse_loss(out_MX, x_MX) + self.settings.beta * commit / self.settings.latent, z_MD.detach(), code_ML


class RqVae(Tokenizer):
    """Codes of an RQ-VAE over content vectors.

    Attributes:
        losses: mean loss of each epoch of the fit; empty for one that was loaded.
    """

    kind = "rqvae"

    def __init__(self, content: ContentVectors, network: _Network, losses: tuple[float, ...] = ()) -> None:
        super().__init__(content, network.quantizer.levels, network.quantizer.codes)
        self.network, self.losses = network.eval(), losses

    @classmethod
    def fit(
        cls,
        items: ItemTable,
        spec: FeatureSpec,
        *,
        levels: int,
        codes: int,
        seed: int,
        content: ContentVectors | None = None,
        sequences: Sequences | None = None,
        settings: RqVaeSettings | None = None,
    ) -> Self:
        """See ``Tokenizer.fit``.

        Args:
            items: the catalogue.
            spec: its fields.
            levels: SID length.
            codes: codes of a level.
            seed: of weights and order; the global generator is left as it was.
            content: see ``Tokenizer.fit``.
            sequences: not read.
            settings: of the autoencoder.
        """
        settings = settings or RqVaeSettings()
        content = content or ContentVectors.fit(items, spec, seed=seed)
        x_MX = torch.from_numpy(content.of(items)[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(x_MX.shape[1], levels, codes, settings)
            losses = _train(network, x_MX, seed)
        return cls(content, network, tuple(losses))

    @torch.no_grad()
    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``."""
        x_MX = torch.from_numpy(self.content.of(items)[1:])
        return without_unknown(self.network.quantizer.assign(self.network.encoder(x_MX)).numpy())

    @torch.no_grad()
    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: the latents."""
        latent: Floats = self.network.encoder(torch.from_numpy(self.content.of(items))).numpy()
        return latent

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``."""
        codes: Floats = self.network.quantizer.code_LKD.numpy()
        return codes

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``."""
        return dict(self.network.state_dict())

    @classmethod
    def from_state(cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor]) -> Self:
        """See ``Tokenizer.from_state``."""
        hidden, width = state["encoder.0.weight"].shape
        network = _Network(width, levels, codes, RqVaeSettings(hidden=hidden, latent=len(state["encoder.2.weight"])))
        network.load_state_dict(state)
        return cls(content, network)


def _train(network: _Network, x_MX: Tensor, seed: int) -> list[float]:
    """Fit the network in place; mean loss of each epoch."""
    settings, quantizer = network.settings, network.quantizer
    with torch.no_grad():
        latent_MD = network.encoder(x_MX)
    start_LKD = torch.from_numpy(residual_kmeans(latent_MD.numpy(), quantizer.levels, quantizer.codes, seed))
    quantizer.start(start_LKD, torch.ones(quantizer.levels, quantizer.codes))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=settings.lr)
    order, losses = torch.Generator().manual_seed(seed), []
    for _ in range(settings.epochs):
        each = []
        for rows in torch.split(torch.randperm(len(x_MX), generator=order), settings.batch):
            loss, z_MD, code_ML = network(x_MX[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            quantizer.update(z_MD, code_ML)
            _revive(quantizer, z_MD, code_ML, order)
            each.append(float(loss.detach()))
        losses.append(sum(each) / len(each))
    return losses


def _revive(quantizer: ResidualQuantizer, z_MD: Tensor, code_ML: Tensor, generator: torch.Generator) -> None:
    dead_X2 = quantizer.dead()
    if not len(dead_X2):
        return
    item_X = torch.randint(0, len(z_MD), (len(dead_X2),), generator=generator)
    residual_XLD = quantizer.residuals(z_MD[item_X], code_ML[item_X])
    quantizer.reset(dead_X2, residual_XLD[torch.arange(len(dead_X2)), dead_X2[:, 0]])
