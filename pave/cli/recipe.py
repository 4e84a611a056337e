"""The `pave recipe` commands. In: nothing but the code. Out: the JSON schema of a recipe, for editors.

The schema is pydantic's own account of `pave.recipe.Recipe`, so it cannot differ from what `pave-train` accepts in
names, kinds and limits. Rules between several keys (`width` a multiple of `heads`) are not part of a JSON schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pave.cli.terminal import PLAIN, lines_of, remark, say
from pave.files.atomic import write_text

if TYPE_CHECKING:
    from pave.files.validation import Config

app = typer.Typer(help="Help with writing recipes.", **PLAIN)


@app.callback()
def group() -> None:
    """Help with writing recipes."""  # with a callback, Typer keeps the one command below a group


@app.command("schema")
def recipe_schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there instead of printing it.")] = None,
) -> None:
    """Print the JSON schema of a recipe (patch.yaml).

    Editors with a YAML language server complete and check keys with it.
    """
    import json

    text = json.dumps(schema(), indent=2, ensure_ascii=False)
    if out is None:
        say(*lines_of(text))
    else:
        write_text(out, f"{text}\n")
        remark(f"first line of a recipe: # yaml-language-server: $schema={out}")


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe file."""
    from pave.config import PRESETS
    from pave.files.validation import Config
    from pave.recipe import Recipe

    found = Recipe.model_json_schema()
    kinds = {kind.__name__: kind for kind in Config.__subclasses__()}
    for name, part in {"Recipe": found, **found["$defs"]}.items():
        for key, words in remarks(kinds[name]).items():
            part["properties"][key]["description"] = words
    # A preset is replaced by its values before pydantic sees it; the schema has to allow what a file may contain.
    presets = {"enum": sorted(PRESETS)}
    found["$defs"]["ResamplerConfig"]["properties"]["preset"] = presets
    found["properties"]["resampler"]["anyOf"].append(presets)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "PAVE recipe"}


def remarks(kind: type[Config]) -> dict[str, str]:
    """The comments behind the keys of a config, by key."""
    import inspect
    import re

    found, key = {}, ""
    for line in inspect.getsource(kind).splitlines():
        if field := re.match(r"    (\w+):? ?.*", line):
            key = field[1]
        code, mark, words = line.partition("  # ")
        if mark and code.strip() and key in kind.model_fields:
            found[key] = words.replace("None", "null")  # as YAML has it
    return found
