"""A copy of the item maps in Redis, for services that only look SIDs up: item -> SID and SID -> items, switched with the index.

Keys, under a prefix (``{dig}`` by default, whose braces keep all of them in one slot of a cluster):

* ``<prefix>:CURRENT``: id of the generation that serves; one ``SET`` of this key is the switch;
* ``<prefix>:<id>:item_to_sid``: hash, item id -> ``12-0-63``;
* ``<prefix>:<id>:sid_to_items``: hash, ``12-0-63`` -> JSON list of item ids;
* ``<prefix>:<id>:about``: hash with ``content``, ``date``, ``model``, ``version``, ``items``, ``sids``; written last;
* ``<prefix>:generations``: list of the ids that serve or served, newest first;
* ``<prefix>:pending``: set of the ids that were begun and have not served since; gone when there are none.

A generation's id follows from its content, so what is whole is never written again. ``CURRENT`` moves by a script that looks, in the same
step, whether the generation is whole. What a push that was cut short left is finished by the next one, or removed by it if another
generation is to serve by then; so one index alone pushes under a prefix. ``RedisIndex`` reads pointer and values in one script too, so
that an answer comes from one generation; a reader without scripts reads ``CURRENT`` and then the keys of that id, which stay for
``keep - 1`` further switches.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from redis import Redis
from redis.exceptions import RedisError

from dig_models.files import exclusive
from dig_models.index import generation as g

log = logging.getLogger(__name__)
PASSWORD = "DIG_REDIS_PASSWORD"  # noqa: S105  # the name of the variable
ROWS = 10_000
SECONDS = 30.0
FORWARD, BACKWARD, ABOUT = "item_to_sid", "sid_to_items", "about"
PENDING = "pending"

# KEYS: CURRENT, about of the new generation, generations, pending. ARGV: id, content.
SWITCH = """
if redis.call('HGET', KEYS[2], 'content') ~= ARGV[2] then return redis.error_reply('generation ' .. ARGV[1] .. ' is not whole') end
local before = redis.call('GET', KEYS[1])
redis.call('LREM', KEYS[3], 0, ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[1])
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('SET', KEYS[1], ARGV[1])
return before
"""
# KEYS: CURRENT. ARGV: prefix, name of the hash, fields.
LOOK_UP = """
local id = redis.call('GET', KEYS[1])
if not id then return {false} end
local found = {id}
for i = 3, #ARGV do found[i - 1] = redis.call('HGET', ARGV[1] .. ':' .. id .. ':' .. ARGV[2], ARGV[i]) end
return found
"""


class RedisFailed(RuntimeError):
    """The Redis server did not do what it was asked; the message names it and what it said."""


@dataclass(frozen=True, kw_only=True)
class Sunk:
    """What a push did.

    Attributes:
        written: hash fields written; 0 if the generation was there whole.
        switched: False if ``CURRENT`` named it already.
        removed: generations that were removed.
    """

    url: str
    generation: str
    written: int
    switched: bool
    removed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Values looked up in one generation, None where it has none; ``generation`` is None if nothing was published."""

    generation: str | None
    values: tuple[str | None, ...]


class RedisIndex:
    """Reads what ``push`` wrote; every call answers from one generation.

    Args:
        client: of the server.
        prefix: of the keys.
    """

    def __init__(self, client: Redis, prefix: str) -> None:
        self._prefix, self._look_up = prefix, client.register_script(LOOK_UP)

    def sids(self, items: Sequence[str]) -> Found:
        """SIDs of items, as ``12-0-63``."""
        return self._find(FORWARD, items)

    def items(self, sids: Sequence[str]) -> Found:
        """Items of SIDs, as JSON lists."""
        return self._find(BACKWARD, sids)

    def _find(self, name: str, fields: Sequence[str]) -> Found:
        found = cast(list[Any], self._look_up(keys=[f"{self._prefix}:{g.CURRENT}"], args=[self._prefix, name, *fields]))
        if found[0] is None:
            return Found(generation=None, values=(None,) * len(fields))
        return Found(generation=_text(found[0]), values=tuple(_text(value) for value in found[1:]))


def connect(url: str, password: str = "") -> Redis:
    """A client; it connects with its first command."""
    return Redis.from_url(url, password=password or None, socket_timeout=SECONDS, socket_connect_timeout=SECONDS)


