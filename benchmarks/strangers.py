# ruff: noqa: E402 - the environment must be set before transformers is imported
"""Files and texts of strangers: real ones, changed at random where it hurts, and judged by the code that reads them.

    python benchmarks/strangers.py patches 0 10000          # class, seed, cases; BAD ones to patches.bad.jsonl
    python benchmarks/strangers.py patches 0 --only 4711    # one case in this process, with its traceback

patches: headers and configs with a fitting sha256, tensors, metadata, bytes; by `patch info`, `Patch.load`, applying,
asking. texts: recipes and overrides by `pave-train --dry-run`, JSONL lines by the reader of a training run, aliases,
prompts, questions. bases: folders of small bases by `pave.load` and asking. adapters: PEFT folders, by applying.
sensors: arrays, scans, cameras, sound, feature files, and files that are no files, by the encoder and by the reader of
a training run, which must go on without the clip.

Equal class, seed and number give an equal case.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import socket
import struct
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PAVE_NONCOMMERCIAL": "1"}
os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch
import yaml

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "parts"), str(Path(__file__).parent)]
from clips import counting_frames, write_clip
from families import make_base
from mutations import (
    TEXTS,
    changed_tensors,
    extreme,
    harmed,
    join,
    json_text,
    mutated,
    mutated_bytes,
    seal,
    split,
    words,
    yaml_text,
)
from patched import favor_config
from scans import room, write_embodiedscan, write_scannet
from small import awaken, make_clip, make_config, make_tokenizer, write_line
from watched import Case, judged, verdicts

from pave.cli.main import profile_command as profile
from pave.cli.patch import patch_info, patch_push
from pave.cli.terminal import remark
from pave.cli.train import train
from pave.config import FusionConfig, SenseConfig
from pave.data import Source, read_jsonl
from pave.encoder import load_encoder
from pave.errors import PaveError
from pave.features import published
from pave.features.cache import FeatureCache
from pave.features.extract import encode, listed
from pave.features.files import identity
from pave.features.worker import Job
from pave.files import tensorfile
from pave.hub import catalogue
from pave.hub.aliases import aliases
from pave.hub.locate import locate
from pave.loading.base import outline
from pave.media.clip import Clip
from pave.model.patched import PatchedModel, load
from pave.patch.file import Patch
from pave.patch.peft import export_peft
from pave.prompt import CHATML, Prompter
from pave.recipe import overridden, read_recipe
from pave.training.dataset import read_dataset
from pave.training.setup import Setup

QUESTION = "What do you hear?"
SHIPPED = ("audio-playroom", "imu-playroom", "depth-playroom", "views-playroom")
ENCODERS = ("logmel", "array", "base-tower", "rgbd-geometry")


class Kind(ABC):
    """A class of inputs. Built once, in the process that forks; `case` runs in the fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the real inputs
        self.model = load("playroom")
        self.clip = make_clip(0)

    @abstractmethod
    def make(self, rng: Random, place: Path) -> Case:
        """A case whose files are written to an empty folder."""

    def case(self, seed: int, number: int) -> Case:
        rng = Random(f"{type(self).__name__} {seed} {number}")
        random.seed(number)
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return self.make(rng, place)

    def asking(self, source: Path) -> None:
        """Apply a patch, ask, remove it."""
        model = PatchedModel(self.model.host)
        try:
            remark(model.apply_patch(source, strict=False))
            inputs = model.prepare([self.clip], [QUESTION])
            model.generate(inputs, max_new_tokens=1, do_sample=False)
        finally:
            for name in list(model.patches):
                model.remove_patch(name)


