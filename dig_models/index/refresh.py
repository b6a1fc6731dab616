"""A delta generation: items that are new get their SIDs from the encoder that serves, items that were withdrawn leave the postings.

Nothing is trained and nothing moves: every item that stays keeps its SID, its embedding and its fields, and model, user state and crosses
are the files of the whole generation that the delta is made from, under another name. What is written anew is what follows from the list
of items: item table, maps, trie and node embeddings. So a delta generation is read as any other, at no extra cost.

Shape suffixes: ``N`` rows of the new table (row 0 unknown), ``X`` rows of the tables that it is taken from, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dig_models.arrays import ArrayError, Strings, create_npy, open_npy
from dig_models.bundle import BundleError, load_network, read_reserved
from dig_models.dig import Dig
from dig_models.faults import reached
from dig_models.features import FeatureSpec, FeatureSpecMismatch
from dig_models.index import generation as g
from dig_models.index.catalogue import EMBEDDING, SID, Published, save_items
from dig_models.index.encode import chunks, encode_rows, item_codes
from dig_models.index.resolve import ARRIVED, KNOWN, STAYS, resolve
from dig_models.index.state import HISTORY_HASH, HISTORY_ITEM, save_history_items
from dig_models.index.writer import assemble, draft, link_or_copy, write_arrays, write_maps
from dig_models.items import ItemTable
from dig_models.retrieve.trie import Trie

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What is different from the whole generation.

    Attributes:
        arrived: items that are new, as an item table.
        withdrawn: hashes of items that are gone, any order; also some that no generation holds.
    """

    arrived: ItemTable
    withdrawn: Ints


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a delta generation is made of.

    Attributes:
        home: folder of the whole generation ``base``.
        held: items of the whole and of the current generation; ``arrived`` the new ones.
        taken: rows of the new table among those of ``held`` and ``arrived``, one after the other.
    """

    home: Path
    base: g.Manifest
    model: Dig
    held: list[Published]
    arrived: ItemTable
    taken: Ints


def refresh(root: Path, fresh: Fresh, spec: FeatureSpec, *, resolve_collisions: bool = False) -> str:
    """Write the delta generation that the current one becomes, and return its id; nothing is switched. The caller holds ``locked(root)``.

    Doing it again changes nothing; if nothing is different from the whole generation, that one's id is returned.

    Args:
        root: the index folder.
        fresh: all that is different from the whole generation that the current one is, or was made from.
        spec: the feature spec in force, with which the new items' fields were made.
        resolve_collisions: a new item whose SID is taken gets another last code, see ``index.resolve``.

    Raises:
        IndexMissing: nothing was published yet, or the whole generation is gone.
        IndexCorrupt: a generation that is read is damaged.
        FeatureSpecMismatch: the current generation was made with another feature spec.
        NotIndexable: no item is left.
    """
    now = g.read_manifest(root, g.require_current(root))
    spec.require(now.spec, f"index generation {now.id}")
    base = g.read_manifest(root, now.base or now.id)
    homes = [g.generation_dir(root, manifest.id) for manifest in (base, now)]
    for home, manifest in zip(homes, (base, now), strict=True):
        g.check_files(home, manifest, checksums=False)
    try:
        model, _ = load_network(homes[0] / g.MODEL)
        model.reserved, model.settled = read_reserved(homes[0] / g.MODEL), True
        held = [_published(home, manifest, spec) for home, manifest in zip(homes, (base, now), strict=True)]
    except (ArrayError, BundleError, FeatureSpecMismatch) as error:
        raise g.IndexCorrupt(base.id, f"{g.MODEL} or {g.ITEMS}", expected="what its manifest says", found=str(error)) from None
    taken = _choose([*(one.items for one in held), fresh.arrived], fresh.withdrawn)
    if len(taken) < 2:
        raise g.NotIndexable(f"{root}: no item would be left of generation {base.id}; look at the items snapshot")
    source = _Source(home=homes[0], base=base, model=model, held=held, arrived=fresh.arrived, taken=taken)
    return assemble(root, lambda staging: _write(staging, source, resolve_collisions=resolve_collisions))


def _published(home: Path, manifest: g.Manifest, spec: FeatureSpec) -> Published:
    return Published.open(home / g.ITEMS, spec, items=manifest.items, levels=manifest.levels, dim=manifest.width)


def _choose(tables: list[ItemTable], withdrawn: Ints) -> Ints:
    """Rows of the new table among those of base, current generation and arrivals, ``(N,)``; the first that has an item gives it.

    Items of the base and arrivals make up the table; the current generation only lends what it knows of earlier arrivals.
    """
    sizes = np.cumsum([0, *(len(table) for table in tables)])
    base_N, arrived_N = tables[0].hash_N, tables[-1].hash_N
    wanted = np.union1d(base_N[1:], arrived_N[1:])
    wanted = wanted[~np.isin(wanted, withdrawn)]
    row_N = np.zeros(len(wanted), dtype=np.int64)
    for table, offset in zip(reversed(tables), reversed(sizes[:-1]), strict=True):
        at = table.rows(wanted)
        row_N = np.where(at > 0, at + offset, row_N)
    return np.concatenate([[0], row_N])


def _write(staging: Path, source: _Source, *, resolve_collisions: bool) -> g.Manifest:
    home, base, model, held, arrived, taken = source.home, source.base, source.model, source.held, source.arrived, source.taken
    for name in base.files:
        if name.startswith((f"{g.MODEL}/", f"{g.STATE}/")) and name != f"{g.STATE}/{HISTORY_ITEM}":
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(home / name, target)
    reached("refresh.reused")
    (staging / g.ITEMS).mkdir()
    save_items(staging / g.ITEMS, _merged([*(one.items for one in held), arrived], taken), model.spec)
    _write_codes(staging / g.ITEMS, model, held, arrived, taken)
    if resolve_collisions:
        _resolve(staging / g.ITEMS, source)
    reached("refresh.items_written")
    published = Published.open(staging / g.ITEMS, model.spec, items=len(taken) - 1, levels=base.levels, dim=base.width)
    trie = Trie.build(published.sid_NL)
    write_maps(staging, published.items, published.sid_NL, trie)
    write_arrays(staging, model, trie)
    save_history_items(staging / g.STATE, open_npy(staging / g.STATE / HISTORY_HASH, np.int64, (None,)), published.items)
    reached("refresh.staged")
    return draft(
        staging,
        day=base.date,
        model=model,
        model_name=base.model_name,
        model_version=base.model_version,
        sid_NL=published.sid_NL,
        users=base.users,
        base=base.id,
    )


def _merged(tables: list[ItemTable], taken: Ints) -> ItemTable:
    def column(parts: list[NDArray[Any]]) -> NDArray[Any]:
        width = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
        padded = [part if part.ndim == 1 else np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in parts]
        return np.concatenate(padded)[taken]

    def text(parts: list[NDArray[np.object_] | Strings]) -> Strings:
        return Strings.concat([part if isinstance(part, Strings) else Strings.of(part.tolist()) for part in parts]).take(taken)

    used = [table if _any_of(tables, index, taken) else _none_of(table) for index, table in enumerate(tables)]
    return ItemTable(
        hash_N=column([table.hash_N for table in tables]),
        id_N=text([table.id_N for table in tables]),
        name_N=text([table.name_N for table in tables]),
        fields={name: column([table.fields[name] for table in used]) for name in tables[0].fields},
        numbers={name: column([table.numbers[name] for table in tables]) for name in tables[0].numbers},
        key_KN=np.stack([column([table.key_KN[k] for table in tables]) for k in range(len(tables[0].key_KN))]),
    )


def _any_of(tables: list[ItemTable], index: int, taken: Ints) -> bool:
    first = sum(len(table) for table in tables[:index])
    return index == 0 or bool(((taken >= first) & (taken < first + len(tables[index]))).any())


def _none_of(table: ItemTable) -> ItemTable:
    """A table of which no row is taken must not decide how wide a field is."""
    fields = {name: np.zeros((len(table), 1), dtype=v.dtype) if v.ndim > 1 else v for name, v in table.fields.items()}
    return ItemTable(hash_N=table.hash_N, id_N=table.id_N, name_N=table.name_N, fields=fields, numbers=table.numbers, key_KN=table.key_KN)


def _write_codes(folder: Path, model: Dig, held: list[Published], arrived: ItemTable, taken: Ints) -> None:
    """SIDs and embeddings: those that items have, and for arrivals what the encoder gives, or the SID that was kept for one."""
    sid_NL = create_npy(folder / SID, np.int32, (len(taken), model.config.levels))
    embedding_ND = create_npy(folder / EMBEDDING, np.float32, (len(taken), model.config.dim))
    first = 0
    for one in held:
        mine = np.flatnonzero((taken >= first) & (taken < first + len(one.items)))
        for a, b in chunks(len(mine), 16_384):
            sid_NL[mine[a:b]], embedding_ND[mine[a:b]] = one.sid_NL[taken[mine[a:b]] - first], one.embedding_ND[taken[mine[a:b]] - first]
        first += len(one.items)
    new = np.flatnonzero(taken >= first)
    for a, b in chunks(len(new)):
        rows = taken[new[a:b]] - first
        e_RD = encode_rows(model, arrived, rows)
        sid_NL[new[a:b]], embedding_ND[new[a:b]] = item_codes(model, arrived.hash_N[rows], e_RD).numpy(), e_RD.numpy()


def _resolve(folder: Path, source: _Source) -> None:
    """New items step aside for all that the whole and the current generation hold, withdrawn items included: these may come back."""
    before = sum(len(one.items) for one in source.held)
    new_N = source.taken >= before
    known_R = (source.model.codes_held(source.arrived.hash_N[source.taken[new_N] - before])[:, 0] >= 0).numpy()
    rank_N = np.full(len(source.taken), STAYS)
    rank_N[new_N] = np.where(known_R, KNOWN, ARRIVED)
    sid_NL, embedding_ND = np.load(folder / SID, mmap_mode="r+"), np.load(folder / EMBEDDING, mmap_mode="r")
    taken_XL = np.concatenate([one.sid_NL[1:] for one in source.held])
    resolve(sid_NL, embedding_ND, source.model.quantizer.code_LKD.numpy(), rank_N=rank_N, taken_XL=taken_XL)
    sid_NL.flush()
