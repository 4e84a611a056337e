"""PEFT folders of strangers: options, names of layers, tensors."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from families import make_base
from kind import Kind, no_file
from mutations import TEXTS, changed_tensors, extreme, join, json_text, mutated, mutated_bytes, split
from small import awaken, make_config, make_tokenizer
from watched import Case

from pave.model.patched import PatchedModel
from pave.patch.peft import export_peft


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
            no_file(file, rng)
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
