"""DIG: one network that ranks items and retrieves them through semantic IDs (arXiv 2605.14853).

Ranking scores an item with ``Mixer(BN_user(h_u), BN_item(e_v), BN_u2i(c_uv))``; retrieval scores a prefix of a semantic ID with the
same Mixer, ``Mixer(BN_user(h_u), BN_sid(e_sid(1:l)), BN_u2t(u2t_l))``. ``h_u`` is the user side with the history attended by the
item (or the prefix). ``docs/reference/model.md`` holds the method and its switches.

Shape suffixes: ``B`` requests, ``R`` rows, ``H`` history, ``C`` crosses, ``N`` catalogue (row 0 unknown), ``M`` items looked up,
``L`` levels, ``K`` codes, ``D`` width, ``S`` domains (0 exposed, 1 open catalogue), ``T`` paths (ranking, then each level).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from dig_models import losses, u2t
from dig_models.affinity import Affinity, LastAffinity, Neighbours
from dig_models.batch import Batch
from dig_models.config import ModelConfig
from dig_models.features import SOURCE_EXPOSED, FeatureSpec
from dig_models.items import ItemTable
from dig_models.nn.attention import HistoryAttention, RowLayout, UserSide
from dig_models.nn.embedding import FieldEmbedding, ItemEncoder, renamed
from dig_models.nn.mixer import Mixer
from dig_models.nn.mlp import SkipMlp, U2tHead
from dig_models.nn.norm import CorpusNorm, DomainNorm, all_reduce, commit_moments, members, rank_here
from dig_models.nn.shown import Shown
from dig_models.quantize.gumbel import SIGMA_WEIGHT, GumbelExploration
from dig_models.quantize.known import KnownSids
from dig_models.quantize.residual import ResidualQuantizer, collision_rate, usage
from dig_models.quantize.tree import balanced_tree, codebooks_of
from dig_models.u2t import CatalogueBuckets, PairLookup

DOMAINS = 2
WARMUP_MEASURE_STEPS = 10
BIAS_GAIN = 10.0
CROSS_EPS = 1e-2
CATALOGUE_CHUNK = 4096


class Dig(nn.Module):
    """The DIG network. Call ``set_items`` before anything else.

    Under ``DistributedDataParallel`` pass ``broadcast_buffers=False``: all ranks compute the same buffers, through reductions here.
    Every parameter takes part in every phase's loss, so no search for unused parameters is needed. Random draws (item-id
    dropout, catalogue samples, dead-code resets) follow from ``seed``, the step and the rank, not from the global generator, so
    a resumed run draws what an uninterrupted one would.

    Attributes:
        items: the catalogue in force; ``known_ND`` its embeddings, where they are stored with it (``index.encode.adopt``).
        code_NL: its codes as of the last ``build_codebooks`` or ``update_codebooks``; -1 where not known.
        reset_rows: rows of ``quantizer.semantic.weight`` that the last ``update_codebooks`` reset; their optimizer moments
            should be zeroed (``quantize.residual.zero_moments``).
        reserved: SIDs of items that need not be in the catalogue; one that comes in takes its own.
        neighbours: which items speak for which, needed where ``config.affinity`` is on; no weight, but part of the model.
    """

    code_NL: Tensor
    item_index_NJ: Tensor
    item_number_NQ: Tensor
    user_offset_F: Tensor
    step: Tensor
    biased: Tensor

    def __init__(self, config: ModelConfig, spec: FeatureSpec, seed: int = 0) -> None:
        super().__init__()
        self.config, self.spec, self.seed = config, spec, seed
        dim = config.dim
        users = [*renamed("u", spec.user_fields), *renamed("c", spec.context_fields)]
        wrong = [f.name for f in users if f.kind != "categorical"]
        if wrong:
            raise ValueError(f"user and context fields must be categorical, but {', '.join(wrong)} is not: declare buckets for it")
        self.item_fields = FieldEmbedding(spec.item_fields, dim)
        self.user_fields = FieldEmbedding(users, dim)
        self.shown = Shown(self.item_fields)
        self.encoder = SkipMlp(self.item_fields.width, config.encoder_hidden, dim)
        self.corpus_norm = CorpusNorm(dim if config.rank_gradient_to_encoder else 2 * dim)
        self.user_tower = SkipMlp(self.user_fields.width + dim, 2 * dim, dim)
        self.attention = HistoryAttention(dim, config.heads)
        self.pool_query = nn.Linear(dim, dim) if config.retrieval_query == "pool" else None
        self.coupled = config.codebook == "coupled_ste"
        sizes = (config.levels, config.codes, dim, config.ema_decay, config.dead_code_steps)
        self.quantizer = ResidualQuantizer(*sizes, coupled=self.coupled)
        self.exploration = GumbelExploration(config) if config.assignment.startswith("gumbel") else None
        width = spec.cross_width + config.affinity.enabled
        self.norm_user = DomainNorm(dim)
        self.norm_history = DomainNorm(dim)
        self.norm_item = DomainNorm(dim)
        self.norm_sid = DomainNorm(dim)
        self.norm_u2i = DomainNorm(width, DOMAINS, eps=CROSS_EPS)
        self.norm_u2t = DomainNorm(width, DOMAINS, eps=CROSS_EPS)
        self.mixer = Mixer(config, 3 * dim + width)
        # Kept in units of BIAS_GAIN: base rates must follow within a few hundred steps of an optimizer that moves by its rate.
        self.rank_bias = nn.Parameter(torch.zeros(DOMAINS))
        self.recall_bias = nn.Parameter(torch.zeros(DOMAINS))
        self.u2t_head = U2tHead(dim, width)
        # Last, so that all else starts as it does without one.
        self.token_encoder = None if config.rank_gradient_to_encoder else ItemEncoder(spec.item_fields, config.encoder_hidden, dim)
        self.register_buffer("user_offset_F", torch.tensor([self.user_fields.offset[f.name] for f in users]).long(), persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("biased", torch.zeros((), dtype=torch.bool))
        self.register_buffer("code_NL", torch.zeros((0, config.levels), dtype=torch.int64))
        self.register_buffer("item_index_NJ", torch.zeros((0, 0), dtype=torch.int64), persistent=False)
        self.register_buffer("item_number_NQ", torch.zeros((0, 0)), persistent=False)
        self.items: ItemTable | None = None
        self.known_ND: Tensor | None = None
        self.settled = False
        self.reserved = KnownSids.none(config.levels)
        self.neighbours: Neighbours | None = None
        self.reset_rows = torch.zeros(0, dtype=torch.int64)
        self._affinity = LastAffinity()
        self._buckets: CatalogueBuckets | None = None

    # ---- catalogue -----------------------------------------------------------------------------------------------

    def set_items(self, items: ItemTable) -> None:
        """Take a catalogue; an item (by hash) keeps its code, or has its ``reserved`` one, or none until the next update.

        Raises:
            ValueError: a field of the spec is missing, or a bucket is out of range.
        """
        if items is self.items and self.known_ND is not None:
            return
        index_NJ, number_NQ = self.item_fields.pack(items.fields, items.numbers)
        code_NL = self.codes_held(items.hash_N)
        self.items, self.known_ND = items, None
        self.shown.enter(items.hash_N)
        self.item_index_NJ, self.item_number_NQ, self.code_NL = (t.to(self.step.device) for t in (index_NJ, number_NQ, code_NL))
        self._buckets = None

    @property
    def affinity(self) -> Affinity | None:
        """Affinity with the rows of the catalogue, the last column of ``c_uv``; None where ``config.affinity`` is off."""
        return self._affinity.of(self.neighbours, self.items) if self.config.affinity.enabled else None

    def codes_held(self, hash_M: NDArray[np.int64]) -> Tensor:
        """Codes that items have by now, ``(M, L)``: in the catalogue, else in reserve; -1 for one that has none."""
        reserved_ML = torch.from_numpy(self.reserved.find(hash_M))
        if self.items is None or not len(self.code_NL):
            return reserved_ML
        row_M = torch.from_numpy(self.items.rows(hash_M))
        own_ML = self.code_NL.cpu()[row_M]
        return torch.where((row_M > 0).unsqueeze(1) & (own_ML >= 0), own_ML, reserved_ML)

    def encode_items(self, item_M: Tensor) -> Tensor:
        """``e_v`` of rows of the item table, ``(M,) -> (M, D)``: static fields only, standardised over the catalogue.

        With a ``token_encoder`` it is what ranking reads, and beside it what the quantizer reads, ``(M, 2 D)``; all methods take it so.
        """
        known_ND = self.known_ND
        out: Tensor = self.corpus_norm(self._raw_encode(item_M)) if known_ND is None else known_ND.index_select(0, item_M)
        return out

    def _raw_encode(self, item_M: Tensor, masked_M: Tensor | None = None) -> Tensor:
        index_MJ = self.shown.read(self.item_index_NJ.index_select(0, item_M), item_M, masked_M)
        return self.embed(index_MJ, self.item_number_NQ.index_select(0, item_M))

    def embed(self, index_MJ: Tensor, number_MQ: Tensor) -> Tensor:
        """Packed columns to embeddings as they are before ``corpus_norm``."""
        e_MD: Tensor = self.encoder(self.item_fields(index_MJ, number_MQ))
        if self.token_encoder is None:
            return e_MD
        return torch.cat([e_MD, self.token_encoder(index_MJ, number_MQ, self.item_fields.bag_widths)], dim=1)

    def sides(self, e_MD: Tensor) -> tuple[Tensor, Tensor]:
        """What ranking and what the quantizer reads of embeddings: the same, but with a ``token_encoder`` one half each."""
        return (e_MD, e_MD) if self.token_encoder is None else (e_MD[..., : self.config.dim], e_MD[..., self.config.dim :])

    @torch.no_grad()
    def encode_catalogue(self) -> Tensor:
        """``e_v`` of every row of the catalogue, ``(N, D)``; no gradient, no dropout, in chunks."""
        if self.known_ND is not None:
            return self.known_ND
        rows = torch.arange(len(self.item_index_NJ), device=self.step.device)
        return torch.cat([self.encode_items(chunk) for chunk in torch.split(rows, CATALOGUE_CHUNK)])

    @torch.no_grad()
    def codes(self, e_MD: Tensor, item_M: Tensor | None = None) -> Tensor:
        """Semantic IDs, ``(M, D) -> (M, L)`` int64: nearest residual codes; items that have a code keep it if the codes are ``fixed``.

        Args:
            e_MD: item embeddings.
            item_M: rows of the item table, for the codes that items have; without it ``e_MD`` must be the whole catalogue, as
                ``encode_catalogue`` gives it.
        """
        nearest_ML = self.quantizer.assign(self.sides(e_MD)[1])
        if not self.fixed:
            return nearest_ML
        if item_M is None:
            if len(e_MD) != len(self.code_NL):
                raise ValueError("items keep their codes, which are looked up by item: pass item_M, or embeddings of the whole catalogue")
            item_M = torch.arange(len(e_MD), device=e_MD.device)
        kept_ML = self.code_NL.index_select(0, item_M)
        return torch.where(kept_ML >= 0, kept_ML, nearest_ML)

    @property
    def fixed(self) -> bool:
        """Whether items keep the codes they have: of the initial tree, given ones, of the model started from, or of the saved model."""
        return self.settled or self.config.assignment in ("frozen_tree", "given")

    def prefix_embeddings(self, code_ML: Tensor) -> Tensor:
        """``e_sid(1:l)`` for each level, ``(M, L) -> (M, L, D)``; a shorter code gives its levels."""
        return self.quantizer.prefixes(code_ML)

    def _share(self) -> Tensor:
        """Catalogue rows that this rank encodes; rows of all ranks together are ``1..N-1``."""
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return torch.arange(1 + rank_here(), len(self.item_index_NJ), ranks, device=self.step.device)

    @torch.no_grad()
    def _measure(self, item_M: Tensor) -> Tensor:
        """Raw embeddings of this rank's share, whose moments (over all ranks) become the corpus statistics."""
        chunks = [self._raw_encode(chunk) for chunk in torch.split(item_M, CATALOGUE_CHUNK)]
        raw_MD = torch.cat(chunks) if chunks else self.rank_bias.new_zeros(0, len(self.corpus_norm.mean_D))
        self.corpus_norm.measure(raw_MD)
        return raw_MD

    @torch.no_grad()
    def build_codebooks(self, seed: int) -> dict[str, float]:
        """Start the codebooks from a balanced k-means tree over the catalogue, or from given SIDs; the first rank's are everyone's.

        Returns:
            Collision rate of these SIDs, and of the same items under nearest-code assignment.

        Raises:
            ValueError: an empty catalogue, embeddings that are not finite, or given SIDs that do not fit.
        """
        self._measure(self._share())
        e_ND, codes = self.sides(self.encode_catalogue()[1:])[1], self.config.codes
        if self.config.assignment == "given":
            tree = codebooks_of(e_ND.cpu().numpy(), self.code_NL[1:].cpu().numpy(), codes, seed)
        else:
            tree = balanced_tree(e_ND.cpu().numpy(), self.config.levels, codes, seed)
        code_LKD, count_LK = torch.from_numpy(tree.code_LKD).to(e_ND), torch.from_numpy(tree.count_LK).to(e_ND)
        self.code_NL[1:] = torch.from_numpy(tree.sid_NL).to(e_ND.device)
        if dist.is_available() and dist.is_initialized():
            for shared in (code_LKD, count_LK, self.code_NL):
                dist.broadcast(shared, src=0)
        self.quantizer.start(code_LKD, count_LK)
        if not self.fixed:
            self.code_NL[1:] = self.quantizer.assign(e_ND)
        self.recall_bias.copy_(self.rank_bias)
        self._buckets = None
        return {"tree_collision_rate": tree.collision_rate, "nearest_collision_rate": tree.nearest_collision_rate}

    @torch.no_grad()
    def update_codebooks(self) -> dict[str, float]:
        """Once after each optimizer step: corpus statistics, EMA of the codes over the whole catalogue, dead-code reset.

        Every rank encodes its share of the catalogue and sums are reduced, so all ranks agree. Before ``build_codebooks`` only
        the corpus statistics move and nothing is returned.

        Returns:
            ``codes_used_l``, ``perplexity_l``, ``collision_rate``, ``quantization_error`` (mean ``|e_v - sum c|^2``), ``codes_reset``,
            ``never_shown`` (share of items).
        """
        own_M = self._share()
        whole_MD = self.corpus_norm(self._measure(own_M))
        e_MD = self.sides(whole_MD)[1]
        self.reset_rows = torch.zeros(0, dtype=torch.int64)
        if not bool(self.quantizer.built):
            return {}
        code_ML = self.codes(whole_MD, own_M)
        number_LK = self.quantizer.update(e_MD, code_ML)
        if self.exploration is not None:
            self.exploration.observe(number_LK)
        error = (e_MD - self.quantizer.quantized(code_ML).sum(1)).square().sum().double()
        code_NL = torch.zeros_like(self.code_NL)
        code_NL[own_M] = code_ML
        self.code_NL.copy_(all_reduce(code_NL))
        self._buckets = None
        if not self.fixed:
            self._reset_dead()
        return {
            **usage(number_LK),
            "collision_rate": collision_rate(self.code_NL[1:], self.config.codes),
            "quantization_error": float(all_reduce(error)) / max(len(self.code_NL) - 1, 1),
            "codes_reset": float(len(self.reset_rows)),
            "never_shown": self.shown.never,
        }

    def _reset_dead(self) -> None:
        dead_X2 = self.quantizer.dead()
        if not len(dead_X2):
            return
        item_X = torch.randint(1, len(self.code_NL), (len(dead_X2),), generator=self._generator(rank=0, stream=1)).to(dead_X2.device)
        residual_XLD = self.quantizer.residuals(self.sides(self.encode_items(item_X))[1], self.code_NL[item_X])
        self.quantizer.reset(dead_X2, residual_XLD[torch.arange(len(dead_X2)), dead_X2[:, 0]])
        self.reset_rows = dead_X2[:, 0] * self.config.codes + dead_X2[:, 1]

    def _draw(self, rank: int, stream: int) -> int:
        """Seed of one kind of random draw in this step, on one rank."""
        sequence = np.random.SeedSequence([self.seed, int(self.step), rank, stream])
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)

    def _generator(self, rank: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._draw(rank, stream))

    # ---- scoring -------------------------------------------------------------------------------------------------

    def user_side(self, batch: Batch) -> UserSide:
        """User side of each request, without any item: computed once, used by all rows."""
        requests, length = batch.history_BH.shape
        item_M, at_X = torch.unique(batch.history_BH, return_inverse=True)
        e_BHD = self.sides(self.encode_items(item_M))[0].index_select(0, at_X.flatten()).view(requests, length, -1)
        return self._user_side(batch, e_BHD)

    def _user_side(self, batch: Batch, e_BHD: Tensor) -> UserSide:
        keys_BHD, values_BHD, mask_BH, pooled_BD = self.attention.history(e_BHD, batch.history_age_BH, batch.history_BH > 0)
        fields_BX = self.user_fields(batch.user_BF + self.user_offset_F)
        return UserSide(self.user_tower(torch.cat([fields_BX, pooled_BD], dim=1)), keys_BHD, values_BHD, mask_BH)

    def _normed_user(self, users: UserSide, request_R: Tensor, read_RTD: Tensor, member_RS: Tensor) -> Tensor:
        """``BN_user(h_u)`` of each query, ``(R, T, U + D)``: the request's side and what the query read from the history."""
        rows, each, dim = read_RTD.shape
        user_RU = self.norm_user(users.user_BU.index_select(0, request_R), member_RS)
        read_RTD = self.norm_history(read_RTD.reshape(rows * each, dim), member_RS.repeat_interleave(each, 0)).view(rows, each, dim)
        return torch.cat([user_RU.unsqueeze(1).expand(-1, each, -1), read_RTD], dim=2)

    def pooled(self, users: UserSide, request_R: Tensor) -> Tensor:
        """History read by a query that does not look at the target (``retrieval_query: pool``), ``(R, 1, D)``."""
        if self.pool_query is None:
            raise RuntimeError("target-free pooling needs retrieval_query: pool")
        each_B = torch.arange(len(users.user_BU), device=users.user_BU.device)
        query_B1D = self.pool_query(users.user_BU).unsqueeze(1)
        read_B1D: Tensor = self.attention(query_B1D, users, RowLayout.of(each_B, len(each_B)))
        return read_B1D.index_select(0, request_R)

    def rank_logit(self, users: UserSide, request_R: Tensor, e_RD: Tensor, cross_RC: Tensor, domain_R: Tensor) -> Tensor:
        """True log-odds of a click on items, ``(R,)``; sigmoid is calibrated. ``request_R`` must ascend."""
        member_RS, e_RD = members(domain_R, DOMAINS), self.sides(e_RD)[0]
        read_R1D = self.attention(e_RD.unsqueeze(1), users, RowLayout.of(request_R, len(users.user_BU)))
        return self._ranked(self._normed_user(users, request_R, read_R1D, member_RS), e_RD, cross_RC, member_RS)

    def _ranked(self, user_R1X: Tensor, e_RD: Tensor, cross_RC: Tensor, member_RS: Tensor) -> Tensor:
        logit_R: Tensor = self.mixer(user_R1X.squeeze(1), self.norm_item(e_RD, member_RS), self.norm_u2i(cross_RC, member_RS))
        return logit_R + BIAS_GAIN * (member_RS @ self.rank_bias)

    def recall_logit(self, users: UserSide, request_R: Tensor, prefix_RD: Tensor, u2t_RC: Tensor, domain_R: Tensor) -> Tensor:
        """True log-odds of prefixes, ``(R,)``, from ``prefix_embeddings`` and ``u2t``. ``request_R`` must ascend."""
        member_RS = members(domain_R, DOMAINS)
        if self.pool_query is None:
            layout = RowLayout.of(request_R, len(users.user_BU))
            read_R1D = self.attention(prefix_RD.unsqueeze(1), users, layout)
        else:
            read_R1D = self.pooled(users, request_R)
        user_RX = self._normed_user(users, request_R, read_R1D, member_RS).squeeze(1)
        logit_R: Tensor = self.mixer(user_RX, self.norm_sid(prefix_RD, member_RS), self.norm_u2t(u2t_RC, member_RS))
        return logit_R + BIAS_GAIN * (member_RS @ self.recall_bias)

    def predict_u2t(self, users: UserSide, request_R: Tensor, prefix_RD: Tensor) -> Tensor:
        """``MLP_u2t(h_u, e_sid(1:l))``, ``(R, C)`` in model crosses."""
        out: Tensor = self.u2t_head(users.user_BU, request_R, prefix_RD.unsqueeze(1)).squeeze(1)
        return out

    # ---- training ------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, phase: Literal["warmup", "joint"], lookup: PairLookup) -> dict[str, Tensor]:
        """Losses of a batch: ``total`` is to be minimised; the others are detached figures.

        ``rank`` always; in the joint phase ``recall`` with ``recall_<l>`` of each level, ``commit``, ``recon``, ``u2t``.

        With ``loss.recall`` 0 (the Base ranker) the joint phase is the warm-up: ranking alone, at the cost of ranking alone.

        Raises:
            RuntimeError: joint phase before ``build_codebooks``.
        """
        joint = phase == "joint" and self.config.loss.recall > 0
        if joint and not bool(self.quantizer.built):
            raise RuntimeError("the joint phase needs codebooks: call build_codebooks at the end of the warm-up")
        if not self.training or self.config.dropout == 0:
            return self._losses(batch, joint, lookup)
        with torch.random.fork_rng():  # dropout knows the global generator only
            torch.manual_seed(self._draw(rank_here(), stream=5))
            return self._losses(batch, joint, lookup)

    def _losses(self, batch: Batch, joint: bool, lookup: PairLookup) -> dict[str, Tensor]:
        if self.training:
            self._prepare(batch)
        member_RS = members((batch.source_R != SOURCE_EXPOSED).long(), DOMAINS)
        item_M, at_X = torch.unique(torch.cat([batch.item_R, batch.history_BH.flatten()]), return_inverse=True)
        e_MD = self.corpus_norm(self._raw_encode(item_M, self._masked(item_M)))
        at_R, at_BH = at_X[: batch.rows], at_X[batch.rows :]
        ranked_MD = self.sides(e_MD)[0]
        e_BHD = ranked_MD.index_select(0, at_BH).view(*batch.history_BH.shape, -1)
        users = self._user_side(batch, e_BHD)
        layout = RowLayout.of(batch.request_R, batch.requests)
        e_RD = ranked_MD.index_select(0, at_R)
        if joint:
            parts = self._joint(batch, users, layout, lookup, item_M, at_R, e_MD, e_RD, member_RS)
        else:
            read_R1D = self.attention(e_RD.unsqueeze(1), users, layout)
            user_R1X = self._normed_user(users, batch.request_R, read_R1D, member_RS)
            logit_R = self._ranked(user_R1X, e_RD, batch.cross_RC, member_RS)
            rank = losses.click_loss(logit_R, batch.offset_R, batch.label_R, member_RS)
            parts = {"total": rank + self._untouched(), "rank": rank.detach()}
        if self.training:
            commit_moments(m for m in self.modules() if isinstance(m, DomainNorm))
            self.step += 1
        return parts

    def _joint(
        self,
        batch: Batch,
        users: UserSide,
        layout: RowLayout,
        lookup: PairLookup,
        item_M: Tensor,
        at_R: Tensor,
        e_MD: Tensor,
        e_RD: Tensor,
        member_RS: Tensor,
    ) -> dict[str, Tensor]:
        """All five losses; both paths pass BN_user and the Mixer together, so that both share the same statistics."""
        rows, levels, dim = batch.rows, self.config.levels, self.config.dim
        code_ML, prefix_MLD = self._tokens(e_MD, item_M)
        e_MD = self.sides(e_MD)[1]
        prefix_RLD = prefix_MLD.view(len(item_M), -1).index_select(0, at_R).view(rows, levels, dim)
        teacher_RLC = self._teacher(batch, code_ML.index_select(0, at_R), lookup)
        reads = (users.user_BU, prefix_RLD) if self.config.u2t_gradient else (users.user_BU.detach(), prefix_RLD.detach())
        predicted_RLC = self.u2t_head(reads[0], batch.request_R, reads[1])
        seen_RLC = u2t.mixed(self.config, teacher_RLC, predicted_RLC, self._generator(rank_here(), stream=3))

        query_RTD = torch.cat([e_RD.unsqueeze(1), prefix_RLD], dim=1)
        if self.pool_query is None:
            read_RTD = self.attention(query_RTD, users, layout)
        else:
            read_R1D = self.attention(query_RTD[:, :1], users, layout)
            read_RTD = torch.cat([read_R1D, self.pooled(users, batch.request_R).expand(-1, levels, -1)], dim=1)
        member_ES = member_RS.repeat_interleave(levels, 0)
        sid_RLD = self.norm_sid(prefix_RLD.reshape(rows * levels, dim), member_ES).view(rows, levels, dim)
        u2t_RLC = self.norm_u2t(seen_RLC.reshape(rows * levels, -1), member_ES).view(rows, levels, -1)
        item_RTD = torch.cat([self.norm_item(e_RD, member_RS).unsqueeze(1), sid_RLD], dim=1)
        cross_RTC = torch.cat([self.norm_u2i(batch.cross_RC, member_RS).unsqueeze(1), u2t_RLC], dim=1)
        user_RTX = self._normed_user(users, batch.request_R, read_RTD, member_RS)
        logit_TR = self.mixer(user_RTX.flatten(0, 1), item_RTD.flatten(0, 1), cross_RTC.flatten(0, 1)).view(rows, levels + 1).t()

        rank = losses.click_loss(logit_TR[0] + BIAS_GAIN * (member_RS @ self.rank_bias), batch.offset_R, batch.label_R, member_RS)
        recall_LR = logit_TR[1:] + BIAS_GAIN * (member_RS @ self.recall_bias)
        recall, each = losses.recall_loss(recall_LR, batch.offset_R, batch.label_R, member_RS)
        commit = losses.commit_loss(self.quantizer.residuals(e_MD, code_ML), self.quantizer.quantized(code_ML))
        recon = losses.recon_loss(e_MD, self.prefix_embeddings(code_ML)[:, -1], self.config.recon_stop)
        distil = losses.u2t_loss(predicted_RLC, teacher_RLC)
        w = self.config.loss
        total = rank + w.recall * recall + w.commit * commit + w.recon * recon + w.u2t * distil
        shown = {"rank": rank, "recall": recall, "commit": commit, "recon": recon, "u2t": distil}
        if self.exploration is not None:
            total = total + SIGMA_WEIGHT * self.exploration.loss(recall)
            shown["noise"] = total.new_tensor(self.exploration.scale)
        by_level = {f"recall_{level}": loss for level, loss in enumerate(each, start=1)}
        return {"total": total, **{name: value.detach() for name, value in (shown | by_level).items()}}

    def _tokens(self, e_MD: Tensor, item_M: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``(M, L)`` that this step goes by, and the prefix embeddings that it scores ``(M, L, D)``."""
        if self.exploration is not None and self.training and not self.fixed:
            return self.exploration.explore(self.sides(e_MD)[1], self.quantizer, self._generator(rank_here(), stream=6))
        code_ML, e_MD = self.codes(e_MD.detach(), item_M), self.sides(e_MD)[1]
        prefix_MLD = self.prefix_embeddings(code_ML)
        # Straight through: what reaches any prefix reaches the embedding as if it were the prefix (arXiv 1711.00937, section 3.2).
        return code_ML, prefix_MLD + (e_MD - e_MD.detach()).unsqueeze(1) if self.coupled else prefix_MLD

    @torch.no_grad()
    def _teacher(self, batch: Batch, code_RL: Tensor, lookup: PairLookup) -> Tensor:
        """``u2t_l`` of each row, ``(R, L, C)``, by the teacher that the config names."""
        if self._buckets is None and self.config.u2t_teacher == "catalogue_sample":
            self._buckets = CatalogueBuckets.of(self.code_NL, self.config.codes, self.config.bucket_key)
        return u2t.taught(self.config, batch, code_RL, lookup, self._buckets, self._generator(rank_here(), stream=2), self.affinity)

    def _masked(self, item_M: Tensor) -> Tensor | None:
        """Which distinct items lose their item-id field in this step; None where no training goes on."""
        if not self.training:
            return None
        masked_M = (torch.rand(len(item_M), generator=self._generator(rank_here(), stream=4)) < self.config.item_id_dropout).to(
            item_M.device
        )
        self.shown.note(item_M, masked_M, self.item_index_NJ)
        return masked_M

    def _untouched(self) -> Tensor:
        """Zero that depends on the parameters which only the recall path uses."""
        idle = [self.recall_bias, *self.quantizer.parameters(), *self.norm_sid.parameters(), *self.norm_u2t.parameters()]
        idle += [p for m in (self.u2t_head, self.pool_query, self.exploration, self.token_encoder) if m is not None for p in m.parameters()]
        return torch.stack([p.sum() for p in idle]).sum() * 0.0

    @torch.no_grad()
    def _prepare(self, batch: Batch) -> None:
        """Before a training pass: corpus statistics in the warm-up, and biases at the base rate of the very first batch."""
        if not bool(self.quantizer.built) and int(self.step) % WARMUP_MEASURE_STEPS == 0:
            self._measure(self._share())
        if bool(self.biased):
            return
        member_RS = members((batch.source_R != SOURCE_EXPOSED).long(), DOMAINS)
        self.rank_bias.copy_(losses.base_log_odds(batch.offset_R, batch.label_R, member_RS) / BIAS_GAIN)
        self.recall_bias.copy_(self.rank_bias)
        self.biased.fill_(True)