class Patches(Kind):
    """Patch files; the sha256 fits unless the bytes are changed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        model = self.model
        camera = Clip.from_frames(self.clip.frames, self.clip.times)
        self.clip = self.clip.beside({"imu": torch.randn(400, 6), "views": [camera], "depth": room()})
        files = [catalogue.folder() / name / "patch.safetensors" for name in SHIPPED]
        for name, changes in self.configs().items():
            model.attach(name, changes, trainable=False)
            awaken(model, name)
            patch = model.export(name)
            files += [patch.save(folder / f"{name}.safetensors"), patch.shrink().save(folder / f"{name}-4.safetensors")]
            model.remove_patch(name)
        self.files = [split(file.read_bytes()) for file in files]

    def configs(self) -> dict[str, Any]:
        host = self.model.host

        def sense(encoder: str, **options: Any) -> dict[str, Any]:
            built = self.model.encoder(SenseConfig(encoder=encoder, options=options))
            return {built.spec.sense: built.spec.facts("time")}

        official = FusionConfig(kind="official", width=32, heads=2)
        return {
            "ears": make_config(host),
            "official": make_config(host, fusion=official),
            "favor": favor_config(host),
            "states": favor_config(host, "states"),
            "prefix": favor_config(host, "prefix"),
            "imu": make_config(host, senses=sense("array", signal="imu", dim=6, rate=100, stack=5)),
            "views": make_config(host, senses=sense("base-tower", sense="views")),
            "fast": make_config(host, senses=sense("base-tower")),
            "depth": make_config(host, senses=sense("rgbd-geometry"), lora=None),
        }

    def make(self, rng: Random, place: Path) -> Case:
        header, body = rng.choice(self.files)
        path = place / "their.safetensors"
        path.write_bytes(self.changed(header, body, rng))
        steps = [lambda: patch_info(str(path)), lambda: Patch.load(path), lambda: self.asking(path)]
        if rng.random() < 0.2:
            steps += [lambda: patch_push(str(path), "user/repo", dry_run=True), lambda: profile("playroom", str(path))]
        return Case(steps, (path.name, "prompt template", "views=", "encoder", "target_modules", *ENCODERS))

    def changed(self, header: dict[str, Any], body: bytes, rng: Random) -> bytes:
        facts = dict(header["__metadata__"])
        text, way = facts["pave.config"], rng.random()
        if way < 0.6:
            config = json.loads(text)
            under = rng.choice(("senses", "fusion", "base", "lora", "resampler", "prompt", ""))
            text = json_text(
                self.prompted(config, rng) if rng.random() < 0.1 else mutated(config, rng, under), rng, 0.1
            )
        elif way < 0.75:
            header, body = changed_tensors(header, body, rng)
        elif way < 0.8:
            count = rng.choice((300, 3000))
            for i in range(count):
                header = {
                    **header,
                    f"{rng.choice(('x', 'lora.x'))}.{i}.A": {
                        "dtype": "F32",
                        "shape": [0],
                        "data_offsets": [len(body)] * 2,
                    },
                }
            config = json.loads(text)
            config["fusion"] |= {"kind": "official", "layers": rng.choice((count, count // 2, 64))}
            text = json.dumps(config)
        table = {name: entry for name, entry in header.items() if name != "__metadata__"}
        facts |= {"pave.config": text, "pave.sha256": seal(text, table, body)}
        if 0.8 <= way < 0.9:
            table = mutated(table, rng)
        elif 0.9 <= way < 0.95:
            key = rng.choice(("pave.certificate", "pave.format", "pave.sha256", "format", "extra"))
            facts[key] = rng.choice(
                (json_text(mutated({"accuracy": {"with": 0.9, "without": 0.5}}, rng), rng), rng.choice(TEXTS), "2")
            )
        if way < 0.95 or not isinstance(table, dict):
            whole = {"__metadata__": facts, **table} if isinstance(table, dict) else table
            return join(json_text(whole, rng, 0.02), body)
        data = join(json.dumps({"__metadata__": facts, **table}), body)
        return mutated_bytes(data, rng, len(data) - len(body))

    def prompted(self, config: dict[str, Any], rng: Random) -> dict[str, Any]:
        config["prompt"] = words(rng, config["prompt"] or CHATML)
        return config


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
        own = {
            "name": "own",
            "senses": {"audio": {"encoder": "logmel", "options": {"bands": 16, "rate": 5}}},
            "resampler": {"preset": "tiny", "queries": 4},
            "fusion": {"width": 32, "heads": 2},
            "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            "data": {"train": str(folder / "train.jsonl"), "features": []},
            "train": {"steps": 2, "batch": 2, "on_top_of": ["audio-playroom"], "output": str(folder / "run")},
        }
        self.recipes += [yaml.safe_dump(own), yaml.safe_dump(own | {"resampler": None}, default_flow_style=True)]
        self.own = folder / "own.yaml"
        self.own.write_text(yaml.safe_dump(own | {"resampler": None}))

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
        path.write_bytes(mutated_bytes(data, rng) if rng.random() < 0.03 else data)
        # A recipe that is right may name a base, patch or file that is not here: then the message names that.
        names = (path.name, str(place), "'': not a local folder", *_named(path))
        return Case((lambda: read_recipe(path), lambda: train(str(path), None, False, True, False)), names)

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
        steps = (lambda: overridden([text]), lambda: train(str(self.own), [text], False, True, False))
        return Case(
            steps, (text[:20], key[:20], repr(text)[1:10], value[:10], repr(value)[1:8], *_parts(key), self.own.name)
        )

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

        return Case((lambda: read_jsonl(path), training), (path.name,))

    def setup(self) -> Setup:
        if not hasattr(self, "_setup"):
            self._setup = Setup.of(read_recipe(self.own, ["train.on_top_of=[]"]))
        self._setup.store.refused.clear()
        return self._setup

    def alias(self, rng: Random, place: Path) -> Case:
        os.environ["PAVE_HOME"] = str(place)
        tree = {"mine": "audio-playroom", "other": str(self.folder), "loop": "loop", "hub": "user/repo"}
        text = json_text(mutated(tree, rng), rng, 0.4)
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
    return [
        part[:20]
        for value in values
        for part in (value, *re.split(r"[\s,'\"]+", value))
        if len(part) > 2
    ]


def _parts(key: str) -> list[str]:
    return [part[:20] for part in key.split(".") if part]


class Bases(Kind):
    """Folders of small bases."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bases = []
        for family in ("llava_onevision", "qwen2_5_vl", "smolvlm"):
            base, path = make_base(make_tokenizer(), family=family), folder / family
            base.model.save_pretrained(path, max_shard_size="400KB" if family == "smolvlm" else "50GB")
            base.tokenizer.save_pretrained(path)
            (path / "pave.json").write_text(json.dumps({"frames": 4}))
            (path / "preprocessor_config.json").write_text(
                json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
            )
            self.bases.append(path)

    def make(self, rng: Random, place: Path) -> Case:
        path = place / "their-base"
        shutil.copytree(rng.choice(self.bases), path, copy_function=os.link)
        for _ in range(rng.choice((1, 1, 1, 2))):
            self.change(path, rng)

        def asking() -> None:
            model = load(path)
            model.ask(self.clip, QUESTION, max_new_tokens=1)

        return Case((lambda: outline(path), asking), (path.name,))

    def change(self, path: Path, rng: Random) -> None:
        names = {file.name: file for file in path.iterdir() if file.is_file()}
        texts = [name for name in names if name.endswith(".json") and name != "tokenizer.json"]
        way = rng.random()
        if way < 0.45:
            self.rewrite(
                names.get("config.json", path / "config.json"), rng, rng.choice(("text_config", "vision_config", ""))
            )
        elif way < 0.7 and texts:
            self.rewrite(names[rng.choice(texts)], rng)
        elif way < 0.8:
            self.rewrite(
                path / "tokenizer.json", rng, rng.choice(("model", "added_tokens", "pre_tokenizer", "decoder"))
            )
        elif way < 0.9:
            file = rng.choice(
                [file for file in names.values() if file.suffix == ".safetensors"] or list(names.values())
            )
            self.weights(file, rng)
        elif way < 0.95:
            self.extra(path, rng)
        else:
            file = rng.choice(list(names.values()))
            file.unlink()
            _no_file(file, rng)

    @staticmethod
    def rewrite(file: Path, rng: Random, under: str = "") -> None:
        if not file.is_file():
            return
        text = file.read_text("utf-8", "surrogatepass")
        try:
            text = json_text(mutated(json.loads(text), rng, under), rng, 0.1)
        except (ValueError, RecursionError):
            text = harmed(text, rng)
        file.unlink()  # a hard link to the real one
        file.write_bytes(text.encode("utf-8", "surrogatepass"))

    @staticmethod
    def weights(file: Path, rng: Random) -> None:
        data = file.read_bytes()
        try:
            header, body = split(data)
        except (ValueError, RecursionError):
            return
        facts = {"__metadata__": header.pop("__metadata__", {})}
        if rng.random() < 0.5:
            header, body = changed_tensors(header, body, rng)
            data = join(json.dumps(facts | header), body)
        elif rng.random() < 0.6:
            table = mutated(facts | header, rng)
            data = join(json_text(table, rng), body)
        else:
            data = mutated_bytes(data, rng, len(data) - len(body))
        file.unlink()
        file.write_bytes(data)

    def extra(self, path: Path, rng: Random) -> None:
        """Files that a base need not have, and some that nobody should obey."""
        code = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}
        config = json.loads((self.bases[0] / "config.json").read_text())
        extras: dict[str, Any] = {
            "tokenizer_config.json": {
                "auto_map": code,
                "tokenizer_class": rng.choice(("Own", "LlamaTokenizer", "PreTrainedTokenizerFast")),
            },
            "config.json": config
            | rng.choice(
                (
                    {"auto_map": code},
                    {"quantization_config": {"quant_method": rng.choice(("gptq", "bitsandbytes", "fp8", "x"))}},
                )
            ),
            "adapter_config.json": {
                "peft_type": "LORA",
                "base_model_name_or_path": "/",
                "r": 4,
                "target_modules": ["q_proj"],
            },
            "model.safetensors.index.json": {
                "weight_map": {"a": rng.choice(("../../x", "/etc/passwd", "model.safetensors"))}
            },
            "generation_config.json": {rng.choice(GENERATION): extreme(rng)},
            "chat_template.json": {
                "chat_template": rng.choice(("{{ x", "{% for i in range(10**9) %}{% endfor %}", "x" * 10**5))
            },
            "special_tokens_map.json": {"eos_token": extreme(rng), "pad_token": extreme(rng)},
            "added_tokens.json": {"<x>": extreme(rng)},
            "processor_config.json": {"auto_map": code},
            "video_preprocessor_config.json": {"size": extreme(rng)},
            "custom_generate": {},
        }
        name = rng.choice(list(extras))
        file = path / name
        if file.exists():
            file.unlink()
        if name == "custom_generate":
            file.mkdir()
            (file / "generate.py").write_text("raise SystemError('code of the folder was run')\n")
        else:
            file.write_bytes(
                json_text(mutated(extras[name], rng) if rng.random() < 0.3 else extras[name], rng, 0.05).encode(
                    "utf-8", "surrogatepass"
                )
            )
        (path / "own.py").write_text("raise SystemError('code of the folder was run')\n")


