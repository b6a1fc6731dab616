"""UniSID (arXiv 2602.10445): SIDs and embedding of an item out of one model in one pass, without a cascade of residuals.

**No LLM here.** The paper runs Qwen2.5-VL-3B over image, text and attributes of an advertisement and lets an LLM write the summary that
is to be decoded. In its place stand a set Transformer of some 70,000 weights over the item's field tokens and content vector
(``unisid_network.py``; tables, heads and the decoder of words come on top, millions where there are thousands of words) and, as the
summary, the bag of words and tags that a masked view of the item does not show. The paper's figures are no promise for it. A language
model can be added as a further input (``encoder_path``), frozen, as ``unisid_text.py`` says.

``L = L_sid + L_emb + w_rec L_rec + w_bal L_bal``: InfoNCE at each level with positives that share the level's categories, InfoNCE of the
embeddings of an item's two views, the decoded summary, and a balance term, which the paper does not have.

Shape suffixes: ``N`` rows of the item table (row 0 unknown), ``M`` items, ``B`` views in a batch, ``L`` levels, ``K`` codes, ``D`` width of
the network, ``E`` width of what is published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dig_models.features import FeatureSpec
from dig_models.items import ItemTable
from dig_models.tokenizers.base import Ints, Tokenizer, without_unknown
from dig_models.tokenizers.content import ContentVectors, Floats
from dig_models.tokenizers.sequences import Sequences
from dig_models.tokenizers.settings import UniSidSettings
from dig_models.tokenizers.unisid_items import FieldTokens, Paths, category_path
from dig_models.tokenizers.unisid_network import Inputs, SetNetwork, Shape, balance, columns_of, contrast, hidden_words
from dig_models.tokenizers.unisid_text import TextEncoder

__all__ = ["UniSid", "UniSidSettings"]

CHUNK = 4096
_DIGEST = "encoder_digest"


class UniSid(Tokenizer):
    """Codes by the heads of a set Transformer.

    No level reads a residual. So that whatever takes nearest residual codes (collision resolution on publication) gives what the heads
    give all the same, ``embed`` and ``code_LKD`` have a block of columns for each level, in which a code's distance is ``-2 z`` but for a
    constant; codes are 0 in the blocks of other levels, so that taking one away leaves them as they are. After these blocks ``embed`` has
    the embedding of the Emb token, where all codes are 0: it moves no distance and is there for whoever compares items.

    Attributes:
        path: fields of the category path, from coarse to fine; empty for one that was loaded.
        losses: mean loss of each epoch of the fit; empty for one that was loaded.
    """

    kind = "unisid"
    settings: UniSidSettings

    def __init__(
        self,
        content: ContentVectors,
        network: SetNetwork,
        settings: UniSidSettings,
        encoder: TextEncoder | None = None,
        *,
        path: tuple[str, ...] = (),
        losses: tuple[float, ...] = (),
    ) -> None:
        super().__init__(content, network.shape.levels, network.shape.codes)
        self.network, self.settings, self.encoder = network.eval(), settings, encoder
        self.path, self.losses = path, losses

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
        settings: UniSidSettings | None = None,
    ) -> Self:
        """See ``Tokenizer.fit``; ``settings`` are of network and training, ``sequences`` are not read.

        Raises:
            ValueError: as ``Tokenizer.fit``, or a field of the category path is no categorical item field of the spec.
            TextEncoderError: the encoder is not there.
            MissingExtra: there is an ``encoder_path`` and the extra ``llm`` is not installed.
        """
        settings = settings or UniSidSettings()
        path = category_path(items, spec, settings.path)
        content = content or ContentVectors.fit(items, spec, seed=seed)
        tokens = FieldTokens(spec, settings.field_tokens)
        encoder = TextEncoder(Path(settings.encoder_path), settings.encoder_tokens) if settings.encoder_path else None
        whole = _read(items, content, tokens, encoder)[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _network(whole, tokens, levels, codes, settings)
            losses = _train(network, whole, Paths.of(items, path, levels), settings, seed)
        return cls(content, network, settings, encoder, path=path, losses=tuple(losses))

    @torch.no_grad()
    def encode(self, items: ItemTable) -> Ints:
        """See ``Tokenizer.encode``: ``argmax_k z_l`` of each level."""
        level_NLD, _ = self._read_out(items)
        return without_unknown(self.network.logits(level_NLD[1:]).argmax(2).numpy())

    @torch.no_grad()
    def embed(self, items: ItemTable) -> Floats:
        """See ``Tokenizer.embed``: what each level's head reads and a 0, level by level, then the embedding; ``(N, L (D + 1) + D)``."""
        level_NLD, embedding_ND = self._read_out(items)
        out: Floats = torch.cat([F.pad(level_NLD, (0, 1)).flatten(1), embedding_ND], dim=1).numpy()
        return out

    @torch.no_grad()
    def embedding(self, items: ItemTable) -> Floats:
        """What the Emb token gives, ``(N, D)``."""
        out: Floats = self._read_out(items)[1].numpy()
        return out

    @property
    def code_LKD(self) -> Floats:
        """See ``Tokenizer.code_LKD``: a code's weights in its level's head and what makes its distance its logit, in the level's block.

        With ``c = [w_k, a_k]`` and ``e = [h, 0]`` the distance is ``|h|^2 - 2 h w_k + |w_k|^2 + a_k^2``, and with
        ``a_k^2 = C - 2 b_k - |w_k|^2`` that is ``|h|^2 + C - 2 z_k``.
        """
        dim = self.network.shape.dim
        out_LKE = torch.zeros(self.levels, self.codes, self.levels * (dim + 1) + dim)
        for level in range(self.levels):
            weight_KD, bias_K = self.network.head_LKD[level].detach(), self.network.head_bias_LK[level].detach()
            least_K = 2.0 * bias_K + weight_KD.square().sum(1)
            begin = level * (dim + 1)
            out_LKE[level, :, begin : begin + dim] = weight_KD
            out_LKE[level, :, begin + dim] = (least_K.max() - least_K).clamp_min(0.0).sqrt()
        codes: Floats = out_LKE.numpy()
        return codes

    def state(self) -> dict[str, Tensor]:
        """See ``Tokenizer.state``: of an encoder its digest, not the encoder."""
        out = dict(self.network.state_dict())
        if self.encoder is not None:
            out[_DIGEST] = torch.frombuffer(bytearray(self.encoder.digest.encode()), dtype=torch.uint8)
        return out

    @classmethod
    def from_state(
        cls, content: ContentVectors, levels: int, codes: int, state: dict[str, Tensor], settings: dict[str, Any] | None = None
    ) -> Self:
        """See ``Tokenizer.from_state``; an encoder is read from its folder when items are encoded."""
        own, encoder, state = UniSidSettings.model_validate(settings or {}), None, dict(state)
        if own.encoder_path:
            digest = bytes(state.pop(_DIGEST).numpy()).decode()
            encoder = TextEncoder(Path(own.encoder_path), own.encoder_tokens, digest)
        network = SetNetwork(
            _shape(
                own,
                levels,
                codes,
                buckets=len(state["seen_T"]),
                numbers=len(state["number_FD"]),
                content=state["projection.weight"].shape[1],
                text=state["text.weight"].shape[1] if "text.weight" in state else 0,
                words=len(state["word_V"]),
            )
        )
        network.load_state_dict(state)
        return cls(content, network, own, encoder)

    def _read_out(self, items: ItemTable) -> tuple[Tensor, Tensor]:
        tokens = FieldTokens(self.content.spec, self.settings.field_tokens)
        inputs = _read(items, self.content, tokens, self.encoder)
        parts = [self.network(inputs[at : at + CHUNK]) for at in range(0, len(items), CHUNK)]
        return torch.cat([level for level, _ in parts]), torch.cat([embedding for _, embedding in parts])


