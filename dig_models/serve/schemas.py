"""The JSON of questions and answers; the limits of a question follow from the settings and stand in the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from dig_models.config import RetrieveConfig, ServeConfig
from dig_models.serve.service import Answer, Reply, Search


def _whole(value: Any) -> Any:
    """JSON knows no difference between 5 and 5.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Id = Annotated[str, Field(min_length=1, max_length=256)]
Whole = Annotated[int, BeforeValidator(_whole)]
Q = TypeVar("Q", bound="Question")
NAMED = 20


class Question(BaseModel):
    """Base of what is asked: unknown keys and other types than those named are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RetrieveQuestion(Question):
    """The best items for some users."""

    users: list[Id] = Field(description="user ids, as in the source; one without a state is answered all the same")
    k: Whole = Field(10, description="items a user")
    exclude_bought: bool = Field(False, description="leave out what the user bought before")
    beam: Whole | None = Field(None, description="prefixes kept at each level; default: retrieve.beam")
    items: list[Id] | None = Field(None, description="only these may be returned: what is in stock, fresh, or shippable")
    fields: dict[Id, list[Id]] | None = Field(
        None, description="item field or u2i key to raw values; items must have one of them, for every field named"
    )

    def search(self) -> Search:
        """The part that users of equal questions share."""
        return Search(
            k=self.k,
            exclude_bought=self.exclude_bought,
            beam=self.beam,
            items=None if self.items is None else tuple(self.items),
            fields=tuple(sorted((name, tuple(values)) for name, values in (self.fields or {}).items())),
        )


class RankQuestion(Question):
    """Some items in the order of one user."""

    user: Id
    items: list[Id] = Field(description="item ids; those that the catalogue does not hold come back in unknown_items")


class Model(BaseModel):
    """A registered model."""

    name: str
    version: str


class Item(BaseModel):
    """An item of an answer."""

    item_id: str
    name: str
    sid: list[int] = Field(description="semantic ID, one code a level")
    probability: float = Field(ge=0, le=1, description="chance of an event in one request")


class UserItems(BaseModel):
    """Items for one user, best first."""

    user: str
    known: bool = Field(
        description="whether the generation holds a state of the user; if not, popularity and the items' own features decide"
    )
    items: list[Item]


class Answers(BaseModel):
    """Answers, and the one generation that all of them come from."""

    generation: str
    date: str
    model: Model
    answers: list[UserItems]
    unknown_items: list[str] = Field(description="item ids of the question that the catalogue does not hold")


class Generation(BaseModel):
    """What serves."""

    generation: str
    date: str
    model: Model
    items: int
    users: int
    waiting_for: str | None = Field(description="generation that CURRENT names and that could not be opened yet; null if all is well")


class Health(BaseModel):
    """The process answers."""

    status: str


class Ready(Health):
    """A generation is open."""

    generation: str


class Fault(BaseModel):
    """What went wrong."""

    code: str = Field(
        description="invalid, unauthorized, misdirected, not_found, method_not_allowed, timeout, too_large, media_type, busy, not_ready, "
        "internal"
    )
    message: str
    details: list[dict[str, str]] = Field([], description="for code invalid: where, and what was expected")


class Error(BaseModel):
    """Body of every answer that is not a success."""

    error: Fault


class Refused(Exception):
    """An answer that is not a success.

    Args:
        status: of HTTP.
        code: see ``Fault``.
        message: for whoever asked; it is not logged.
    """

    def __init__(self, status: int, code: str, message: str, details: list[dict[str, str]] | None = None, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.body = Error(error=Fault(code=code, message=message, details=details or []))


@dataclass(frozen=True)
class Questions:
    """The questions with the limits of the settings in force."""

    retrieve: type[RetrieveQuestion]
    rank: type[RankQuestion]

    @classmethod
    def of(cls, limits: ServeConfig, defaults: RetrieveConfig) -> Questions:
        """Narrow the questions."""
        of_retrieve, of_rank = RetrieveQuestion.model_fields, RankQuestion.model_fields

        def told(name: str) -> str | None:
            return of_retrieve[name].description

        k = min(defaults.k, limits.max_k)
        values = Annotated[list[Id], Field(min_length=1, max_length=limits.max_items)]
        retrieve = create_model(
            "RetrieveQuestion",
            __base__=RetrieveQuestion,
            __doc__=RetrieveQuestion.__doc__,
            users=(list[Id], Field(min_length=1, max_length=limits.max_users, description=told("users"))),
            k=(Whole, Field(k, ge=1, le=limits.max_k, description=told("k"))),
            beam=(Annotated[int, Field(ge=1, le=limits.max_beam), BeforeValidator(_whole)] | None, Field(None, description=told("beam"))),
            items=(Annotated[list[Id], Field(min_length=1, max_length=limits.max_items)] | None, Field(None, description=told("items"))),
            fields=(Annotated[dict[Id, values], Field(max_length=16)] | None, Field(None, description=told("fields"))),
        )
        rank = create_model(
            "RankQuestion",
            __base__=RankQuestion,
            __doc__=RankQuestion.__doc__,
            items=(list[Id], Field(min_length=1, max_length=limits.max_items, description=of_rank["items"].description)),
        )
        return cls(retrieve=retrieve, rank=rank)


def parse(model: type[Q], body: bytes) -> Q:
    """A question from the bytes of a body.

    Raises:
        Refused: 422, with every place that is wrong, what was expected there and what was found.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        details = [
            {"where": ".".join(str(p) for p in e["loc"]) or "body", "expected": e["msg"], "found": f"{e['input']!r:.80}"}
            for e in error.errors(include_url=False, include_context=False)[:NAMED]
        ]
        said = "; ".join(f"{d['where']}: {d['expected']}" for d in details[:3])
        raise Refused(422, "invalid", f"the question cannot be read: {said}", details) from None


def answers(reply: Reply) -> dict[str, Any]:
    """The JSON of a reply (``Answers``), as plain values: checking each again would cost more than it could find."""
    source = reply.source
    return {
        "generation": source.generation,
        "date": source.day.isoformat(),
        "model": {"name": source.model_name, "version": source.model_version},
        "answers": [_user_items(answer) for answer in reply.answers],
        "unknown_items": list(reply.unknown_items),
    }


def _user_items(answer: Answer) -> dict[str, Any]:
    items = [{"item_id": i.item_id, "name": i.name, "sid": i.sid, "probability": i.probability} for i in answer.items]
    return {"user": answer.user, "known": answer.known, "items": items}
