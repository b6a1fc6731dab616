"""Tables that ``dig`` prints: answers, the lake, index generations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.lake import STAGING, Lake

if TYPE_CHECKING:
    from dig_models.index.diff import Difference
    from dig_models.index.diff import Group as ItemGroup
    from dig_models.index.generation import Shown
    from jobs.answers import Answer
    from jobs.promotion_log import Entry

HISTORY_SHOWN = 6
GROUPS_SHOWN = 10


def plain_table(*columns: str, title: str | None = None, right: Iterable[str] = ()) -> Table:
    """A table without lines; the columns named in ``right`` are aligned right."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold cyan")
    wanted = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in wanted else "left", overflow="fold")
    return table


def answer_table(answer: Answer) -> Table:
    """Products of an answer, best first."""
    title = f"index {answer.generation}, {answer.model_name} v{answer.model_version}"
    table = plain_table("#", "product", "name", "probability", "SID", title=title, right=("#", "probability"))
    for item in answer.items:
        table.add_row(str(item.place), item.item_id, Text(item.name), f"{item.probability:.4g}", "-".join(map(str, item.sid)))
    return table


def history_line(answer: Answer, shown: int = HISTORY_SHOWN) -> Text:
    """The user's newest products, newest first."""
    names = [f"{past.name} ({past.day:%d %b})" for past in answer.history[:shown]]
    more = f", and {len(answer.history) - shown} more" if len(answer.history) > shown else ""
    return Text(
        f"user {answer.user} bought " + ", ".join(names) + more
        if names
        else f"user {answer.user}: no product of the catalogue bought lately"
    )


def lake_rows(root: str) -> dict[str, dict[str, Any]]:
    """Tables of a lake by name: number of days, first, last, days missing between them, rows.

    Raises:
        CorruptPartition: a marker is damaged; the message names table and day.
    """
    lake = Lake(root)
    names = sorted(p.name for p in lake.root.iterdir() if p.is_dir() and p.name != STAGING) if lake.root.is_dir() else []
    rows = {}
    for name in names:
        if days := lake.days(name):
            markers = lake.require(name, days)
            rows[name] = {
                "days": len(days),
                "first": days[0].isoformat(),
                "last": days[-1].isoformat(),
                "missing": (days[-1] - days[0]).days + 1 - len(days),
                "rows": sum(marker.rows for marker in markers),
            }
    return rows


def generation_table(shown: Shown) -> Table:
    """What a generation says of itself."""
    m = shown.manifest
    table = plain_table("index generation", m.id)
    levels = "  ".join(f"{level['used']}/{level['codes']}" for level in m.quality["levels"])
    rows = {
        "serves": f"{m.date}{'' if m.id == shown.current else '  (not current)'}",
        "model": f"{m.model_name} v{m.model_version}",
        "items": f"{m.items:,}",
        "users": f"{m.users:,}",
        "codes used by level": levels,
        "collision rate": f"{m.quality['collision_rate']:.4f}",
        "against": m.previous or "nothing before it",
        "folder": str(shown.root / "generations" / m.id),
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table


def promotion_lines(entries: Sequence[Entry]) -> Iterator[Text]:
    """The promotion log, oldest first: a line that holds what can be copied, then a line that says why."""
    styles = {"promoted": "green", "refused": "red", "undone": "yellow"}
    for e in entries:
        versions = f"version {e.before.version or '-'} → {e.after.version or '-'}"
        yield Text.assemble(e.moved_at, "  ", e.action, " ", (e.outcome, styles[e.outcome]), f"  {versions}  {e.after.generation or ''}")
        yield Text(f"    {e.who}: {e.message or e.reason}")


def difference_table(found: Difference, shown: int = GROUPS_SHOWN) -> Group:
    """What changed between two generations."""
    title = Text(f"{found.old} ({found.models[0]}) → {found.new} ({found.models[1]})", style="bold cyan")
    head = plain_table("", "items", "share", right=("items", "share"))
    for key, value in {"in both": found.common, "added": found.added, "removed": found.removed}.items():
        head.add_row(key, f"{value:,}", "")
    for level, count in sorted(found.moved.items()):
        head.add_row(f"moved at level {level}", f"{count:,}", f"{count / found.common:.2%}")
    lists = plain_table("postings", "SIDs", right=("SIDs",))
    of = found.postings
    for key, value in {"in all": of.sids, "other items": of.changed, "emptied": of.emptied, "opened": of.opened}.items():
        lists.add_row(key, f"{value:,}")
    parts: list[RenderableType] = [title, head, lists]
    parts += [_groups_table(field, groups, shown) for field, groups in found.groups.items()]
    if found.examples:
        some = plain_table("product", "change", "level", "old SID", "new SID", title="some of them")
        for row in found.examples:
            some.add_row(row["item_id"], row["change"], str(row["level"] or ""), row["old_sid"] or "", row["new_sid"] or "")
        parts.append(some)
    return Group(*parts)


def _groups_table(field: str, groups: Sequence[ItemGroup], shown: int) -> Table:
    """Items of a field's values, most moved first."""
    numbers = ("in both", "moved", "share", "added", "removed")
    more = f" ({shown} of {len(groups)} values; --json has all)" if len(groups) > shown else ""
    table = plain_table(field, *numbers, title=f"by {field}{more}", right=numbers)
    for group in groups[:shown]:
        share = f"{group.moved / group.common:.2%}" if group.common else ""
        table.add_row(Text(group.value), f"{group.common:,}", f"{group.moved:,}", share, f"{group.added:,}", f"{group.removed:,}")
    return table
