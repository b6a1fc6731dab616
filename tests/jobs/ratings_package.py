"""A package of the shape of recbole 1.2.1's MovieLens files, with made-up ratings: what an installed wheel leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np

from dig_models.features import SECONDS_PER_DAY

FIRST = date(1997, 9, 20)
USERS, ITEMS = 5, 14
GENRES = ("Drama", "Comedy", "Drama War", "Comedy Romance")
YEARS = ("1995", "1996", "1987")
Rating = tuple[int, int, int, int]  # user, item, rating, second


def midnight(day: date) -> int:
    return round((datetime(day.year, day.month, day.day) - datetime(1970, 1, 1)).total_seconds())


def ratings(days: int = 6, seed: int = 0) -> list[Rating]:
    """Sittings: on some days a user rates films in a few seconds, several in each; midnight and the second before it too."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(1, USERS + 1):
        films = rng.permutation(ITEMS * 4) % ITEMS + 1  # a film comes back, so that the item's own crosses move
        at = 0
        for day in range(days):
            if rng.random() < 0.25:
                continue
            seconds = sorted(rng.choice([0, SECONDS_PER_DAY - 1, *rng.integers(1, SECONDS_PER_DAY, 4)], 4, replace=False).tolist())
            for second in seconds:
                shown = dict.fromkeys(films[at : at + int(rng.integers(1, 4))].tolist())
                at = (at + 3) % (len(films) - 3)
                rows += [(user, i, int(rng.integers(1, 6)), midnight(FIRST + timedelta(days=day)) + int(second)) for i in shown]
    return rows


def install(site: Path, rows: Sequence[Rating], version: str = "1.2.1") -> Path:
    """Leave behind what ``pip install --no-deps --target <site> recbole`` would, as far as it is read here; returns ``site``."""
    record, data = site / f"recbole-{version}.dist-info", site / "recbole" / "dataset_example" / "ml-100k"
    record.mkdir(parents=True)
    data.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: recbole\nVersion: {version}\n")
    tables = {
        "inter": ["user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(map(str, r)) for r in rows)],
        "item": [
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
            *(f"{i}\tFilm {i}, The\t{year_of(i)}\t{genres_of(i)}" for i in range(1, ITEMS + 1)),
        ],
        "user": [
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
            *(f"{u}\t{20 + u}\tF\twriter\t0000{u}" for u in range(1, USERS + 1)),
        ],
    }
    for name, lines in tables.items():
        (data / f"ml-100k.{name}").write_text("\n".join(lines) + "\n")
    return site


def genres_of(item: int) -> str:
    return GENRES[item % len(GENRES)]


def year_of(item: int) -> str:
    return YEARS[item % len(YEARS)]
