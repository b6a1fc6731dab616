"""Answers of the core, compared with the retriever and with themselves."""

from __future__ import annotations

import numpy as np
import pytest
from serve_world import ITEMS, USERS, ServeWorld

from dig_models.config import RetrieveConfig
from dig_models.features import hash_id
from dig_models.retrieve.allowed import AllowedItems
from dig_models.serve import service as service_module
from dig_models.serve.service import InvalidQuery, Search, Service

SETTINGS = RetrieveConfig(beam=20, rerank=40, k=5)


@pytest.fixture(scope="module")
def service(made: ServeWorld) -> Service:
    return Service.open(made.root, settings=SETTINGS)


def ids(answer):
    return [item.item_id for item in answer.items]


def test_every_answer_names_its_source_and_users_come_back_in_the_order_asked(service, made):
    reply = service.retrieve(["u3", "nobody", "u1", "u3"], Search(k=5))
    assert (reply.source.generation, reply.source.model_version) == (made.first, "1")
    assert [(a.user, a.known) for a in reply.answers] == [("u3", True), ("nobody", False), ("u1", True), ("u3", True)]
    first, last = reply.answers[0], reply.answers[3]
    assert ids(first) == ids(last)  # sums of a row may end in another last bit at another place of the batch
    assert [i.probability for i in first.items] == pytest.approx([i.probability for i in last.items], rel=1e-5)
    assert all(len(set(ids(a))) == 5 for a in reply.answers)


def test_users_together_are_answered_as_users_alone(service):
    together = service.retrieve(["stranger", *USERS, "another", "a third"], Search(k=8))
    for answer in together.answers:
        alone = service.retrieve([answer.user], Search(k=8)).answers[0]
        assert ids(alone) == ids(answer)
        assert [i.probability for i in alone.items] == pytest.approx([i.probability for i in answer.items], rel=1e-5)


def test_retrieve_and_rank_agree(service):
    found = service.retrieve(["u2"], Search(k=6)).answers[0]
    ranked = service.rank("u2", sorted(ids(found))).answers[0]
    assert ids(ranked) == ids(found)
    assert [i.probability for i in ranked.items] == pytest.approx([i.probability for i in found.items], rel=1e-5)


def test_a_cold_user_has_missing_fields_no_history_and_the_day_after(service):
    asked = service.asked("nobody")
    assert not asked.known
    assert not asked.requests.user_BF.any() and not len(asked.requests.history_item) and not asked.requests.offer_B.any()
    assert asked.requests.ts_B[0] == service.asked("u1").requests.ts_B[0]
    one, other = service.retrieve(["nobody", "nobody else"], Search(k=5)).answers
    assert one.items == other.items


def test_unknown_items_are_named_and_the_others_ranked(service):
    reply = service.rank("u1", ["nope", "i3", "i4", "i3", "neither"])
    assert reply.unknown_items == ("nope", "neither")
    assert sorted(ids(reply.answers[0])) == ["i3", "i4"]
    none = service.rank("u1", ["nope"])
    assert none.answers[0].items == () and none.unknown_items == ("nope",)
    with pytest.raises(InvalidQuery, match="no items given"):
        service.rank("u1", [])


def test_only_allowed_items_are_returned(service):
    some = tuple(ITEMS[10:14])
    reply = service.retrieve(["u1", "nobody"], Search(k=10, items=(*some, "gone")))
    assert reply.unknown_items == ("gone",)
    assert all(sorted(ids(a)) == sorted(some) for a in reply.answers)
    assert service.retrieve(["u1"], Search(k=10, items=("gone",))).answers[0].items == ()


def test_items_are_filtered_by_field_and_by_key(service):
    table = service.reader.bundle.items
    brand, key = table.fields["brand"], table.key_KN[service.reader.bundle.spec.u2i_keys.index("brand")]
    service_of = {str(i): row for row, i in enumerate(table.id_N) if row}
    everything = Search(k=60, beam=1000)
    assert len(service.retrieve(["u1"], everything).answers[0].items) == len(ITEMS), "a beam as wide as the trie reaches every item"
    item = "i7"
    found = service.retrieve(["u1"], Search(k=60, beam=1000, fields=(("item", (item,)),))).answers[0]
    assert ids(found) == [item]
    assert brand.shape == key.shape
    tags = table.fields["tags"]
    value = next(v for v in map(str, range(5000)) if (tags == hash_id(v) % 31 + 1).any())
    bucket = hash_id(value) % 31 + 1
    expected = {i for i, row in service_of.items() if (tags[row] == bucket).any()}
    tagged = service.retrieve(["u1"], Search(k=60, beam=1000, fields=(("tags", (value,)),))).answers[0]
    assert set(ids(tagged)) == expected and expected
    with pytest.raises(InvalidQuery, match="cannot be filtered by 'colour'; it can by item, brand"):
        service.retrieve(["u1"], Search(k=5, fields=(("colour", ("red",)),)))


