"""Layers of raw settings: YAML files, environment variables, options; merged, each value with its origin."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel

PREFIX = "DIG_"
SETS = "DIG_SET"
RESERVED = frozenset({"DIG_PROGRESS", "DIG_CONFIG", "DIG_FAULT", "DIG_SERVE_TOKEN", "DIG_REDIS_PASSWORD", SETS})
Override = tuple[str, Any, str]  # dotted key, value, origin


class ConfigError(ValueError):
    """The settings cannot be used; the message names file, key and what was expected."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 2e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands more than once", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


def parse(text: str) -> Any:
    """A value in YAML; text that is none stands for itself, and nothing for the empty text."""
    if not text.strip():
        return ""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError:
        return text


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        what: what it is, for messages.

    Raises:
        ConfigError: the file is missing, cannot be read, or holds no mapping.
    """
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"{path}: {what} not found; files there: {there}")
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(loaded).__name__}")
    return loaded


def from_environment(environ: Mapping[str, str]) -> list[Override]:
    """Settings in ``DIG_…`` variables: ``DIG_DATASET__SAMPLE_USERS`` is ``dataset.sample_users``."""
    return [
        (name.removeprefix(PREFIX).lower().replace("__", "."), parse(environ[name]), f"environment {name}")
        for name in sorted(environ)
        if name.startswith(PREFIX) and name not in RESERVED
    ]


def inherited(environ: Mapping[str, str]) -> list[str]:
    """``--set`` options of the run that started this process, handed on in ``$DIG_SET`` as a JSON list; names keep their capitals.

    Raises:
        ConfigError: the variable is no JSON list of texts.
    """
    text = environ.get(SETS, "")
    try:
        found = json.loads(text) if text else []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ConfigError(f'environment {SETS}: expected a JSON list such as ["train.epochs=2"], found {text!r:.80}')
    return found


def from_options(sets: Sequence[str]) -> list[Override]:
    """Settings in ``--set key=value`` options.

    Raises:
        ConfigError: one of them has no key or no ``=``.
    """
    found = []
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: expected key=value, for example --set dataset.sample_users=1.0")
        found.append((key.strip(), parse(value), f"--set {key.strip()}"))
    return found


@dataclass(frozen=True)
class Leaf:
    """One setting in force: dotted key, value as JSON knows it, and where it came from."""

    key: str
    value: Any
    origin: str


@dataclass
class Layers:
    """Raw settings merged so far.

    Attributes:
        values: nested settings.
        origin: where each value came from, by dotted key.
        sections: who named a section first, by dotted key.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def merge(self, new: Mapping[str, Any], origin: str) -> None:
        """Lay ``new`` over what is there; mappings merge, everything else replaces."""
        self._merge(self.values, new, origin, "")

    def _merge(self, into: dict[str, Any], new: Mapping[str, Any], origin: str, prefix: str) -> None:
        for key, value in new.items():
            path = f"{prefix}{key}"
            if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
                self.sections.setdefault(path, origin)
                self._merge(into.setdefault(key, {}), value, origin, f"{path}.")
            else:
                into[key] = value
                self.origin[path] = origin

    def put(self, dotted: str, value: Any, origin: str) -> None:
        """Set one dotted key."""
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        self.merge(nested, origin)

    def origin_of(self, path: str, *, sections: bool = False) -> str:
        """Origin of a dotted key or of the whole that it is part of.

        Args:
            path: dotted key.
            sections: for a key that nobody set, name who set its section.
        """
        while path:
            if path in self.origin:
                return self.origin[path]
            if sections and path in self.sections:
                return self.sections[path]
            path = path.rpartition(".")[0]
        return "default"

    def origins_under(self, section: str) -> str:
        """Who set the values of a section, for an error that lies in several of them; empty if nobody did."""
        return ", ".join(dict.fromkeys(origin for path, origin in self.origin.items() if path.startswith(f"{section}.")))

    def leaves(self, config: BaseModel) -> list[Leaf]:
        """Every setting in force, in the order of the models; a list is one setting."""
        found: list[Leaf] = []

        def walk(value: Any, key: str) -> None:
            if isinstance(value, dict) and value:
                for name, below in value.items():
                    walk(below, f"{key}.{name}" if key else name)
            else:
                found.append(Leaf(key, value, self.origin_of(key)))

        walk(config.model_dump(mode="json", by_alias=True), "")
        return found


def known_keys(model: type[BaseModel], section: Sequence[str]) -> list[str]:
    """Keys that a section may hold; those of every kind, where there are several."""
    models = [model]
    for part in section:
        below = [_models(f.annotation) for m in models for name, f in m.model_fields.items() if part in (name, f.alias)]
        models = models if part.isdigit() else [found for group in below for found in group]
    return sorted({f.alias or name for m in models for name, f in m.model_fields.items()})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def hint(key: str, known: Iterable[str]) -> str:
    """What may have been meant by an unknown key."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if known else ""
