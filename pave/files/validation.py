"""Validated, frozen values: the base class of everything that a recipe, a patch file or a request says.

In: a mapping. Out: a frozen pydantic model, or a RecipeError that names the key, the value and the remedy, in the words
of YAML. Knows nothing of patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from pave.errors import RecipeError, nearest
from pave.text.shown import quoted


class Config(BaseModel):
    """Frozen, keyword-only, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """`yes` is no number, though Python's bool is an int, and a text is no truth value. YAML reads a plain `off` as
        one; where a key has the word `off`, it is that."""
        if info.field_name is None:  # pydantic 2.12.0 names no field for a default
            return value
        kinds = set(_kinds(cls.model_fields[info.field_name].annotation))
        if value is False and bool not in kinds and any("off" in get_args(kind) for kind in kinds):
            return "off"
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError(f"must be a number, got {str(value).lower()}")
        if isinstance(value, str) and kinds == {bool}:
            raise ValueError("must be true or false")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, without those of the elements of a list or mapping."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        for inner in get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]:
            yield from _kinds(inner)
    else:
        yield annotation


C = TypeVar("C", bound=Config)
MENTIONED = 10  # invalid values in one message


def parse(kind: type[C], data: Mapping[str, Any], source: str | Path) -> C:
    """Validate `data` as `kind`; `source` is the file that errors name."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        more = [f"and {len(found) - MENTIONED} more"] if len(found) > MENTIONED else []
        raise RecipeError(
            f"{source}: " + "; ".join([*(_message(kind, item, data) for item in found[:MENTIONED]), *more])
        ) from None


# Replace pydantic's messages, which name Python types instead of YAML values.
EXPECTED = {
    "dict_type": "write a mapping: {NAME: ...}",
    **dict.fromkeys(("list_type", "tuple_type"), "write a list: [...]"),
    "string_type": "must be text",
    "path_type": "must be a path",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large",
    "string_pattern_mismatch": "must match {pattern}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "string_too_long": "has too many characters: at most {max_length}",
    "string_too_short": "must have {min_length} or more characters",
    "too_long": "has {actual_length} entries: at most {max_length}",
    "too_short": "has {actual_length} entries: {min_length} or more are needed",
    "literal_error": "must be {expected}",
}


def _message(kind: type[Config], error: Any, data: Any) -> str:
    loc = _written(error["loc"], data)
    where = ".".join(map(str, loc)) or kind.__name__.lower()
    if error["type"] == "extra_forbidden":
        *parents, key = loc
        return f"{where}: unknown key; {nearest(str(key), _keys(kind, parents))}"
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    expected = EXPECTED.get(error["type"])
    if expected is None:
        expected = error["msg"].removeprefix("Value error, ")
    elif "ctx" in error:
        expected = expected.format(**{key: _limit(value) for key, value in error["ctx"].items()})
    if error["type"] == "value_error" and isinstance(error["input"], Mapping | Config):
        return f"{where}: {expected}"  # which names the keys
    if error["type"] == "model_type":
        expected = f"write a mapping: {{{', '.join(f'{key}: ...' for key in _keys(kind, loc)[:2])}}}"
    return f"{where}={quoted(error['input'])}: {expected}"


def _written(loc: Iterable[str | int], data: Any) -> list[str | int]:
    """A place in the data without the tags of unions, such as "(file)", which nobody has written."""
    written: list[str | int] = []
    for part in loc:
        inside: Mapping[Any, Any] = dict(enumerate(data)) if isinstance(data, list | tuple) else data
        inside = inside if isinstance(inside, Mapping) else {}
        if part in inside or not str(part).startswith("("):
            written.append(part)
            data = inside.get(part)
    return written


def _limit(value: Any) -> str:
    """A bound in a message."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _keys(kind: type[Config], parents: Iterable[Any]) -> list[str]:
    """The keys allowed at a path; a dict (senses.<any name>) is entered through its value type."""
    for parent in parents:
        field = kind.model_fields.get(parent)
        nested = _config_in(field.annotation) if field else None
        kind = nested or kind
    return list(kind.model_fields)


def _config_in(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    found = [_config_in(arg) for arg in getattr(annotation, "__args__", ())]
    return next((kind for kind in found if kind), None)
