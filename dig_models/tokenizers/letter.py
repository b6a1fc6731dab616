"""What LETTER (arXiv 2405.07314) adds to the loss of an RQ-VAE: codes used alike, and codes that know what users did.

- Diversity (section 3.1): the codes of a level form clusters of equal size; a code that an item took is drawn to another one of its cluster
  and away from all others, by the InfoNCE loss of dot products, so that codes spread evenly around those that many items take.
- Collaborative alignment: InfoNCE of the quantized latents of a batch against the items' collaborative vectors.

Shape suffixes: ``M`` items of a batch, ``L`` levels, ``K`` codes, ``D`` latent width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dig_models.quantize.tree import balanced_assignment
from dig_models.tokenizers.rkmeans import residual_kmeans


def code_clusters(code_LKD: Tensor, clusters: int, seed: int) -> Tensor:
    """Cluster of every code, ``(L, K)``: k-means of each level's codes, no cluster with more than ``ceil(K / clusters)`` of them.

    Raises:
        ValueError: so many clusters that a code may have none beside it.
    """
    codes = code_LKD.shape[1]
    if 2 * clusters > codes:
        raise ValueError(f"{clusters} clusters of {codes} codes: at most {codes // 2} expected, so that no code is alone; lower clusters")
    out = []
    for level, code_KD in enumerate(code_LKD.detach().numpy()):
        center_CD = residual_kmeans(code_KD, 1, clusters, seed + level)[0]
        everywhere = np.zeros(codes, dtype=np.int64)
        out.append(balanced_assignment(code_KD, center_CD, everywhere, everywhere + -(-codes // clusters)))
    return torch.from_numpy(np.stack(out))


def diversity_loss(code_LKD: Tensor, code_ML: Tensor, cluster_LK: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over items and levels of ``-log softmax_j(c_s . c_j)`` at another code of the cluster of ``c_s``, over all ``j != s``.

    A code whose cluster holds no other adds nothing.

    Args:
        code_LKD: code vectors, with gradient.
        code_ML: the codes that items took.
        cluster_LK: see ``code_clusters``.
        generator: of the other code that is drawn.
    """
    each = []
    for level, code_KD in enumerate(code_LKD):
        own_M = code_ML[:, level]
        self_MK = F.one_hot(own_M, len(code_KD)).bool()
        friend_MK = (cluster_LK[level][own_M].unsqueeze(1) == cluster_LK[level]) & ~self_MK
        has_M = friend_MK.any(1)
        if not bool(has_M.any()):
            continue
        drawn_M = torch.multinomial(friend_MK[has_M].double(), 1, generator=generator).squeeze(1)
        logit_MK = (code_KD[own_M] @ code_KD.t()).masked_fill(self_MK, -torch.inf)
        each.append(F.cross_entropy(logit_MK[has_M], drawn_M))
    return torch.stack(each).mean() if each else code_LKD.sum() * 0.0


def alignment_loss(quantized_MD: Tensor, collaborative_MD: Tensor) -> Tensor:
    """Mean of ``-log softmax_j(q_i . h_j)`` at the item itself, over the items ``j`` of the batch."""
    return F.cross_entropy(quantized_MD @ collaborative_MD.t(), torch.arange(len(quantized_MD)))
