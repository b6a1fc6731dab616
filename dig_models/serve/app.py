"""The HTTP application: routes, limits, the token, one shape of errors, and a log that holds no user.

Bodies are read here and not by the framework, so that their size is limited while they arrive and they are parsed once.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dig_models.config import RetrieveConfig, ServeConfig
from dig_models.serve.engine import Busy, Engine, NotReady
from dig_models.serve.errors import where
from dig_models.serve.follower import Follower
from dig_models.serve.hosts import names_loopback
from dig_models.serve.metrics import Metrics
from dig_models.serve.schemas import Answers, Error, Generation, Health, Model, Question, Questions, Ready, Refused, answers, parse
from dig_models.serve.service import InvalidQuery, Reply

log = logging.getLogger(__name__)
Q = TypeVar("Q", bound=Question)
JSON = "application/json"
TEXT: dict[str, Any] = {"description": "text format of Prometheus", "content": {"text/plain": {"schema": {"type": "string"}}}}
GONE, ELSEWHERE = 499, "(other)"
SAID = {
    401: "no token, or a wrong one",
    408: "the body did not arrive in time",
    413: "the body is larger than serve.max_body_bytes",
    415: "the body is no application/json",
    421: "without a token only requests that name loopback as their host are answered",
    422: "the question cannot be read, or not answered by this generation",
    503: "no generation is open, or too many questions wait; Retry-After says when to ask again",
}
EXAMPLES = {
    "retrieve": {
        "ten items": {"summary": "ten items for a user", "value": {"users": ["128"], "k": 10}},
        "filtered": {
            "summary": "new to the users, of one department",
            "value": {"users": ["128", "7"], "k": 5, "exclude_bought": True, "fields": {"department": ["GROCERY"]}},
        },
    },
    "rank": {
        "three items": {"summary": "three items in a user's order", "value": {"user": "128", "items": ["1029743", "1106523", "995242"]}}
    },
}


class Server:
    """What the routes share.

    Args:
        config: limits.
        defaults: default ``k`` of questions.
        follower: names what serves.
        engine: answers.
        metrics: counts.
        token: asked of every route but ``/health`` and ``/ready``; none if empty.
    """

    def __init__(
        self, config: ServeConfig, defaults: RetrieveConfig, follower: Follower, engine: Engine, metrics: Metrics, token: str = ""
    ) -> None:
        self.config, self.follower, self.engine, self.metrics = config, follower, engine, metrics
        self.questions = Questions.of(config, defaults)
        self.token = token

    async def addressed(self, request: Request) -> None:
        """Refuse a request that was meant for another host, where no token tells friends from strangers.

        A page from elsewhere can have its own name point to loopback, and a browser then lets it read what it gets from there; the
        ``Host`` header still holds that name.

        Raises:
            Refused: 421.
        """
        if not self.token and not names_loopback(request.headers.get("host", "")):
            raise Refused(421, "misdirected", "without a token the Host header must name loopback: 127.0.0.1, [::1] or localhost")

    async def allow(self, request: Request) -> None:
        """Refuse a request without the token.

        Raises:
            Refused: 401.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # The comparison takes as long for a nearly right token as for a wrong one.
        if self.token and not (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())):
            raise Refused(401, "unauthorized", "a token is needed: Authorization: Bearer <token>")

    async def health(self) -> Response:
        """The process answers; says nothing of a generation."""
        return reply(Health(status="ok"))

    async def ready(self) -> Response:
        """200 if a generation is open, else 503."""
        service = self.follower.current
        if service is None:
            raise Refused(503, "not_ready", "no index generation is open yet; the log says what is waited for", retry_after=1)
        return reply(Ready(status="ready", generation=service.source.generation))

    async def figures(self) -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def generation(self) -> Response:
        """What serves, and what is waited for."""
        service, trouble = self.follower.current, self.follower.trouble
        if service is None:
            return await self.ready()
        source, manifest = service.source, service.reader.manifest
        return reply(
            Generation(
                generation=source.generation,
                date=source.day.isoformat(),
                model=Model(name=source.model_name, version=source.model_version),
                items=manifest.items,
                users=manifest.users,
                waiting_for=(trouble.generation or "an unreadable CURRENT") if trouble else None,
            )
        )

    async def retrieve(self, request: Request) -> Response:
        """The best items for some users: beam search over semantic IDs, then the ranking path with the users' real crosses."""
        asked = await self._read(request, self.questions.retrieve)
        return await self._answer(lambda: self.engine.retrieve(asked.users, asked.search()))

    async def rank(self, request: Request) -> Response:
        """Some items in the order of one user, by the ranking path with his real crosses."""
        asked = await self._read(request, self.questions.rank)
        return await self._answer(lambda: self.engine.rank(asked.user, asked.items))

    async def _read(self, request: Request, model: type[Q]) -> Q:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "media_type", "send the question as application/json")
        try:
            async with asyncio.timeout(self.config.timeout_seconds):
                return parse(model, await body_of(request, self.config.max_body_bytes))
        except TimeoutError:
            raise Refused(408, "timeout", f"the body did not arrive within {self.config.timeout_seconds:g} s") from None

    async def _answer(self, ask: Callable[[], Future[Reply]]) -> Response:
        try:
            found = await asyncio.wait_for(asyncio.wrap_future(ask()), self.config.timeout_seconds)
        except InvalidQuery as error:
            raise Refused(422, "invalid", str(error), error.details) from None
        except NotReady as error:
            raise Refused(503, "not_ready", str(error), retry_after=1) from None
        except Busy as error:
            raise Refused(503, "busy", str(error), retry_after=1) from None
        except TimeoutError:
            raise Refused(503, "busy", f"no answer within {self.config.timeout_seconds:g} s; ask again in a while", retry_after=2) from None
        return Response(json.dumps(answers(found), separators=(",", ":"), allow_nan=False), media_type=JSON)


