"""A configuration as text: every setting explained, and what is answered to a wrong one."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from ..store.errors import ConfigurationError


def toml_lines(config: BaseModel) -> Iterator[str]:
    """The configuration as TOML, each setting with its description."""
    yield "# The configuration of a run as Scopenote resolved it: every setting and its value."
    yield from _table_lines(config, ())


def _table_lines(section: BaseModel, header: tuple[str, ...]) -> Iterator[str]:
    values = section.model_dump(exclude_none=True)
    fields = type(section).model_fields
    tables = [name for name in fields if isinstance(getattr(section, name), BaseModel)]
    if header:
        yield ""
        yield f"[{'.'.join(header)}]"
    settings = {
        f"{name} = {_toml_value(values[name])}": field.description
        for name, field in fields.items()
        if name in values and name not in tables
    }
    margin = max((len(setting) for setting in settings if len(setting) <= 40), default=0)
    for setting, description in settings.items():
        yield f"{setting:<{margin}}  # {description}"
    for name in tables:
        yield from _table_lines(getattr(section, name), (*header, name))


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items())
        return f"{{{pairs}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    # TOML's basic strings are JSON's, but for the DEL character, which it wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def problem(expected: str, found: str) -> PydanticCustomError:
    """What a validator raises where values do not go together."""
    return PydanticCustomError("rule", "{expected}", {"expected": expected, "found": found})


def explain_problems(
    error: ValidationError, path: Path, content: Mapping[str, Any], root: type[BaseModel]
) -> ConfigurationError:
    """The first problem in full; the keys of the others so that one edit mends them all.

    Args:
        error: what pydantic found.
        path: of the file.
        content: of the file.
        root: the model of the whole configuration.
    """
    problems: dict[str, list[ErrorDetails]] = {}
    # A misspelt key comes before the key that is missing for it.
    for details in sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden"):
        problems.setdefault(_dotted_key(details["loc"], content), []).append(details)
    (key, first), *others = problems.items()
    answer = _answer(key, first, path, root)
    if others:
        more = ", ".join(f"`{key}`" for key, _ in others)
        answer.mend = f"{answer.mend or 'correct it'}; also wrong: {more}"
    return answer


def _answer(
    key: str, problems: list[ErrorDetails], path: Path, root: type[BaseModel]
) -> ConfigurationError:
    details = problems[0]
    where = f"{path}, key `{key}`" if key else str(path)
    match details["type"]:
        case "extra_forbidden":
            allowed = _keys_beside(key, root)
            name = key.rpartition(".")[2]
            near = difflib.get_close_matches(name, allowed, n=1)
            return ConfigurationError(
                "The configuration has a key that does not exist.",
                where=where,
                found=f"{name} = {_shown(details['input'])}",
                expected=f"one of {', '.join(allowed)}",
                mend=f"perhaps `{near[0]}` was meant" if near else "remove it",
            )
        case "missing":
            described = _description(key, root)
            return ConfigurationError(
                "The configuration lacks a key that is needed.",
                where=where,
                expected=described,
                mend=f"add `{key.rpartition('.')[2]}`",
            )
        case "rule":
            context = details["ctx"]
            return ConfigurationError(
                "The configuration has values that do not go together.",
                where=where,
                found=context["found"],
                expected=context["expected"],
            )
    allowed_values = " or ".join(dict.fromkeys(_allowed(problem) for problem in problems))
    return ConfigurationError(
        "The configuration has a value that is not allowed.",
        where=where,
        found=_shown(details["input"]),
        expected=allowed_values,
        mend=_meaning(key, root),
    )


def _allowed(problem: ErrorDetails) -> str:
    match problem["type"]:
        case "string_pattern_mismatch":
            return "one of those below"
        case "string_too_short":
            return "a text that is not empty"
        case "too_short":
            return "a list with at least one entry"
        case "model_type" | "dict_type":
            return "a table"
        case "bool_type":
            return "true or false"
        case "string_type":
            return "a text in quotes"
        case "int_type" | "int_from_float":
            return "a whole number"
        case "tuple_type" | "list_type":
            return "a list"
    message = problem["msg"].removeprefix("Input should be ")
    return message.removeprefix("a valid ").replace("'", '"')


def _dotted_key(loc: tuple[int | str, ...], content: Mapping[str, Any]) -> str:
    """The key as a person would write it: unions add names of their types to a location."""
    written: list[str] = []
    value: Any = content
    for place in loc:
        if isinstance(place, int) and isinstance(value, list) and place < len(value):
            value = value[place]
            written[-1] += f"[{place}]"
        elif isinstance(value, Mapping):
            value = value.get(str(place))
            written.append(str(place))
    return ".".join(written)


def _section_of(key: str, root: type[BaseModel]) -> type[BaseModel]:
    """The table that holds a key."""
    section = root
    for name in key.split(".")[:-1]:
        found = _nested(section.model_fields[name.partition("[")[0]].annotation)
        if found is None:
            break
        section = found
    return section


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, types.UnionType):
        return next(filter(None, map(_nested, get_args(annotation))), None)
    return None


def _keys_beside(key: str, root: type[BaseModel]) -> list[str]:
    return list(_section_of(key, root).model_fields)


def _description(key: str, root: type[BaseModel]) -> str | None:
    name = key.rpartition(".")[2].partition("[")[0]
    field = _section_of(key, root).model_fields.get(name)
    if field is None:
        return None
    nested = _nested(field.annotation)
    return field.description or (f"a table with {_needs(nested)}" if nested else None)


def _needs(section: type[BaseModel]) -> str:
    required = [name for name, field in section.model_fields.items() if field.is_required()]
    return ", ".join(required or section.model_fields)


def _meaning(key: str, root: type[BaseModel]) -> str | None:
    described = _description(key, root)
    return f"`{key}` is {described}" if described else None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