def test_a_filter_is_counted_once_however_it_is_written_down(made, monkeypatch):
    service, counted = Service.open(made.root, settings=SETTINGS), []
    whole = AllowedItems.of
    monkeypatch.setattr(AllowedItems, "of", lambda trie, allowed_N: counted.append(int(allowed_N.sum())) or whole(trie, allowed_N))
    written = [
        Search(k=4, items=("i3", "gone", "i5", "away"), fields=(("brand", ("a", "b")), ("tags", ("1", "2", "3")))),
        Search(k=9, beam=7, items=("away", "i5", "i3", "i5", "gone"), fields=(("tags", ("3", "2", "1", "1")), ("brand", ("b", "a")))),
        Search(k=9, exclude_bought=True, items=("i5", "gone", "away", "i3"), fields=(("brand", ("b", "a")), ("tags", ("1", "3", "2")))),
    ]
    unknown = [service.retrieve(["u1", "nobody"], search).unknown_items for search in written]
    assert unknown == [("gone", "away"), ("away", "gone"), ("gone", "away")], "in the order asked"
    assert len(counted) == 1
    for other in (
        Search(k=4, items=("i3", "i5")),
        Search(k=4, fields=(("brand", ("a", "b")),)),
        Search(k=4, fields=(("brand", ("a",)), ("brand", ("b",)))),
        Search(k=4, items=()),
    ):
        before = len(counted)
        assert service.retrieve(["u1"], other) == service.retrieve(["u1"], other)
        assert len(counted) == before + 1
    assert service.retrieve(["u1"], Search(k=4)).answers[0].items and len(counted) == 5


def test_kept_filters_take_no_more_room_than_they_may(made, monkeypatch):
    monkeypatch.setattr(service_module, "FILTER_BYTES", 9000)
    service = Service.open(made.root, settings=SETTINGS)
    sizes = []
    for number in range(30):
        answer = service.retrieve(["u1"], Search(k=3, items=tuple(ITEMS[number : number + 9]))).answers[0]
        assert set(ids(answer)) <= set(ITEMS[number : number + 9])
        sizes.append(sum(kept.size for kept in service._filters._kept.values()))
    assert 0 < max(sizes) <= 9000 and 1 < len(service._filters) < 30


def test_a_filter_that_is_long_to_write_down_takes_the_room_that_this_takes(service):
    one, long = Search(k=1, items=("i3",)), Search(k=1, items=("i3", *("x" * 200 + str(n) for n in range(1000))))
    short, whole = (service._counted(*search.filter).size for search in (one, long))
    assert whole - short > 1000 * 200


def test_a_filter_that_cannot_be_made_is_refused_every_time(service):
    for _ in range(2):
        with pytest.raises(InvalidQuery, match="cannot be filtered by 'colour'"):
            service.retrieve(["u1"], Search(k=5, fields=(("colour", ("red",)),)))


def test_what_was_bought_can_be_left_out(service):
    asked = service.asked("u2")
    bought = service.reader.retriever.store.bought(hash_id("u2"), int(asked.requests.ts_B[asked.at]))
    names = {str(service.reader.bundle.items.id_N[row]) for row in bought}
    left = ids(service.retrieve(["u2"], Search(k=60, beam=1000, exclude_bought=True)).answers[0])
    assert names and not names & set(left) and set(left) | names == set(ITEMS)


@pytest.mark.parametrize("search", [Search(k=0), Search(k=5, beam=0)])
def test_a_search_for_nothing_is_refused(service, search):
    with pytest.raises(InvalidQuery, match="expected at least 1"):
        service.retrieve(["u1"], search)


def test_warming_answers_for_known_and_cold_users(service):
    service.warm()
    assert service.reader.item_row("i1") and np.isfinite(service.rank("", ["i1"]).answers[0].items[0].probability)