async def body_of(request: Request, limit: int) -> bytes:
    """The body of a request; what is longer than ``limit`` bytes is not read.

    Raises:
        Refused: 413.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refused(413, "too_large", f"the body has more than {limit} bytes (serve.max_body_bytes)")
        parts.append(part)
    return b"".join(parts)


def reply(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A model as a JSON answer."""
    return Response(body.model_dump_json(), status_code=status, media_type=JSON, headers=headers)


def refuse(refused: Refused) -> Response:
    """The answer to what was refused."""
    headers = {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    return reply(refused.body, refused.status, headers)


class Guard:
    """Outermost: counts and logs each request, and turns what nobody expected into a 500 without a word of what was asked."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self.app, self.metrics, self.access_log = app, metrics, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except ClientDisconnect:
            status = GONE
        except Exception as error:
            log.error("a request failed: %s", where(error))
            if not status:
                await refuse(Refused(500, "internal", "the server failed; its log says where"))(scope, receive, tell)
        finally:
            route, seconds = getattr(scope.get("route"), "path", ELSEWHERE), time.perf_counter() - began
            self.metrics.answered(route, status or GONE, seconds)
            if self.access_log:
                log.info("%s %s %d %.1f ms", scope["method"] if route != ELSEWHERE else "-", route, status or GONE, 1000 * seconds)


def create_app(server: Server) -> FastAPI:
    """The application of a server; entering its lifespan starts the follower, leaving it stops follower and engine."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        server.follower.start()
        try:
            yield
        finally:
            await asyncio.to_thread(server.follower.stop)
            await asyncio.to_thread(server.engine.close)

    app = FastAPI(
        title="DIG",
        version="1",
        description="Recommendations from the index generation that serves. Every answer names its generation and model version.",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        dependencies=[Depends(server.addressed)],
    )
    app.add_middleware(Guard, metrics=server.metrics, access_log=server.config.access_log)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _of_http)
    guarded: list[Any] = [Depends(server.allow)]
    if server.token:
        guarded.append(Depends(HTTPBearer(auto_error=False, description="the token in $DIG_SERVE_TOKEN")))
    get, post = (
        partial(app.add_api_route, methods=["GET"], response_model=None),
        partial(app.add_api_route, methods=["POST"], response_model=None),
    )
    get("/health", server.health, responses=said(Health, 421), tags=["probes"])
    get("/ready", server.ready, responses=said(Ready, 421, 503), tags=["probes"])
    get("/metrics", server.figures, responses={200: TEXT, **said(None, 401, 421)}, dependencies=guarded, tags=["probes"])
    get("/v1/generation", server.generation, responses=said(Generation, 401, 421, 503), dependencies=guarded, tags=["answers"])
    for name, call, model in (("retrieve", server.retrieve, server.questions.retrieve), ("rank", server.rank, server.questions.rank)):
        content = {"schema": model.model_json_schema(), "examples": EXAMPLES[name]}
        asks = {"requestBody": {"required": True, "content": {JSON: content}}}
        post(f"/v1/{name}", call, responses=said(Answers, *SAID), openapi_extra=asks, dependencies=guarded, tags=["answers"])

    async def openapi() -> Response:
        """This document."""
        return Response(json.dumps(app.openapi()), media_type=JSON)

    get("/openapi.json", openapi, dependencies=guarded, include_in_schema=False)
    return app


def said(model: type[BaseModel] | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for the OpenAPI document."""
    answers: dict[int | str, dict[str, Any]] = {} if model is None else {200: {"model": model}}
    return answers | {status: {"model": Error, "description": SAID[status]} for status in statuses}


async def _refused(request: Request, error: Exception) -> Response:
    return refuse(cast(Refused, error))


async def _of_http(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in the shape of all errors."""
    found = cast(HTTPException, error)
    code = {404: "not_found", 405: "method_not_allowed"}.get(found.status_code, "invalid")
    body = Refused(found.status_code, code, str(found.detail)).body
    return reply(body, found.status_code, dict(found.headers or {}))