def _shape(settings: UniSidSettings, levels: int, codes: int, *, buckets: int, numbers: int, content: int, text: int, words: int) -> Shape:
    """Shape of the network for these sizes of its inputs and outputs."""
    own = (settings.dim, settings.heads, settings.layers, settings.content_tokens)
    return Shape(buckets, numbers, content, text, words, levels, codes, *own)


def _read(items: ItemTable, content: ContentVectors, tokens: FieldTokens, encoder: TextEncoder | None) -> Inputs:
    """All rows of a table as the network reads them."""
    text_NSY, text_NS = torch.zeros(len(items), 0, 0), torch.zeros(len(items), 0, dtype=torch.bool)
    if encoder is not None:
        text_NSY, text_NS = encoder.of([str(name) for name in items.name_N])
    return Inputs(
        bucket_MT=torch.from_numpy(tokens.buckets(items)),
        number_MF=torch.from_numpy(tokens.numbers(items)),
        content_MX=torch.from_numpy(content.of(items)),
        text_MSY=text_NSY,
        text_MS=text_NS,
        content_M=torch.ones(len(items), dtype=torch.bool),
    )


def _network(whole: Inputs, tokens: FieldTokens, levels: int, codes: int, settings: UniSidSettings) -> SetNetwork:
    seen_T = torch.zeros(tokens.count, dtype=torch.bool)
    seen_T[whole.bucket_MT.flatten()] = True
    seen_T[0] = False
    word_V = torch.from_numpy(tokens.of_words())
    word_V = word_V[seen_T[word_V]]
    network = SetNetwork(
        _shape(
            settings,
            levels,
            codes,
            buckets=tokens.count,
            numbers=whole.number_MF.shape[1],
            content=whole.content_MX.shape[1],
            text=whole.text_MSY.shape[2],
            words=len(word_V),
        )
    )
    network.seen_T.copy_(seen_T)
    network.word_V.copy_(word_V)
    return network


