"""The HTTP application in this process: answers, limits, errors, the token, metrics, and what the log does not hold."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from serve_world import USERS, ServeWorld

from dig_models.serve.schemas import Answers, Error, Generation
from dig_models.serve.service import Search, Service
from tests.dig_models.serve.conftest import RETRIEVE, client_of

TOKEN = "0123456789abcdef0123"  # noqa: S105


@pytest.fixture(scope="module")
def client(made: ServeWorld):
    with client_of(made.root, max_k=50, max_users=4, max_items=20, max_body_bytes=4096) as client:
        yield client


def test_retrieve_answers_as_the_core_does(client, made):
    got = Answers.model_validate(client.post("/v1/retrieve", json={"users": ["u1", "nobody"], "k": 7}).json())
    assert (got.generation, got.model.version, got.date) == (made.first, "1", "2017-03-20")
    own = Service.open(made.root, settings=RETRIEVE).retrieve(["u1", "nobody"], Search(k=7))
    assert [a.known for a in got.answers] == [True, False]
    for answer, expected in zip(got.answers, own.answers, strict=True):
        assert [(i.item_id, tuple(i.sid), i.name) for i in answer.items] == [(i.item_id, i.sid, i.name) for i in expected.items]
        assert [i.probability for i in answer.items] == pytest.approx([i.probability for i in expected.items], rel=1e-5)


def test_rank_names_what_the_catalogue_does_not_hold(client):
    got = Answers.model_validate(client.post("/v1/rank", json={"user": "u1", "items": ["i3", "nope", "i5"]}).json())
    assert got.unknown_items == ["nope"] and {i.item_id for i in got.answers[0].items} == {"i3", "i5"}


def test_the_default_k_is_that_of_the_settings(client):
    assert len(client.post("/v1/retrieve", json={"users": ["u1"]}).json()["answers"][0]["items"]) == RETRIEVE.k


def test_health_readiness_and_what_serves(client, made):
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").json() == {"status": "ready", "generation": made.first}
    found = Generation.model_validate(client.get("/v1/generation").json())
    assert (found.generation, found.items, found.users, found.waiting_for) == (made.first, 60, len(USERS), None)


@pytest.mark.parametrize(
    ("route", "body", "where"),
    [
        ("retrieve", {"users": []}, "users"),
        ("retrieve", {"users": ["u"] * 5}, "users"),
        ("retrieve", {"users": [1]}, "users.0"),
        ("retrieve", {"users": [""]}, "users.0"),
        ("retrieve", {"users": ["u1"], "k": 0}, "k"),
        ("retrieve", {"users": ["u1"], "k": 51}, "k"),
        ("retrieve", {"users": ["u1"], "k": "5"}, "k"),
        ("retrieve", {"users": ["u1"], "beam": 100000}, "beam"),
        ("retrieve", {"users": ["u1"], "items": []}, "items"),
        ("retrieve", {"users": ["u1"], "fields": {"brand": []}}, "fields.brand"),
        ("retrieve", {"users": ["u1"], "limit": 5}, "limit"),
        ("rank", {"user": "u1", "items": ["i"] * 21}, "items"),
        ("rank", {"user": "u1"}, "items"),
        ("rank", [], "body"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(client, route, body, where):
    answer = client.post(f"/v1/{route}", json=body)
    assert answer.status_code == 422
    fault = Error.model_validate(answer.json()).error
    assert fault.code == "invalid" and where in [d["where"] for d in fault.details]
    assert where in fault.message


def test_a_field_that_this_catalogue_does_not_have_is_named(client):
    answer = client.post("/v1/retrieve", json={"users": ["u1"], "fields": {"colour": ["red"]}})
    assert answer.status_code == 422 and "it can by item, brand" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 422, "invalid"),
        (b'{"users": ["\\ud800"]}', "application/json", 422, "invalid"),
        (b"\xff\xfe", "application/json", 422, "invalid"),
        (b"users=u1", "application/x-www-form-urlencoded", 415, "media_type"),
        (b'{"users": ["' + b"u" * 5000 + b'"]}', "application/json", 413, "too_large"),
    ],
)
def test_bodies_that_are_no_question_are_refused(client, content, kind, status, code):
    answer = client.post("/v1/retrieve", content=content, headers={"content-type": kind})
    assert (answer.status_code, Error.model_validate(answer.json()).error.code) == (status, code)


def test_other_paths_and_methods_get_the_same_shape_of_error(client):
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/v1/rank"), 405), (client.post("/health"), 405)):
        assert answer.status_code == status
        Error.model_validate(answer.json())


def test_the_openapi_document_holds_limits_examples_and_errors(client):
    paths = client.get("/openapi.json").json()["paths"]
    asked = paths["/v1/retrieve"]["post"]["requestBody"]["content"]["application/json"]
    assert asked["schema"]["properties"]["k"]["maximum"] == 50
    assert asked["schema"]["properties"]["beam"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 1000}
    assert asked["schema"]["properties"]["users"]["maxItems"] == 4
    assert "filtered" in asked["examples"]
    assert {"200", "401", "413", "415", "422", "503"} <= paths["/v1/retrieve"]["post"]["responses"].keys()


def test_metrics_count_routes_and_hold_no_user(client):
    client.post("/v1/retrieve", json={"users": ["u1"]})
    client.get("/some/secret/path")
    text = client.get("/metrics").text
    assert 'dig_serve_requests_total{route="/v1/retrieve",status="200"}' in text
    assert 'route="(other)",status="404"' in text and "secret" not in text
    assert "dig_serve_generation_info{" in text and "dig_serve_switches_total 1.0" in text
    assert "dig_serve_generation_age_seconds" in text and "dig_serve_waiting 0.0" in text
    assert "u1" not in text


def test_without_a_generation_the_server_lives_but_is_not_ready(tmp_path):
    with client_of(tmp_path / "index") as client:
        assert client.get("/health").status_code == 200
        for answer in (client.get("/ready"), client.get("/v1/generation"), client.post("/v1/rank", json={"user": "u", "items": ["i"]})):
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert Error.model_validate(answer.json()).error.code == "not_ready"


def test_a_token_guards_all_but_the_probes(made):
    with client_of(made.root, TOKEN) as client:
        ask = {"users": ["u1"], "k": 1}
        assert client.post("/v1/retrieve", json=ask).status_code == 200
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}):
            bare = TestClient(client.app, headers=given)
            for answer in (
                bare.post("/v1/retrieve", json=ask),
                bare.get("/metrics"),
                bare.get("/v1/generation"),
                bare.get("/openapi.json"),
            ):
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert Error.model_validate(answer.json()).error.code == "unauthorized"
            assert bare.get("/health").status_code == bare.get("/ready").status_code == 200


def test_the_log_holds_neither_users_nor_items_nor_histories(made, caplog):
    caplog.set_level(logging.DEBUG)
    with client_of(made.root) as client:
        client.post("/v1/retrieve", json={"users": ["u1", "very-secret-user"], "items": ["i3", "hidden-item"]})
        client.post("/v1/rank", json={"user": "very-secret-user", "items": ["i3", "hidden-item"]})
        client.post("/v1/rank", json={"user": "very-secret-user", "items": 3})
        client.get("/users/very-secret-user?also=hidden-item")
    ours = "\n".join(r.getMessage() + (r.exc_text or "") for r in caplog.records if not r.name.startswith("httpx"))
    assert "POST /v1/retrieve 200" in ours and "POST /v1/rank 422" in ours and "- (other) 404" in ours
    assert "secret" not in ours and "hidden" not in ours


def test_a_failure_nobody_expected_is_a_500_without_a_word_of_what_was_asked(made, caplog, monkeypatch):
    def fail(self, users, search):
        raise KeyError(users[0])

    with client_of(made.root) as client:
        monkeypatch.setattr(Service, "retrieve", fail)
        answer = client.post("/v1/retrieve", json={"users": ["very-secret-user"]})
        assert client.get("/health").status_code == 200
    assert answer.status_code == 500 and Error.model_validate(answer.json()).error.code == "internal"
    said = "\n".join(r.getMessage() + (r.exc_text or "") for r in caplog.records if not r.name.startswith("httpx"))
    assert "KeyError at test_app.py" in said and "secret" not in said + answer.text


def test_more_questions_than_may_wait_are_told_when_to_come_back(made, monkeypatch):
    go, began, whole = threading.Event(), threading.Event(), Service.rank

    def slow(self, user, items):
        began.set()
        assert go.wait(30)
        return whole(self, user, items)

    with client_of(made.root, waiting=2) as client, ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(Service, "rank", slow)
        ask = {"user": "u1", "items": ["i3"]}
        first = pool.submit(client.post, "/v1/rank", json=ask)
        assert began.wait(30)
        others = [pool.submit(client.post, "/v1/rank", json=ask) for _ in range(6)]
        refused = [one.result() for one in others if _settled(one)]
        while len(refused) < 4:
            refused = [one.result() for one in others if _settled(one)]
        go.set()
        answers = [one.result() for one in (first, *others)]
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 503, 503, 503, 503]
    assert all(a.headers["retry-after"] == "1" and a.json()["error"]["code"] == "busy" for a in refused)


def _settled(future):
    try:
        future.result(timeout=0.05)
    except TimeoutError:
        return False
    return True


def test_an_answer_that_takes_too_long_is_given_up(made, monkeypatch):
    go, whole = threading.Event(), Service.rank

    def slow(self, user, items):
        go.wait(30)
        return whole(self, user, items)

    with client_of(made.root, timeout_seconds=0.2) as client:
        monkeypatch.setattr(Service, "rank", slow)
        answer = client.post("/v1/rank", json={"user": "u1", "items": ["i3"]})
        go.set()
    assert answer.status_code == 503 and "no answer within 0.2 s" in answer.json()["error"]["message"]


def test_a_generation_that_fails_when_it_is_warmed_says_nothing_of_users(made, caplog, monkeypatch):
    def fail(self, users, search):
        raise KeyError(f"very-secret-{users[0]}")

    monkeypatch.setattr(Service, "retrieve", fail)
    with client_of(made.root) as client:
        assert client.get("/ready").status_code == 503
    assert "cannot be opened" in caplog.text and "KeyError at test_app.py" in caplog.text
    assert "secret" not in caplog.text


ROUTES = [("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics"), ("GET", "/v1/generation"), ("GET", "/openapi.json")]
ROUTES += [("POST", "/v1/retrieve"), ("POST", "/v1/rank")]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "127.8.0.1:1", "localhost:9000", "LocalHost", "[::1]", "[::1]:8000"])
def test_whoever_names_loopback_is_answered(client, host):
    assert client.get("/v1/generation", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("rebound.example", "rebound.example:8000", "127.0.0.1.rebound.example", "localhost.rebound.example", "localhost."),
        *(
            "0.0.0.0:8000",
            "192.168.1.5",
            "[::]:8000",
            "::1",
            "[::1",
            "[localhost]",
            "127.0.0.1:8000:8000",
            "user@127.0.0.1",
            "2130706433",
            "",
        ),
    ],
)
def test_without_a_token_a_request_for_another_host_is_refused(client, host):
    for method, route in ROUTES:
        answer = client.request(method, route, headers={"host": host})
        assert answer.status_code == 421, route
        assert Error.model_validate(answer.json()).error.code == "misdirected"


def test_with_a_token_any_host_may_be_named(made):
    with client_of(made.root, TOKEN) as client:
        named = {"host": "shop.example"}
        assert [client.request(*one, headers=named).status_code for one in ROUTES] == [200] * 5 + [415] * 2
        assert client.post("/v1/retrieve", json={"users": ["u1"]}, headers=named).status_code == 200


def test_answers_are_plain_json(client):
    text = client.post("/v1/retrieve", json={"users": ["u1"], "k": 3}).text
    assert json.loads(text)["answers"][0]["items"][0]["probability"] > 0
    assert "NaN" not in text
