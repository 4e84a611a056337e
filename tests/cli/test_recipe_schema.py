"""The JSON schema of a recipe is valid, accepts every recipe of the catalogue, and names every key."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft202012Validator
from places import ROOT

from pave.cli.recipe import app, remarks, schema
from pave.files.validation import Config
from pave.recipe import Recipe, TrainConfig

RECIPES = sorted(ROOT.glob("patches/*/patch.yaml"))
SMALLEST: dict[str, Any] = {"name": "a", "senses": {"audio": {"encoder": "logmel"}}, "data": {"train": "a.jsonl"}}


def errors(recipe: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema()).iter_errors(recipe)]


class Oven(Config):
    heat: int = 180  # degrees
    minutes: int | None = None  # None: until it is done
    fan: bool = False  # blows
    rack: str = "middle"

    # not of a key
    def __str__(self) -> str:
        return f"{self.heat}"  # nor this


def kinds(kind: Any) -> Iterator[type[Config]]:
    """The configs inside an annotation, those of their own keys included."""
    if isinstance(kind, type) and issubclass(kind, Config):
        yield kind
        for field in kind.model_fields.values():
            yield from kinds(field.annotation)
    for part in get_args(kind):
        yield from kinds(part)


def test_the_schema_is_a_valid_schema():
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_the_schema_accepts_every_recipe_of_the_catalogue(recipe):
    assert not errors(yaml.safe_load(recipe.read_text("utf-8")))


def test_the_schema_names_every_key_of_a_recipe():
    found = schema()
    for kind in kinds(Recipe):
        part = found if kind is Recipe else found["$defs"][kind.__name__]
        assert part["properties"].keys() - {"preset"} == kind.model_fields.keys()
        assert part["additionalProperties"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"sense": {}},
        {"train": {"steps": 0}},
        {"train": {"lr": 1}},
        {"fusion": {"kind": "folder"}},
        {"resampler": "larger"},
        {"senses": {}},
        {"name": "Upper case"},
    ],
)
def test_the_schema_refuses_what_a_recipe_cannot_say(change):
    assert not errors(SMALLEST)
    assert errors(SMALLEST | change)


@pytest.mark.parametrize("resampler", ["paper", {"preset": "tiny", "window": 4}, None])
def test_the_schema_knows_the_presets_of_a_resampler(resampler):
    assert not errors(SMALLEST | {"resampler": resampler})


def test_comments_behind_keys_are_their_descriptions():
    assert remarks(Oven) == {"heat": "degrees", "minutes": "null: until it is done", "fan": "blows"}
    found = schema()["$defs"]["TrainConfig"]["properties"]
    assert found["warmup"]["description"] == remarks(TrainConfig)["warmup"]


def test_the_command_prints_the_schema_or_writes_it(tmp_path):
    command = [sys.executable, "-c", "from pave.cli.recipe import app; app()", "schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout) == schema()
    file = tmp_path / "recipe.json"
    written = subprocess.run([*command, "--out", str(file)], capture_output=True, text=True, check=True)
    assert json.loads(file.read_text()) == schema() and not written.stdout and str(file) in written.stderr
    assert app.info.help