def push(root: Path, url: str, prefix: str, *, keep: int, password: str = "", generation: str | None = None) -> Sunk:
    """Write the item maps of a generation to Redis and make it the one that Redis serves; doing it again changes nothing.

    Args:
        root: the index.
        url: the server, without its password.
        prefix: of the keys.
        keep: generations that stay: this one, and those that served before it.
        password: of the server.
        generation: id; by default the one that serves when the push has its turn.

    Raises:
        IndexMissing: nothing was published yet, or there is no such generation.
        IndexCorrupt: a map is not what the manifest says; nothing was switched.
        RedisFailed: the server refused or did not answer; what it served before, it serves still.
    """
    g.read_manifest(root, generation or g.require_current(root))  # a mistake leaves nothing behind, not even a lock
    with exclusive(root / ".redis.lock"), _answering(url), connect(url, password) as client:
        manifest = g.read_manifest(root, generation or g.require_current(root))
        about = f"{prefix}:{manifest.id}:{ABOUT}"
        whole = _text(client.hget(about, "content")) == manifest.content
        written = 0 if whole else _write(client, root, manifest, prefix)
        script = client.register_script(SWITCH)
        keys = [f"{prefix}:{g.CURRENT}", about, f"{prefix}:generations", f"{prefix}:{PENDING}"]
        before = _text(script(keys=keys, args=[manifest.id, manifest.content]))
        removed = _retain(client, prefix, keep)
    log.info("redis %s serves %s, %s before; %d fields written, %d generations removed", url, manifest.id, before, written, len(removed))
    return Sunk(url=url, generation=manifest.id, written=written, switched=before != manifest.id, removed=removed)


def _write(client: Redis, root: Path, manifest: g.Manifest, prefix: str) -> int:
    """All fields of a generation, ``about`` last; what a push that was cut short left is removed first."""
    folder, home = g.generation_dir(root, manifest.id), f"{prefix}:{manifest.id}"
    client.sadd(f"{prefix}:{PENDING}", manifest.id)  # first: whatever is written from here on is found again
    client.unlink(*(f"{home}:{name}" for name in (FORWARD, BACKWARD, ABOUT)))
    written = {FORWARD: 0, BACKWARD: 0}
    for name, file, rows in ((FORWARD, g.ITEM_TO_SID, _sids(folder, manifest)), (BACKWARD, g.SID_TO_ITEMS, _items(folder))):
        if (found := g.file_entry(folder / file)) != manifest.files[file]:
            raise g.IndexCorrupt(manifest.id, file, expected=f"sha256 {manifest.files[file].sha256}", found=f"sha256 {found.sha256}")
        for mapping in rows:
            client.hset(f"{home}:{name}", mapping=cast(dict[Any, Any], mapping))
            written[name] += len(mapping)
        if (there := client.hlen(f"{home}:{name}")) != written[name]:
            raise RedisFailed(f"redis: {home}:{name} holds {there} fields, {written[name]} were written: is another program writing there?")
    about = {"content": manifest.content, "date": manifest.date.isoformat(), "model": manifest.model_name}
    about |= {"version": manifest.model_version, "items": str(written[FORWARD]), "sids": str(written[BACKWARD])}
    client.hset(f"{home}:{ABOUT}", mapping=cast(dict[Any, Any], about))
    return sum(written.values())


def _sids(folder: Path, manifest: g.Manifest) -> Iterator[dict[str, str]]:
    """Item ids to SIDs, some thousand at a time."""
    levels = [f"s_{level + 1}" for level in range(manifest.levels)]
    with pq.ParquetFile(folder / g.ITEM_TO_SID) as file:
        for batch in file.iter_batches(ROWS, columns=["item_id", *levels]):
            codes = zip(*(batch.column(level).to_pylist() for level in levels), strict=True)
            yield {item: "-".join(map(str, code)) for item, code in zip(batch.column("item_id").to_pylist(), codes, strict=True)}


def _items(folder: Path) -> Iterator[dict[str, str]]:
    """SIDs to their items, some thousand at a time."""
    with pq.ParquetFile(folder / g.SID_TO_ITEMS) as file:
        for batch in file.iter_batches(ROWS, columns=["sid", "items"]):
            pairs = zip(batch.column("sid").to_pylist(), batch.column("items").to_pylist(), strict=True)
            yield {sid: json.dumps(items, separators=(",", ":")) for sid, items in pairs}


def _retain(client: Redis, prefix: str, keep: int) -> tuple[str, ...]:
    """Remove generations beyond the newest ``keep`` that served, and those whose push was cut short and overtaken by another one's."""
    name, pending = f"{prefix}:generations", f"{prefix}:{PENDING}"
    served = [str(_text(one)) for one in cast(list[Any], client.lrange(name, 0, -1))]
    begun = sorted(str(_text(one)) for one in cast(set[Any], client.smembers(pending)))
    gone = [*served[keep:], *(generation for generation in begun if generation not in served)]
    for generation in gone:
        # Keys first: if this is cut short, list and set still say what is to be removed.
        client.unlink(*(f"{prefix}:{generation}:{part}" for part in (ABOUT, FORWARD, BACKWARD)))
        client.lrem(name, 0, generation)
        client.srem(pending, generation)
    return tuple(gone)


@contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise RedisFailed(f"redis {url}: {type(error).__name__}: {error}; what it served before, it serves still") from error


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