def _train(network: SetNetwork, whole: Inputs, paths: Paths, settings: UniSidSettings, seed: int) -> list[float]:
    """Fit the network in place; mean loss of each epoch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr)
    rng, masks = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    steps = settings.epochs * -(-len(whole) // max(settings.batch // 2, 1))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    column_T, losses = columns_of(network.word_V, network.shape.buckets), []
    for _ in range(settings.epochs):
        each = []
        for anchor_B in np.array_split(rng.permutation(len(whole)), steps // settings.epochs):
            row_B = np.concatenate([anchor_B, paths.companions(anchor_B, rng)])
            loss = _loss(network, whole[torch.from_numpy(row_B)], row_B, paths, settings, masks, column_T)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            each.append(float(loss.detach()))
        losses.append(sum(each) / len(each))
    return losses


def _loss(
    network: SetNetwork, whole: Inputs, row_B: Ints, paths: Paths, settings: UniSidSettings, masks: torch.Generator, column_T: Tensor
) -> Tensor:
    """``L_sid + L_emb + w_rec L_rec + w_bal L_bal`` of two views of each item."""
    shown = whole.view(settings.mask, words_only=False, generator=masks)
    hidden = whole.view(settings.mask, words_only=True, generator=masks)
    level_BLD, embedding_BD = network(Inputs.beside(shown, hidden))
    z_BLK = network.logits(level_BLD)
    group_LB = torch.from_numpy(np.tile(paths.group_LM[:, row_B], 2))
    item_B = torch.from_numpy(np.tile(row_B, 2))
    sid = torch.stack([contrast(z_BLK[:, level], group_LB[level], settings.temperature) for level in range(z_BLK.shape[1])]).mean()
    total = (
        sid + contrast(embedding_BD, item_B, settings.temperature) + settings.balance * balance(z_BLK[: len(whole)], item_B[: len(whole)])
    )
    if settings.reconstruction and len(network.word_V):
        word_MV = hidden_words(whole, hidden, column_T, len(network.word_V))
        log_MV = network.summary(z_BLK[len(whole) :], embedding_BD[len(whole) :]).log_softmax(1)
        total = total - settings.reconstruction * (word_MV * log_MV).sum(1).mean()
    return total