GENERATION = (
    *(
        "return_dict_in_generate",
        "output_scores",
        "num_beams",
        "max_new_tokens",
        "max_length",
        "do_sample",
        "use_cache",
        "cache_implementation",
    ),
    *(
        "temperature",
        "top_k",
        "top_p",
        "eos_token_id",
        "pad_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "num_return_sequences",
    ),
    *(
        "penalty_alpha",
        "constraints",
        "force_words_ids",
        "assistant_model",
        "guidance_scale",
        "watermarking_config",
        "prompt_lookup_num_tokens",
    ),
    *(
        "stop_strings",
        "forced_eos_token_id",
        "suppress_tokens",
        "bad_words_ids",
        "sequence_bias",
        "min_length",
        "compile_config",
        "trust_remote_code",
    ),
    *(
        "repetition_penalty",
        "no_repeat_ngram_size",
        "dola_layers",
        "num_beam_groups",
        "typical_p",
        "max_time",
        "cache_config",
        "output_attentions",
    ),
)


class Adapters(Kind):
    """PEFT folders."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = PatchedModel(make_base(make_tokenizer()))
        self.model.attach("ears", make_config(self.model.host), trainable=False)
        awaken(self.model, "ears")
        export_peft(self.model.export("ears"), self.model.host, folder / "lora")
        self.model.remove_patch("ears")
        self.config = json.loads((folder / "lora" / "adapter_config.json").read_text())
        self.header, self.body = split((folder / "lora" / "adapter_model.safetensors").read_bytes())

    def make(self, rng: Random, place: Path) -> Case:
        path = place / rng.choice(
            ("their-lora", "their-lora", "their-lora\x1b[31m", "their-lora" + "é" * 60, "their-lora\nx", "their-lora,")
        )
        path.mkdir()
        config, header, body = dict(self.config), self.header, self.body
        way = rng.random()
        if way < 0.45:
            keys = rng.choice(
                (
                    list(config),
                    ["r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "exclude_modules"],
                )
            )
            for _ in range(rng.choice((1, 1, 2))):
                config[rng.choice(keys)] = rng.choice((extreme(rng), rng.choice(PATTERNS)))
            text = json_text(config if rng.random() < 0.7 else mutated(config, rng), rng, 0.1)
        else:
            text = json.dumps(config)
        if 0.45 <= way < 0.7:
            header, body = changed_tensors(header, body, rng)
        elif 0.7 <= way < 0.85:
            header = self.renamed(header, rng)
        data = join(json_text(mutated(header, rng) if 0.85 <= way < 0.93 else header, rng, 0.03), body)
        data = mutated_bytes(data, rng, len(data) - len(body)) if way >= 0.93 else data
        (path / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        (path / "adapter_model.safetensors").write_bytes(data)
        if rng.random() < 0.03:
            file = path / rng.choice(("adapter_config.json", "adapter_model.safetensors"))
            file.unlink()
            _no_file(file, rng)
        return Case((lambda: self.asking(path),), ("their-lora", "adapter_config.json", "adapter_model.safetensors"))

    @staticmethod
    def renamed(header: dict[str, Any], rng: Random) -> dict[str, Any]:
        """Other paths to the same layers."""
        old, new = rng.choice(
            (("model.language_model", "thinker"), ("layers.0", "layers." + "0" * 5000), ("base_model.model.", ""))
        )
        piece = rng.choice(
            (new, "." * 32_000, "a." * 16_000, "talker.model", "audio_tower", "mtp", "", "\x1b[2J", rng.choice(TEXTS))
        )
        half = rng.random() < 0.5
        found = {}
        for i, (name, entry) in enumerate(header.items()):
            found[name if half and i % 2 else name.replace(old, piece)] = entry
        return found


PATTERNS = (
    {"q_proj": 2},
    {"layers.0": 8},
    {"(a+)+$": 4},
    {".*": 0},
    {"q_proj": -1},
    {"x": 10**9},
    "(a|aa)+$",
    ["q_proj"] * 5000,
    "all-linear",
    0,
    -4,
    1e38,
    1e-300,
)


class Sensors(Kind):
    """Files of signals, by the encoders that read them and by the reader of a training run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        model = self.model
        self.clip_file = write_clip(folder / "clip.mp4", counting_frames(8), fps=4)
        self.sound = write_clip(
            folder / "sound.wav", None, audio=np.sin(np.arange(24_000) / 9).astype(np.float32), audio_codec="pcm_s16le"
        )
        self.camera = write_clip(folder / "camera.mp4", counting_frames(6), fps=3, audio=np.zeros(24_000, np.float32))
        values = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
        np.save(folder / "imu.npy", values)
        rows = {"values": torch.from_numpy(values), "times": torch.arange(200).double() / 100}
        tensorfile.write(folder / "imu.safetensors", rows, {})
        scan = room()
        write_scannet(folder / "scene0000_00", scan)
        write_scannet(folder / "odin", scan, odin=True)
        write_embodiedscan(folder / "embodied", scan)
        self.feeling = PatchedModel(model.host)
        self.feeling.apply_patch("imu-playroom")
        self.encoders = {
            "imu": model.encoder(
                SenseConfig(encoder="array", options={"signal": "imu", "dim": 6, "rate": 100, "stack": 5})
            ),
            "depth": model.encoder(SenseConfig(encoder="rgbd-geometry", options={"frames": 4})),
            "clocked": model.encoder(SenseConfig(encoder="rgbd-geometry", options={"frames": 4, "fps": 2})),
            "views": model.encoder(SenseConfig(encoder="base-tower", options={"sense": "views"})),
            "audio": model.encoder(SenseConfig(encoder="logmel", options={"bands": 16, "rate": 5})),
        }
        (folder / "sounds").mkdir()
        shutil.copy(self.camera, folder / "sounds" / "camera.mp4")
        encode(Job("logmel", {"bands": 16, "rate": 5}), listed(folder / "sounds"), folder / "features")

    def make(self, rng: Random, place: Path) -> Case:
        makers = (
            *(self.array, self.tensors, self.scan, self.infos, self.cameras, self.media, self.features, self.no_file),
            self.pickled,
        )
        return rng.choices(makers, (28, 12, 20, 12, 6, 6, 8, 8, 0.4))[0](rng, place)

    def judging(self, sense: str, signal: Any, names: Sequence[str], video: Path | None = None, how: str = "") -> Case:
        """The encoder alone, and the reader of a training run, which lists the clip as refused instead of ending."""
        video, encoder = video or self.clip_file, self.encoders[how or sense]
        source = Source(video, () if sense == "audio" else ((sense, signal),))

        def alone() -> None:
            clip = Clip.read(video, frames=4)
            encoder.encode(
                clip
                if sense == "audio"
                else clip.beside({sense: list(signal) if isinstance(signal, tuple) else signal})
            )

        def training() -> None:
            store = FeatureCache(self.model, [encoder])
            store.read([source])
            for why in store.refused.values():
                if not any(name in why for name in names):
                    raise PaveError(why)
                remark(why)

        def asking() -> None:
            self.feeling.ask(video, QUESTION, max_new_tokens=1, **({sense: signal} if sense == "imu" else {}))

        steps = (alone, training, lambda: identity(source, sense), *((asking,) if sense in ("imu", "audio") else ()))
        return Case(steps, names)

    def array(self, rng: Random, place: Path) -> Case:
        path = place / rng.choice(("their.npy", "their.npy", "their.npz", "their.csv", "their", "their.NPY"))
        data = (self.folder / "imu.npy").read_bytes()
        way = rng.random()
        if way < 0.6:
            data = _npy(rng, data)
        elif way < 0.75:
            data = mutated_bytes(data, rng, 130)
        elif way < 0.8:
            packed = BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("values.npy", data if rng.random() < 0.5 else bytes(10**7))
            data = packed.getvalue()
        elif way < 0.9:
            rows = [",".join(f"{rng.gauss(0, 1):.3f}" for _ in range(6)) for _ in range(50)]
            data = rng.choice(
                (
                    "\n".join(rows),
                    words(rng, "\n".join(rows)),
                    json_text(mutated({"values": [[1.0] * 6] * 9}, rng), rng),
                )
            ).encode("utf-8", "surrogatepass")
        else:
            values = np.random.default_rng(rng.randrange(9)).normal(size=(rng.choice((1, 7, 200, 40_000)), 6))
            values.flat[rng.randrange(values.size)] = rng.choice((np.nan, np.inf, 1e308, -1e39))
            packed = BytesIO()
            np.save(
                packed,
                values.astype(rng.choice(("f2", "f4", "f8", "i1", "u8", "?", ">f4", "c16", "f8", "M8[s]", "U3", "V4"))),
                allow_pickle=False,
            )
            data = packed.getvalue()
        path.write_bytes(data)
        return self.judging("imu", str(path), (path.name, "imu"))

    def tensors(self, rng: Random, place: Path) -> Case:
        path = place / "their.safetensors"
        header, body = split((self.folder / "imu.safetensors").read_bytes())
        facts = {"__metadata__": header.pop("__metadata__", {})}
        if rng.random() < 0.6:
            header, body = changed_tensors(header, body, rng)
            data = join(json.dumps(facts | header), body)
        else:
            data = join(json_text(mutated(facts | header, rng), rng), body)
        path.write_bytes(mutated_bytes(data, rng) if rng.random() < 0.1 else data)
        return self.judging("imu", str(path), (path.name, "imu"))

    def scan(self, rng: Random, place: Path) -> Case:
        path = place / "scene0000_00"
        shutil.copytree(self.folder / rng.choice(("scene0000_00", "odin")), path)
        for _ in range(rng.choice((1, 1, 2))):
            file = rng.choice([file for file in sorted(path.rglob("*")) if file.is_file()])
            data = file.read_bytes()
            way = rng.random()
            if way < 0.1:
                file.rename(
                    file.with_name(
                        rng.choice(
                            (
                                "x.png",
                                "0.txt",
                                "-1.png",
                                "१.png",
                                "²0.png",
                                "9" * 200 + ".txt",
                                "1.5.png",
                                "00.png",
                                "\x1b[2J.txt",
                            )
                        )
                    )
                )
            elif way < 0.2:
                file.unlink()
                _no_file(file, rng)
            elif file.suffix == ".png":
                file.write_bytes(_png(data, rng))
            else:
                file.write_bytes(_numbers(data.decode(), rng))
        return self.judging("depth", str(path), (path.name,), how=rng.choice(("depth", "clocked")))

    def infos(self, rng: Random, place: Path) -> Case:
        path = place / "infos.json"
        for each in (self.folder / "embodied").iterdir():
            if each.is_dir():
                os.symlink(each, place / each.name)
        tree = json.loads((self.folder / "embodied" / "infos.json").read_text())
        scene = "scannet/scene0000_00"
        if rng.random() < 0.7:
            tree[scene] = mutated(tree[scene], rng)
        else:
            tree = mutated(tree, rng)
        path.write_bytes(json_text(tree, rng, 0.1).encode("utf-8", "surrogatepass"))
        scene = rng.choice((*[scene] * 9, rng.choice(TEXTS), "")).replace("\0", "0")
        return self.judging("depth", f"{path}#{scene}", (path.name, place.name), how=rng.choice(("depth", "clocked")))

    def cameras(self, rng: Random, place: Path) -> Case:
        path = place / rng.choice(("their.mp4", "their.mp4", "their.png", "their.txt"))
        path.write_bytes(mutated_bytes(self.camera.read_bytes(), rng, rng.choice((0, 400))))
        several = rng.choice(((str(path),), (str(path),), (str(path), str(path)), (None,), (), str(path)))
        return self.judging("views", several, (path.name, "views"))

    def media(self, rng: Random, place: Path) -> Case:
        path = place / rng.choice(("their.wav", "their.mp3", "their.mp4"))
        path.write_bytes(mutated_bytes(self.sound.read_bytes(), rng, 90))
        return self.judging("audio", None, (path.name,), video=path)

    def features(self, rng: Random, place: Path) -> Case:
        """Feature files, beside the clip that they are of."""
        folder = place / "features"
        shutil.copytree(self.folder / "features", folder)
        path = next(folder.glob("*.safetensors"))
        header, body = split(path.read_bytes())
        facts = header.pop("__metadata__")
        way = rng.random()
        if way < 0.5:
            facts["contents"] = json_text(
                mutated(json.loads(facts["contents"]), rng, rng.choice(("key", "clips"))), rng, 0.1
            )
        elif way < 0.75:
            header, body = changed_tensors(header, body, rng)
            contents = json.loads(facts["contents"])
            own = {name.partition(".")[2]: entry for name, entry in header.items()}
            contents["clips"][0]["sha256"] = seal("", own, body)
            facts["contents"] = json.dumps(contents)
        facts.pop("sha256")
        facts["sha256"] = seal(json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False), {}, b"")
        data = join(
            json_text({"__metadata__": facts, **(mutated(header, rng) if 0.75 <= way < 0.85 else header)}, rng, 0.03),
            body,
        )
        path.write_bytes(mutated_bytes(data, rng, len(data) - len(body)) if way >= 0.9 else data)
        if 0.85 <= way < 0.9:
            path.unlink()
            _no_file(path, rng)

        def training() -> None:
            store = FeatureCache(self.model, [self.encoders["audio"]], None, [folder])
            for source, features in store.read([Source(self.folder / "sounds" / "camera.mp4")]).items():
                remark(features and source)
            for why in store.refused.values():
                remark(why)

        return Case((training,), (path.name, "features"))

    def pickled(self, rng: Random, place: Path) -> Case:
        """A published feature file, which another process opens: most of the seconds are those of its start."""
        path = place / "sound.pt"
        with BytesIO() as packed:
            torch.save(torch.zeros(3, 1024), packed, _use_new_zipfile_serialization=rng.random() < 0.5)
            data = packed.getvalue()
        calls = b"cos\nsystem\n(S'true'\ntR."
        path.write_bytes(
            rng.choice(
                (data, mutated_bytes(data, rng), mutated_bytes(data, rng, 300), calls, b"\x80\x04" + b"]" * 10**5)
            )
        )
        clip = Clip(audio=torch.zeros(1, 64_000), rate=16_000)
        step = lambda: published.tokens(load_encoder("imagebind-audio").spec, clip, place, Path("sound.mp4"))  # noqa: E731
        return Case((step,), (path.name,))

    def no_file(self, rng: Random, place: Path) -> Case:
        path = place / rng.choice(("their.npy", "their.safetensors", "their.mp4", "scene"))
        _no_file(path, rng)
        device = rng.choice(
            (*[str(path)] * 5, "/dev/zero", "/dev/stdin", "/dev/urandom", "/proc/self/mem", "/dev/tty", "/proc/kmsg")
        )
        sense = rng.choice(("imu", "imu", "depth", "views", "audio"))
        signal: Any = (
            (device,) if sense == "views" else rng.choice((device, (device, device))) if sense == "imu" else device
        )
        return self.judging(sense, signal, (Path(device).name, sense), video=Path(device) if sense == "audio" else None)


