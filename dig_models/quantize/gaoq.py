"""Globally aligned orthogonal quantization (GAOQ; ReSID, arXiv 2602.02338): a balanced tree whose codes mean the same under every parent.

Level 1 is balanced k-means. On every further level the items of each node are clustered anew, so codes of two parents would have nothing
in common; here they are named by one set of orthonormal anchors for the whole level (QR of a Gaussian): the directions from the parent's
mean to its children's are matched to the anchors (Hungarian, largest sum of cosines), and a child's code is its anchor's number. On the
last level the children are the items themselves, with as many anchors as the largest bucket has items, so no two items share a SID.

Shape suffixes: ``M`` items, ``L`` levels, ``D`` width, ``B`` children of a node, ``P`` nodes of a level (numbered by prefix, ``p B +
code``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from dig_models.quantize.balanced import balanced_kmeans
from dig_models.quantize.tree import Floats, Ints, distances

LEAF = 15
_CHUNK = 256


def branching_of(items: int, levels: int, codes: int) -> tuple[int, ...]:
    """Children of a node on each level: even levels, so many that each bucket above the last one holds some 15 items.

    The paper has N/10 to N/20 buckets. With few items buckets are smaller, no larger than the L-th root of N, as all levels alike would
    have it; with few codes they are as large as they have to be.

    Args:
        items: to be quantized, M.
        levels: SID length.
        codes: what no level may exceed.

    Raises:
        ValueError: fewer than two levels, no items, or no branching within ``codes`` has a SID for every item.
    """
    if levels < 2 or items < 1:
        raise ValueError(f"GAOQ of {items} item(s) on {levels} level(s): at least 1 and 2 expected")
    if items > codes**levels:
        need = next(b for b in range(codes, items + 1) if b**levels >= items)
        raise ValueError(
            f"{items} items do not fit into {levels} levels of {codes} codes, which have {codes**levels} SIDs: "
            f"a branching of {'x'.join([str(need)] * levels)} would do, so set codes to {need} or more, or take more levels"
        )
    leaf = min(LEAF, codes, next(b for b in range(1, items + 1) if b**levels >= items))
    leaf = max(leaf, -(-items // codes ** (levels - 1)))
    left, above = items / leaf, []
    for remaining in range(levels - 1, 0, -1):
        # 1e-9: a root that is whole but for rounding stays as it is.
        above.append(max(1, math.ceil(left ** (1 / remaining) - 1e-9)))
        left /= above[-1]
    above.reverse()
    return (*above, -(-items // math.prod(above)))


def anchors(count: int, width: int, seed: int, level: int) -> Floats:
    """Orthonormal directions ``(count, width)``: QR of a seeded Gaussian, the same for all nodes of a level.

    Raises:
        ValueError: more than ``width`` are asked for.
    """
    if count > width:
        raise ValueError(
            f"level {level}: {count} orthonormal anchors in {width} dimensions, where at most {width} fit: "
            "make the vectors wider or the branching narrower"
        )
    q_DB, r_BB = np.linalg.qr(np.random.default_rng([seed, level]).normal(size=(width, count)))
    return np.ascontiguousarray((q_DB * np.where(np.diag(r_BB) < 0, -1.0, 1.0)).T, dtype=np.float32)


@dataclass(frozen=True)
class Gaoq:
    """A fitted tree.

    Attributes:
        branching: children of a node on each level; the last is the size of the largest bucket.
        code_ML: SIDs of the fitted items, all distinct.
        centers: means of the nodes of levels ``1 .. L - 1``, ``(P, D)`` each.
        anchors: anchors of levels ``2 .. L``, ``(B, D)`` each.
    """

    branching: tuple[int, ...]
    code_ML: Ints
    centers: tuple[Floats, ...]
    anchors: tuple[Floats, ...]

    @classmethod
    def fit(cls, x_MD: Floats, branching: tuple[int, ...], seed: int) -> Gaoq:
        """Quantize items; the same items, branching and seed give the same SIDs.

        Args:
            x_MD: items.
            branching: children of a node on each level (see ``branching_of``); the last must hold the largest bucket, and is taken as its
                size.
            seed: of clusters and anchors.

        Raises:
            ValueError: fewer than two levels, more buckets than items, a last level that does not hold the largest bucket, more anchors
                than the vectors have dimensions, or vectors that are not finite.
        """
        branching = _checked(len(x_MD), branching)
        anchor = tuple(anchors(count, x_MD.shape[1], seed, level) for level, count in enumerate(branching[1:], start=2))
        x_MD = x_MD.astype(np.float32)
        first = balanced_kmeans(x_MD, branching[0], seed)
        codes, centers, node_M = [first.label_M], [first.center_KD], first.label_M
        for level, anchor_BD in enumerate(anchor[:-1], start=2):
            code_M, center_PD = _aligned(x_MD, node_M, centers[-1], anchor_BD, [seed, level])
            node_M = node_M * len(anchor_BD) + code_M
            codes.append(code_M)
            centers.append(center_PD)
        codes.append(_matched(x_MD - centers[-1][node_M], node_M, anchor[-1]))
        return cls(branching, np.stack(codes, axis=1), tuple(centers), anchor)

    def nearest(self, x_MD: Floats) -> Ints:
        """SIDs ``(M, L)`` of items that were not fitted, each for itself: two of them may get the same one.

        Level by level the nearest node; on the last level, of the anchors that no fitted item of the bucket has, the one nearest by
        cosine, and of all anchors where the bucket is full.
        """
        taken_PB = self._taken()
        out = [self._nearest(x_MD[at : at + _CHUNK].astype(np.float32), taken_PB) for at in range(0, len(x_MD), _CHUNK)]
        return np.concatenate(out) if out else np.zeros((0, len(self.branching)), dtype=np.int64)

    def _taken(self) -> NDArray[np.bool_]:
        """Which anchors of each bucket belong to fitted items, ``(P, B)``."""
        taken_PB = np.zeros((len(self.centers[-1]), self.branching[-1]), dtype=np.bool_)
        taken_PB[prefix_nodes(self.code_ML[:, :-1], self.branching), self.code_ML[:, -1]] = True
        return taken_PB

    def _nearest(self, x_CD: Floats, taken_PB: NDArray[np.bool_]) -> Ints:
        node_C = distances(x_CD, self.centers[0]).argmin(1)
        codes = [node_C]
        for count, center_PD in zip(self.branching[1:-1], self.centers[1:], strict=True):
            child_CBD = center_PD.reshape(-1, count, x_CD.shape[1])[node_C]
            code_C = (np.square(child_CBD).sum(2) - 2.0 * np.einsum("cbd,cd->cb", child_CBD, x_CD)).argmin(1)
            codes.append(code_C)
            node_C = node_C * count + code_C
        cosine_CB = _unit(x_CD - self.centers[-1][node_C]) @ self.anchors[-1].T
        # A cosine is at most 1, so a free anchor is always before one that is taken.
        codes.append((cosine_CB - 4.0 * taken_PB[node_C]).argmax(1))
        return np.stack(codes, axis=1).astype(np.int64)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that ``from_arrays`` needs."""
        out: dict[str, NDArray[Any]] = {"branching": np.array(self.branching, dtype=np.int64), "code_ML": self.code_ML}
        out |= {f"centers.{at}": center for at, center in enumerate(self.centers)}
        return out | {f"anchors.{at}": anchor for at, anchor in enumerate(self.anchors)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Gaoq:
        """What ``arrays`` is of.

        Raises:
            KeyError: one is missing.
        """
        branching = tuple(int(count) for count in arrays["branching"])
        above = range(len(branching) - 1)
        return cls(
            branching, arrays["code_ML"], tuple(arrays[f"centers.{at}"] for at in above), tuple(arrays[f"anchors.{at}"] for at in above)
        )


def prefix_nodes(code_ML: Ints, branching: tuple[int, ...]) -> Ints:
    """Number of the node that codes lead to, ``(M, levels) -> (M,)``."""
    node_M = np.zeros(len(code_ML), dtype=np.int64)
    for code_M, count in zip(code_ML.T, branching, strict=False):
        node_M = node_M * count + code_M
    return node_M


def _checked(items: int, branching: tuple[int, ...]) -> tuple[int, ...]:
    """The branching with its last level as large as the largest bucket."""
    shown = "x".join(map(str, branching))
    if len(branching) < 2 or min(branching) < 1:
        raise ValueError(f"GAOQ branching {shown}: at least two levels of at least one child expected")
    buckets = math.prod(branching[:-1])
    if buckets > items:
        raise ValueError(f"GAOQ branching {shown}: {buckets} buckets of {items} item(s), at least one item a bucket expected")
    largest = -(-items // buckets)
    if largest > branching[-1]:
        raise ValueError(
            f"GAOQ branching {shown}: the largest of {buckets} buckets has {largest} of {items} items, the last level has "
            f"{branching[-1]} codes; expected {'x'.join(map(str, (*branching[:-1], largest)))} or more buckets"
        )
    return (*branching[:-1], largest)


def _aligned(x_MD: Floats, node_M: Ints, center_PD: Floats, anchor_BD: Floats, seed: list[int]) -> tuple[Ints, Floats]:
    """One inner level: codes of the items, and the means of the new nodes."""
    count = len(anchor_BD)
    code_M = np.empty(len(x_MD), dtype=np.int64)
    child_PBD = np.empty((len(center_PD), count, x_MD.shape[1]), dtype=np.float32)
    seed_P = np.random.SeedSequence(seed).generate_state(len(center_PD))
    for parent, member_X in enumerate(_members(node_M, len(center_PD))):
        found = balanced_kmeans(x_MD[member_X], count, int(seed_P[parent]))
        _, of_child_B = linear_sum_assignment(_unit(found.center_KD - center_PD[parent]) @ anchor_BD.T, maximize=True)
        code_M[member_X] = of_child_B[found.label_M]
        child_PBD[parent, of_child_B] = found.center_KD
    return code_M, child_PBD.reshape(-1, x_MD.shape[1])


def _matched(residual_MD: Floats, node_M: Ints, anchor_BD: Floats) -> Ints:
    """The last level: every item of a bucket gets an anchor of its own."""
    cosine_MB = _unit(residual_MD) @ anchor_BD.T
    code_M = np.empty(len(residual_MD), dtype=np.int64)
    for member_X in _members(node_M, int(node_M.max()) + 1):
        _, code_M[member_X] = linear_sum_assignment(cosine_MB[member_X], maximize=True)
    return code_M


def _members(node_M: Ints, nodes: int) -> list[Ints]:
    """Items of each node, ascending."""
    return np.split(np.argsort(node_M, kind="stable"), np.bincount(node_M, minlength=nodes).cumsum()[:-1])


def _unit(x_XD: Floats) -> Floats:
    """Rows of length 1; zeros stay zeros."""
    length_X1 = np.linalg.norm(x_XD, axis=1, keepdims=True)
    return np.asarray(x_XD / np.where(length_X1 > 0, length_X1, 1.0), dtype=np.float32)


def alignment(x_MD: Floats, code_ML: Ints, level: int) -> float:
    """How far a code of a level means the same under different parents: ReSID's diagnostic.

    Mean cosine, over pairs of parents, of the directions from their means to their children's of one code.
    About 0 where codes of two parents have nothing in common. NaN where no code occurs under two parents.

    Args:
        x_MD: what was quantized.
        code_ML: codes of the same items, by any method.
        level: which level, from 2 on.

    Raises:
        ValueError: a level that has no parent, or is not there.
    """
    if not 2 <= level <= code_ML.shape[1]:
        raise ValueError(f"alignment of level {level}: 2..{code_ML.shape[1]} expected")
    _, parent_M = np.unique(code_ML[:, : level - 1], axis=0, return_inverse=True)
    pair_S2, of_M = np.unique(np.stack([parent_M.reshape(-1), code_ML[:, level - 1]], axis=1), axis=0, return_inverse=True)
    child_SD = _group_means(x_MD, of_M.reshape(-1))
    direction_SD = _unit(child_SD - _group_means(x_MD, parent_M.reshape(-1))[pair_S2[:, 0]]).astype(np.float64)
    _, code_S = np.unique(pair_S2[:, 1], return_inverse=True)
    sum_CD = np.zeros((int(code_S.max()) + 1, x_MD.shape[1]))
    np.add.at(sum_CD, code_S, direction_SD)
    # The sum over pairs from the length of the sum; an only child lies on its parent's mean and has no direction.
    own_C = np.bincount(code_S, weights=np.square(direction_SD).sum(1))
    pairs = (np.square(own_C) - own_C).sum()
    return float((np.square(sum_CD).sum(1) - own_C).sum() / pairs) if pairs > 0.5 else float("nan")


def _group_means(x_MD: Floats, of_M: Ints) -> NDArray[np.float64]:
    order = np.argsort(of_M, kind="stable")
    count_G = np.bincount(of_M)
    sums_GD = np.add.reduceat(x_MD[order].astype(np.float64), count_G.cumsum() - count_G, axis=0)
    return np.asarray(sums_GD / count_G[:, None], dtype=np.float64)
