"""Patch files of strangers: headers and configs with a fitting sha256, tensors, metadata, bytes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from kind import Kind
from mutations import TEXTS, changed_tensors, join, json_text, mutated, mutated_bytes, seal, split, words
from patched import favor_config
from scans import room
from small import awaken, make_config
from watched import Case

from pave.cli.main import profile_command as profile
from pave.cli.patch import patch_info, patch_push
from pave.config import FusionConfig, SenseConfig
from pave.hub import catalogue
from pave.media.clip import Clip
from pave.patch.file import Patch
from pave.prompt import CHATML

SHIPPED = ("audio-playroom", "imu-playroom", "depth-playroom", "views-playroom")
ENCODERS = ("logmel", "array", "base-tower", "rgbd-geometry")


class PatchFiles(Kind):
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
        return Case(
            steps, (path.name, "prompt template", "views=", "encoder", "target_modules", "resampler.", *ENCODERS)
        )

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
