"""Questions made up from the OpenAPI document, valid and not: no 5xx, and every answer is as the document says."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serve_world import ServeWorld

from tests.dig_models.serve.conftest import client_of

TOKEN = "0123456789abcdef0123"  # noqa: S105
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ASKED = [("/v1/retrieve", "POST"), ("/v1/rank", "POST")]
PLAIN = [("/health", "GET"), ("/ready", "GET"), ("/metrics", "GET"), ("/v1/generation", "GET")]
# The document is the test's input: what is drawn from it is the same in every run.
pytestmark = pytest.mark.slow
bounded = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def api(made: ServeWorld):
    with client_of(made.root, access_log=False) as client:
        yield schemathesis.openapi.from_asgi("/openapi.json", running(client.app))


@pytest.fixture(scope="module")
def guarded(made: ServeWorld):
    with client_of(made.root, TOKEN, access_log=False) as client:
        yield schemathesis.openapi.from_asgi("/openapi.json", running(client.app), headers=BEARER)


def running(app):
    """The application without its lifespan, which a client would end after every question, asked by the name of this machine."""

    async def serve(scope, receive, send):
        if scope["type"] == "http":
            others = [(name, value) for name, value in scope["headers"] if name != b"host"]
            await app({**scope, "headers": [(b"host", b"127.0.0.1:8000"), *others]}, receive, send)

    return serve


def test_every_route_of_the_document_is_tried(api):
    documented = {(result.ok().path, result.ok().method.upper()) for result in api.get_all_operations()}
    assert documented == {*ASKED, *PLAIN}


@pytest.mark.parametrize(("path", "method"), ASKED + PLAIN)
@given(data=st.data())
@bounded
def test_a_valid_question_gets_the_answer_that_is_documented(api, path, method, data):
    case = data.draw(api[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
    # A field that this catalogue does not have is the one thing that a valid question can get wrong.
    assert answer.status_code == 200 or (answer.status_code == 422 and "cannot be filtered by" in answer.text)


@pytest.mark.parametrize(("path", "method"), ASKED)
@given(data=st.data())
@bounded
def test_an_invalid_question_is_refused_and_nothing_breaks(api, path, method, data):
    case = data.draw(api[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    answer = case.call_and_validate()
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize("path", ["/v1/retrieve", "/v1/rank"])
@given(body=st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists).map(repr).map(str.encode))
@bounded
def test_any_bytes_are_refused_and_nothing_breaks(api, path, body):
    answer = api[path]["POST"].Case(body=body, media_type="application/json").call(data=body)
    assert answer.status_code in (413, 415, 422), answer.text


@pytest.mark.parametrize(("path", "method"), ASKED)
@given(data=st.data())
@bounded
def test_behind_a_token_the_same_holds_and_nobody_gets_in_without(guarded, path, method, data):
    case = data.draw(guarded[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    answer = case.call_and_validate(headers=BEARER, excluded_checks=[positive_data_acceptance])
    assert answer.status_code in (200, 422)
