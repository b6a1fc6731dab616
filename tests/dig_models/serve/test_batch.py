"""The lists that workers make: every user once, as the server would answer."""

from __future__ import annotations

import pyarrow as pa
import pytest
from serve_world import USERS

from dig_models.serve.batch import SCHEMA, lists, opened
from dig_models.serve.service import Search, Service
from tests.dig_models.serve.conftest import RETRIEVE

PARTS = 3


def made_of(world, parts, search):
    numbers = [pa.RecordBatch.from_pydict({"id": [part]}) for part in parts]
    how = {"root": str(world.root), "generation": world.first, "settings": RETRIEVE, "search": search, "parts": PARTS, "ds": "2017-03-20"}
    return pa.Table.from_batches(list(lists(numbers, **how)), schema=SCHEMA)


def test_the_parts_together_hold_every_user_once_with_the_servers_answer(made):
    rows = made_of(made, range(PARTS), Search(k=6)).to_pylist()
    service = Service.open(made.root, made.first, settings=RETRIEVE)
    by_user = {user: [row for row in rows if row["user_id"] == user] for user in USERS}
    assert sum(map(len, by_user.values())) == len(rows) == 6 * len(USERS)
    for user, own in by_user.items():
        answer = service.retrieve([user], Search(k=6)).answers[0]
        assert [(r["place"], r["item_id"], r["sid"]) for r in own] == [
            (place, i.item_id, "-".join(map(str, i.sid))) for place, i in enumerate(answer.items, 1)
        ]
        assert [r["probability"] for r in own] == pytest.approx([i.probability for i in answer.items], rel=1e-5)
    assert {(r["generation"], r["ds"]) for r in rows} == {(made.first, "2017-03-20")}


def test_a_part_is_the_users_of_its_hash_and_the_generation_is_opened_once(made):
    opened.cache_clear()
    users = [set(made_of(made, [part], Search(k=2))["user_id"].to_pylist()) for part in range(PARTS)]
    assert set.union(*users) == set(USERS) and sum(map(len, users)) == len(USERS)
    assert opened.cache_info().misses == 1


def test_what_was_bought_is_left_out_where_that_was_asked(made):
    everything, new = (made_of(made, range(PARTS), Search(k=60, beam=1000, exclude_bought=new)) for new in (False, True))
    assert 0 < len(new) < len(everything)
