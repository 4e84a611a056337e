"""The reference pages, from what Typer and pydantic have themselves.

    python docs/make_reference.py

Out: docs/reference/cli.md, recipe.md and tasks.md. A test compares them with the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from typer.main import get_command

from pave.cli import main, train
from pave.cli.recipe import remarks, schema
from pave.config import PRESETS, ResamplerConfig
from pave.files.validation import Config
from pave.recipe import Recipe
from pave.tasks.known import lines

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/make_reference.py: change the code, then run it again. -->\n"


def pages() -> dict[str, str]:
    """Text of each page by its file name."""
    return {"cli.md": cli_page(), "recipe.md": recipe_page(), "tasks.md": tasks_page()}


def cli_page() -> str:
    lines = [NOTE, "# Command line\n"]
    lines.append(
        "Answers go to stdout, remarks to stderr. Exit code 0: done. 1: a check found something wrong (`pave doctor`, "
        "`pave patch verify`). 2: the command could not do it, and one line says why and what to do (wrong "
        "options also print the usage); "
        "`PAVE_TRACEBACK=1` in the environment shows where. `pave --quiet COMMAND` prints results and errors only, "
        "`pave --verbose COMMAND` also the seconds of each step and what the dependencies log; "
        "`pave --install-completion` lets your shell complete commands and names of patches.\n"
    )
    for app, name in ((main.app, "pave"), (train.app, "pave-train")):
        lines += [line for path, command in _commands(get_command(app), name) for line in _command(path, command)]
    return "\n".join(lines)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    nested = getattr(command, "commands", None)
    if nested is None:
        yield path, command
    for name, each in (nested or {}).items():
        yield from _commands(each, f"{path} {name}")


def _command(path: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    words = [_metavar(each) for each in arguments]
    yield f"## {path}\n"
    yield f"```text\n{' '.join([path, *words, *(['[OPTIONS]'] if options else [])])}\n```\n"
    yield f"{_cell(' '.join((command.help or '').split()), False)}\n"
    # From Typer's own declarations: with Typer 0.23, click 8.5 forgets the help of arguments.
    declared = get_type_hints(command.callback, include_extras=True)
    if arguments or options:
        yield "| name | meaning | default |"
        yield "|---|---|---|"
        for each in arguments:
            yield f"| `{_metavar(each)}` | {_cell(declared[each.name].__metadata__[0].help)} | {_default(each)} |"
        for each in options:
            name = each.opts[0] + ("" if each.is_flag else f" {each.metavar}")
            yield f"| `{name}` | {_cell(each.help)} | {_default(each)} |"
        yield ""


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = name if argument.required or name.startswith("[") else f"[{name}]"
    return f"{name}..." if argument.nargs == -1 else name


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    plain = isinstance(value, str | int | float | Path) and not isinstance(value, bool) and str(value)
    return f"`{value}`" if plain else ""


def _cell(text: str | None, table: bool = True) -> str:
    words = " ".join((text or "").split()).replace("<", "&lt;")
    return words.replace("|", "\\|") if table else words


def tasks_page() -> str:
    return "\n".join(
        [
            NOTE,
            "# Tasks\n",
            "Published benchmarks, as `pave eval --list` prints them; "
            "[Evaluate](../evaluate.md#published-benchmarks) says how one is run. Under each: what it asks about, the "
            "split, the licence of the annotations as their publisher states it, and where the files are to be had. "
            "`senses` are those that its questions need besides key frames; `prompt` is whose it is.\n",
            "```text",
            *lines(),
            "```",
            "",
        ]
    )


def recipe_page() -> str:
    lines = [NOTE, "# Recipe\n"]
    lines.append(
        "Every key of a `patch.yaml`. Unknown keys are errors. On the command line of `pave-train` a key is "
        "`train.steps=100`; the value is YAML. `pave recipe schema` prints the same as a JSON schema for editors "
        "([how](../train.md#let-your-editor-check-a-recipe)).\n"
    )
    found = schema()
    for place, kind in _kinds(Recipe, ""):
        part = found if kind is Recipe else found["$defs"][kind.__name__]
        lines += [f"## {place or 'Top level'}\n", f"{_cell(part['description'], False)}\n"]
        lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
        words = remarks(kind)
        for key, field in kind.model_fields.items():
            default = "required" if field.is_required() else _value(field.get_default())
            lines.append(f"| `{key}` | {_values(part['properties'][key])} | {default} | {_cell(words.get(key))} |")
        lines.append("")
        if kind is ResamplerConfig:
            lines += ["Presets:\n", "| preset | stands for |", "|---|---|"]
            lines += [
                f"| `{name}` | {', '.join(f'`{k}: {v}`' for k, v in each.items()) or 'the defaults'} |"
                for name, each in PRESETS.items()
            ]
            lines.append("")
    return "\n".join(lines)


def _kinds(kind: type[Config], place: str) -> Iterator[tuple[str, type[Config]]]:
    """The configs inside a config, each once, with the place of its keys."""
    yield place, kind
    known = set()
    for key, field in kind.model_fields.items():
        nested = _nested(field.annotation)
        inside = {"senses": "senses.NAME"}.get(key, key)
        if nested and nested not in known:
            known.add(nested)
            yield from _kinds(nested, f"{place}.{inside}".lstrip("."))


def _nested(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next(filter(None, map(_nested, getattr(annotation, "__args__", ()))), None)


def _values(part: dict[str, Any]) -> str:
    """The values of a key as text, from its JSON schema."""
    if choices := part.get("anyOf", part.get("oneOf")):
        return " or ".join(dict.fromkeys(map(_values, choices)))
    if "$ref" in part:
        return "mapping"
    if "enum" in part:
        return ", ".join(f"`{each}`" for each in part["enum"])
    kind = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
        "object": "mapping",
        "null": "`null`",
    }.get(part.get("type", ""), "")
    if part.get("type") == "array":
        if fixed := part.get("prefixItems"):
            return f"list of {len(fixed)}: {' and '.join(dict.fromkeys(map(_values, fixed)))}"
        items = _values(part["items"])
        plain = items in ("text", "path", "mapping")
        return f"list of {items}s" if plain else f"list of {items}" if "`" in items else f"list: {items}"
    kind = "path" if part.get("format") == "path" else kind
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {_number(part[key])}" for key, sign in words.items() if key in part]
    return " ".join([kind, ", ".join(limits)]).strip()


def _number(value: Any) -> str:
    return "2⁶³" if value == 2**63 else f"{value:g}"


def _value(value: Any) -> str:
    if value is None:
        return "`null`"
    if isinstance(value, Config):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" and value != {} else ""


def write() -> None:
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    write()
