"""What is told of the settings of the method: a description of each, and a page with their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from dig_models.config import AffinityConfig, LossWeights, ModelConfig

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "model.md"


def choices(field: FieldInfo) -> set[object] | None:
    """What a switch may be; None for what is no switch."""
    if field.annotation is bool:
        return {True, False}
    return set(get_args(field.annotation)) if get_origin(field.annotation) is Literal else None


def value(cell: str) -> object:
    """A value as the page writes it."""
    word = cell.split()[0]
    return word == "true" if word in ("true", "false") else float(word) if re.fullmatch(r"[\d.]+", word) else word


def table(heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head."""
    rows = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("|")][2:]


def test_every_switch_of_the_method_and_every_weight_says_what_it_does() -> None:
    switches = {name: field for name, field in ModelConfig.model_fields.items() if choices(field)}
    assert {"bucket_key", "path_score", "u2t_teacher", "gumbel_gradient"} <= set(switches)
    fields = switches | LossWeights.model_fields | AffinityConfig.model_fields
    assert [name for name, field in fields.items() if not field.description] == []


def test_the_page_of_the_model_has_the_weight_of_each_loss() -> None:
    told = dict(re.findall(r"`loss\.(\w+)`, (\.\d+)", " ".join(row[-1] for row in table("Losses"))))
    assert {name: float(weight) for name, weight in told.items()} == LossWeights().model_dump()


def rows_of_model() -> list[tuple[list[str], str]]:
    """Names and values of the rows on settings of the model alone."""
    rows = [(re.findall(r"`([\w.]+)`", row[0]), row[1]) for row in table("Switches")]
    return [(names, values) for names, values in rows if names[0].split(".")[0] in ModelConfig.model_fields]


@pytest.mark.parametrize(("names", "values"), rows_of_model(), ids=lambda of: of[0] if isinstance(of, list) else "")
def test_a_row_of_the_switches_has_every_choice_the_default_first_or_the_default_of_each(names: list[str], values: str) -> None:
    told = [value(cell) for cell in re.sub(r" \(.*?\)", "", values).split(",")]
    owners = [AffinityConfig if name.startswith("affinity.") else ModelConfig for name in names]
    fields = [owner.model_fields[name.rpartition(".")[2]] for owner, name in zip(owners, names, strict=True)]
    own = choices(fields[0]) if len(fields) == 1 else None
    if own is None:
        assert told == [field.default for field in fields]
    else:
        assert set(told) == own and told[0] == fields[0].default


def test_the_switches_of_the_page_are_all_that_the_model_has() -> None:
    told = {name for names, _ in rows_of_model() for name in names}
    assert {name for name, field in ModelConfig.model_fields.items() if choices(field)} <= told
