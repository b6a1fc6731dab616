"""The network: a T5 (Raffel et al. 2020, arXiv 1910.10683) over SID tokens, as TIGER uses one (arXiv 2305.05065), made from scratch.

The token at place ``l`` of an answer is one of level ``l``: what the softmax is over, in training and in search.

Shape suffixes: ``B`` histories, ``H`` items of a history, ``T`` tokens of a history, ``L`` levels, ``R`` rows that are decoded, ``D``
width, ``K`` codes of a level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dig_models.generator.settings import GeneratorSettings
from dig_models.generator.tokens import PAD, SidTokens
from dig_models.tokenizers.registry import missing

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing("the generator", error, "generator") from None
    return transformers


class SidT5(nn.Module):
    """Log-probabilities of the next item's codes.

    Args:
        code_NL: SIDs of all item rows; row 0 is the unknown item and not read.
        sizes: codes of each level.
        settings: shape.

    Raises:
        MissingExtra: transformers is not installed.
        ValueError: a code that its level does not have.
    """

    t5: T5ForConditionalGeneration

    def __init__(self, code_NL: NDArray[np.integer], sizes: tuple[int, ...], settings: GeneratorSettings) -> None:
        super().__init__()
        library = _transformers()
        self.settings, self.tokens = settings, SidTokens(code_NL, sizes)
        config = library.T5Config(
            vocab_size=self.tokens.vocabulary,
            d_model=settings.dim,
            d_kv=settings.head_dim,
            d_ff=settings.feed_forward,
            num_layers=settings.layers,
            num_heads=settings.heads,
            dropout_rate=settings.dropout,
            decoder_start_token_id=PAD,
        )
        self.t5 = library.T5ForConditionalGeneration(config)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        found: torch.device = self.t5.shared.weight.device
        return found

    def loss(self, history_BH: Tensor, target_B: Tensor) -> Tensor:
        """Cross-entropy of the targets' codes, mean over examples and levels.

        Args:
            history_BH: item rows, oldest first, 0 where there is none.
            target_B: item rows.
        """
        target_BL = self.tokens.token_NL[target_B]
        token_BT, there_BT = self.tokens.history(history_BH)
        start_BL = F.pad(target_BL[:, :-1], (1, 0), value=PAD)
        out = self.t5(input_ids=token_BT, attention_mask=there_BT, decoder_input_ids=start_BL, use_cache=False)
        each = []
        for level in range(self.tokens.levels):
            block = self.tokens.block(level)
            each.append(F.cross_entropy(out.logits[:, level, block].float(), target_BL[:, level] - block.start))
        return torch.stack(each).mean()

    def encode(self, history_BH: Tensor) -> tuple[Tensor, Tensor]:
        """States of histories ``(B, T, D)`` and which of them are there ``(B, T)``."""
        token_BT, there_BT = self.tokens.history(history_BH)
        return self.t5.encoder(input_ids=token_BT, attention_mask=there_BT).last_hidden_state, there_BT

    def step(self, level: int, token_R: Tensor, state_RTD: Tensor, there_RT: Tensor, cache: Any) -> Tensor:
        """Log-probabilities of the codes of a level, ``(R, K)``, after the token before it.

        Args:
            level: from 0.
            token_R: token of the level before; ``PAD`` at level 0.
            state_RTD: from ``encode``, a row for each row decoded; not read where the cache has its keys.
            there_RT: the same.
            cache: keys and values of the tokens so far, changed in place.
        """
        out = self.t5.decoder(
            input_ids=token_R.unsqueeze(1),
            encoder_hidden_states=state_RTD,
            encoder_attention_mask=there_RT,
            past_key_values=cache,
            use_cache=True,
        )
        state_RD = out.last_hidden_state[:, 0] * self.settings.dim**-0.5
        weight_KD = self.t5.lm_head.weight[self.tokens.block(level)]
        return F.log_softmax((state_RD @ weight_KD.T).float(), dim=1)

    def new_cache(self) -> Any:
        """An empty cache for ``step``."""
        library = _transformers()
        return library.EncoderDecoderCache(library.DynamicCache(), library.DynamicCache())