def _no_file(path: Path, rng: Random) -> None:
    """Something at a path that is no regular file with content."""
    match rng.randrange(9):
        case 0 | 1:
            os.mkfifo(path)
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path)
        case 4:
            path.symlink_to(
                rng.choice(("/dev/zero", "/dev/null", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/"))
            )
        case 5:
            path.write_bytes(b"")
        case 6:
            with path.open("wb") as file:
                file.truncate(1 << 28)  # no block of it is on the disk
        case 7:
            with socket.socket(socket.AF_UNIX) as end:
                place = os.getcwd()
                os.chdir(path.parent)  # the path of a socket is short
                try:
                    end.bind(path.name)
                finally:
                    os.chdir(place)
        case 8:
            path.write_bytes(bytes(rng.choice((1, 4096, 10**6))))


def _npy(rng: Random, data: bytes) -> bytes:
    """An array file with another header, of the right length mostly."""
    body = data[128:]
    fields = {"descr": "'<f4'", "fortran_order": "False", "shape": "(200, 6)"}
    shapes = (
        "(2000000000000, 6)",
        "(1099511627776,)",
        "(10**12, 6)",
        "()",
        "(-1, 6)",
        "(200, -6)",
        "(0, 6)",
        "(6, 200)",
        "(1200,)",
        "(200, 6, 1)",
    )
    more = (
        "(True, 6)",
        "(2e2, 6)",
        "'200, 6'",
        "[200, 6]",
        "(" + "1, " * 60 + "1200)",
        "(9" + "9" * 5000 + ", 6)",
        "(9999999, 0)",
        "(200, 6",
        "None",
        "{}",
    )
    types = (
        "'|O'",
        "'<f8'",
        "'<U1'",
        "'|V4'",
        "'<c8'",
        "'|b1'",
        "'<M8[s]'",
        "[('a', '<f4'), ('b', '|O')]",
        "'>f4'",
        "'<f2'",
        "'<i8'",
        "'f4, f4'",
        "1",
        "'x'",
    )
    deep = (
        "(" * 100 + ")" * 100,
        "(" * 5000,
        "-" * 5000 + "1",
        "[" * 90 + "]" * 90,
        "'<" + "f" * 5000 + "'",
        "__import__('os')",
        "'\\ud800'",
        "b'<f4'",
        "'<f4",
        "{'a': 1}",
    )
    fields[rng.choice(("shape", "shape", "descr"))] = rng.choice((*shapes, *more, *types, *deep))
    if rng.random() < 0.15:
        fields["fortran_order"] = rng.choice(("True", "1", "None", "'x'"))
    if rng.random() < 0.1:
        fields.pop(rng.choice(list(fields)))
    if rng.random() < 0.1:
        fields[rng.choice(("extra", "a\\n", "descr "))] = "1"
    text = "{" + ", ".join(f"'{key}': {value}" for key, value in fields.items()) + ", }"
    if rng.random() < 0.1:
        text = words(rng, text)
    raw = text.encode("utf-8", "surrogatepass") + b" " * (-(len(text) + 11) % 64) + b"\n"
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    size = rng.choice((len(raw), len(raw), len(raw), len(raw), 0, 2**16 - 1, 2**31))
    length = min(size, 2**16 - 1).to_bytes(2, "little") if version == (1, 0) else size.to_bytes(4, "little")
    rest = body[: rng.choice((len(body), len(body), len(body) // 2, 0, len(body) - 3))]
    return (
        rng.choice((b"\x93NUMPY", b"\x93NUMPY", b"\x93NUMPY", b"\x93NUMPY", b"PK\x03\x04"))
        + bytes(version)
        + length
        + raw
        + rest
    )


def _png(data: bytes, rng: Random) -> bytes:
    """A PNG with other sizes or types that its checksums agree with, or with changed bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(data, rng, rng.choice((0, 60)))
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", data[16:29])
    width, height = (rng.choice((each, each, 0, 1, each * 2, 30_000, 2**31 - 1)) for each in (width, height))
    depth, colour = rng.choice((depth, depth, 1, 8, 16, 3)), rng.choice((colour, colour, 0, 2, 3, 6, 9))
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, *rest)
    text = b"tEXt" + b"a\0" + b"x" * rng.choice((1, 10**6))
    chunk = len(text[4:]).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big") if rng.random() < 0.3 else b""
    bomb = b"zTXt" + b"a\0\0" + zlib.compress(bytes(10**7))
    chunk += (
        len(bomb[4:]).to_bytes(4, "big") + bomb + zlib.crc32(bomb).to_bytes(4, "big") if rng.random() < 0.2 else b""
    )
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + chunk + data[33:]


def _numbers(text: str, rng: Random) -> bytes:
    """A text of numbers with one of them changed, or more."""
    parts = text.split(" ")
    for _ in range(rng.choice((1, 1, 3))):
        odd = (
            "nan",
            "inf",
            "-inf",
            "1e400",
            "0",
            "-1",
            "1e308",
            "x",
            "",
            "1e-320",
            "9" * 400,
            "0x1p3",
            "1_0",
            "१",
            "1,5",
            "\0",
            "1" * 5000,
            "#",
            "\n",
            "1+2j",
        )
        parts[rng.randrange(len(parts))] = rng.choice(odd)
    text = " ".join(parts)
    text = rng.choice(
        (
            text,
            text,
            text,
            text[: len(text) // 2],
            text * 2,
            text * 1000,
            "",
            text.replace(" ", ","),
            "axisAlignment = " + text,
            words(rng, text),
        )
    )
    return text.encode("utf-8", "surrogatepass") if rng.random() < 0.95 else text.encode("utf-16")


KINDS: dict[str, type[Kind]] = {
    "patches": Patches,
    "texts": Texts,
    "bases": Bases,
    "adapters": Adapters,
    "sensors": Sensors,
}


def judge(name: str, seed: int, numbers: Sequence[int], bad: Path | None = None) -> dict[str, Any]:
    """Try cases of a class; figures for benchmarks/results. bad: file to which BAD cases are added, to reproduce."""
    found, first, most, longest = Counter[str](), {}, 0, 0.0
    with TemporaryDirectory(prefix="pave-strangers-") as folder:
        kind = KINDS[name](Path(folder))
        for verdict in verdicts(numbers, lambda number: kind.case(seed, number)):
            found[verdict.kind] += 1
            if not sum(found.values()) % 250:
                print(f"{name} {seed}: {sum(found.values())} of {len(numbers)}, {dict(found)}", file=sys.stderr)
            most, longest = max(most, verdict.growth), max(longest, verdict.seconds)
            if verdict.kind.startswith("BAD"):
                first.setdefault(verdict.kind, f"{name} {seed} {verdict.number}: {verdict.message[:100]}")
                if bad:
                    with bad.open("a") as lines:
                        lines.write(json.dumps({"class": name, "seed": seed, **vars(verdict)}) + "\n")
    limits = {"longest_CPU_seconds": longest, "most_memory_MB": most >> 20}
    return {
        "tries": len(numbers),
        "seed": seed,
        **dict(sorted(found.items())),
        **limits,
        **({"first": first} if first else {}),
    }


def show(name: str, seed: int, number: int) -> None:
    """One case in this process, which may hang or die of it."""
    with TemporaryDirectory(prefix="pave-strangers-") as folder:
        case = KINDS[name](Path(folder)).case(seed, number)
        print("files:", *sorted((Path(folder) / "case").rglob("*")), sep="\n  ")
        for step in case.steps:
            try:
                step()
            except PaveError as error:
                print(f"refused: {str(error)[:600]!r}")
        print(judged(case))


def serve() -> None:
    """Answer lines of [class, seed, tries, file or null] with figures: the imports are needed once."""
    for line in sys.stdin:
        name, seed, tries, bad = json.loads(line)
        print(json.dumps(judge(name, seed, range(tries), bad and Path(bad))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, "serve"])
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("tries", type=int, nargs="?", default=10_000)
    parser.add_argument("--begin", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="this case, in this process, with its traceback")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kind == "serve":
        serve()
    elif options.only is not None:
        show(options.kind, options.seed, options.only)
    else:
        numbers = range(options.begin, options.begin + options.tries)
        print(json.dumps(judge(options.kind, options.seed, numbers, Path(f"{options.kind}.bad.jsonl")), indent=1))


if __name__ == "__main__":
    main()
