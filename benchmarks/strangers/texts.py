"""What a person writes: recipes, overrides, lines of data files, aliases, prompts, questions."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from clips import counting_frames, write_clip
from kind import QUESTION, Kind
from mutations import extreme, json_text, mutated, mutated_bytes, words, yaml_text
from small import write_line
from watched import Case

from pave.cli.patch import patch_info
from pave.cli.terminal import remark, say
from pave.cli.train import resolved
from pave.hub import catalogue
from pave.hub.aliases import aliases
from pave.hub.locate import locate
from pave.prompt import CHATML, Prompter
from pave.readers.questions import read_data
from pave.recipe import overridden, read_recipe
from pave.training.dataset import read_dataset
from pave.training.setup import Setup

FOLDER = "/strangers"  # in recipes, until it becomes the folder of the real inputs


def dry_run(path: Path, *overrides: str) -> None:
    """What `pave-train --dry-run` does before it looks at clips and tries a step, which needs the memory of one."""
    recipe = catalogue.recipe(str(path), overrides)
    say(*resolved(recipe))
    Setup.of(recipe)


class Texts(Kind):
    """What a person writes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_clip(folder / "a.mp4", counting_frames(8), fps=4, audio=np.sin(np.arange(96_000) / 9).astype(np.float32))
        np.save(folder / "imu.npy", np.zeros((200, 6), np.float32))
        self.lines = [
            write_line("a.mp4", QUESTION, "a bell", channel="audio", kind="name", optimum=1.0),
            write_line("a.mp4", f"<video>\n{QUESTION}", "a drum", "And now?", "nothing", signals={"imu": "imu.npy"}),
            write_line("a.mp4", QUESTION, "a bell", signals={"views": ["a.mp4", None], "depth": "scan#1"}),
        ]
        (folder / "train.jsonl").write_text("".join(self.lines))
        self.recipes = [(catalogue.folder() / name / "patch.yaml").read_text() for name in catalogue.names()]
        own = {  # the folder's name is put in after the changes, which would else depend on its length
            "name": "own",
            "senses": {"audio": {"encoder": "logmel", "options": {"bands": 16, "rate": 5}}},
            "resampler": {"preset": "tiny", "queries": 4},
            "fusion": {"width": 32, "heads": 2},
            "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            "data": {"train": f"{FOLDER}/train.jsonl", "features": []},
            "train": {"steps": 2, "batch": 2, "on_top_of": ["audio-playroom"], "output": f"{FOLDER}/run"},
        }
        self.recipes += [yaml.safe_dump(own), yaml.safe_dump(own | {"resampler": None}, default_flow_style=True)]
        self.own = folder / "own.yaml"
        self.own.write_text(yaml.safe_dump(own | {"resampler": None}).replace(FOLDER, str(folder)))

    def make(self, rng: Random, place: Path) -> Case:
        return rng.choices(
            (self.recipe, self.override, self.line, self.alias, self.prompt, self.asked), (50, 6, 27, 4, 5, 8)
        )[0](rng, place)

    def recipe(self, rng: Random, place: Path) -> Case:
        path, text = place / "patch.yaml", rng.choice(self.recipes)
        if rng.random() < 0.6:
            tree = mutated(yaml.safe_load(text), rng, rng.choice(("senses", "fusion", "data", "train", "lora", "")))
            text = json_text(tree, rng, 0.0) if rng.random() < 0.5 else self.dumped(tree, text)
        if rng.random() < 0.5:
            text = yaml_text(text, rng)
        data = text.encode("utf-8", "surrogatepass")
        data = mutated_bytes(data, rng) if rng.random() < 0.03 else data
        path.write_bytes(data.replace(FOLDER.encode(), str(self.folder).encode()))
        # A recipe that is right may name a base, patch or file that is not here: then the message names that.
        names = (path.name, str(place), ": not a local folder", *_named(path))
        return Case((lambda: read_recipe(path), lambda: dry_run(path)), names)

    @staticmethod
    def dumped(tree: Any, text: str) -> str:
        try:
            return yaml.safe_dump(tree, allow_unicode=True)
        except (yaml.YAMLError, ValueError, RecursionError):
            return text

    def override(self, rng: Random, place: Path) -> Case:
        keys = (
            "train.steps",
            "train.output",
            "base",
            "senses.audio.options.bands",
            "lora.r",
            "data.train",
            "name",
            "frames",
        )
        key = rng.choice((*keys, rng.choice(keys) + words(rng, "x")))
        value = json_text(extreme(rng), rng, 0.1) if rng.random() < 0.5 else words(rng, "a")
        text = rng.choice((f"{key}={value}", words(rng, f"{key}={value}"), key))
        steps = (lambda: overridden([text]), lambda: dry_run(self.own, text))
        named = (
            text[:20],
            key[:20],
            repr(text)[1:10],
            value[:10],
            value.strip('" \n')[:6],
            repr(value)[1:8],
            text.partition("=")[2].strip('" \n')[:6],
        )
        return Case(steps, (*filter(None, named), *_parts(key), self.own.name, ": not a local folder"))

    def line(self, rng: Random, place: Path) -> Case:
        lines = list(self.lines)
        number = rng.randrange(len(lines))
        text = json_text(
            mutated(json.loads(lines[number]), rng, rng.choice(("conversations", "signals", "video"))), rng
        )
        lines[number] = text.replace("\n", " ") + rng.choice(("\n", "\n", "\r\n", "\r", ""))
        for name in ("a.mp4", "imu.npy"):
            os.link(self.folder / name, place / name)
        path = place / "train.jsonl"
        data = "".join(lines).encode("utf-8", "surrogatepass")
        path.write_bytes(mutated_bytes(data, rng) if rng.random() < 0.05 else data)
        setup = self.setup()

        def training() -> None:
            object.__setattr__(setup.recipe.data, "train", path)
            dataset = read_dataset(setup)
            for text in dataset.remarks():
                remark(text)

        return Case((lambda: read_data(path), training), (path.name,))

    def setup(self) -> Setup:
        if not hasattr(self, "_setup"):
            self._setup = Setup.of(read_recipe(self.own, ["train.on_top_of=[]"]))
        self._setup.store.refused.clear()
        return self._setup

    def alias(self, rng: Random, place: Path) -> Case:
        os.environ["PAVE_HOME"] = str(place)
        tree = {"mine": "audio-playroom", "other": FOLDER, "loop": "loop", "hub": "user/repo"}
        text = json_text(mutated(tree, rng), rng, 0.4).replace(FOLDER, str(self.folder))
        (place / "aliases.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        steps = [aliases, *(lambda name=name: self.found(name) for name in tree), *(lambda: patch_info("mine"),)]
        targets = re.findall(r'"([^"]+)"', text)
        return Case(
            steps,
            (
                "aliases.json",
                *tree,
                *(part[:40] for target in targets for part in (target, *re.split(r"[/@]+", target)) if part),
            ),
        )

    def found(self, name: str) -> None:
        locate(name).load()

    def prompt(self, rng: Random, place: Path) -> Case:
        text = words(rng, CHATML)
        return Case((lambda: Prompter(self.model.host.tokenizer, text).prompt(QUESTION),), ("prompt",))

    def asked(self, rng: Random, place: Path) -> Case:
        text = words(rng, QUESTION)
        steps = (lambda: remark(self.model.ask(self.clip, text, max_new_tokens=1)),)
        return Case(steps, ("question", "text"))


def _named(path: Path) -> list[str]:
    """Values of a recipe that a message may name instead of the recipe: bases, patches, encoders, files."""
    text = path.read_bytes().decode("utf-8", "replace")
    keys = "base|encoder|train|val|features|output|name|on_top_of|start_from"
    values = re.findall(rf"(?:{keys})\W+([^\n]+)", text)[:500]
    return [part[:12] for value in values for part in (value, *re.split(r"[\s,'\"\[\]{}]+", value)) if len(part) > 2]


def _parts(key: str) -> list[str]:
    return [part[:20] for part in key.split(".") if part]
