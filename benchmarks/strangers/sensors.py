"""Files of signals of strangers: arrays, scans, cameras, sound, feature files, and files that are no files."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from clips import counting_frames, write_clip
from kind import QUESTION, Kind, no_file
from mutations import TEXTS, changed_tensors, join, json_text, mutated, mutated_bytes, seal, split, words
from scans import room, write_embodiedscan, write_scannet
from signal_files import npy, numbers, png
from watched import Case

from pave.cli.terminal import remark
from pave.config import SenseConfig
from pave.data import Source
from pave.encoder import load_encoder
from pave.errors import PaveError
from pave.features import published
from pave.features.cache import FeatureCache
from pave.features.extract import encode, listed
from pave.features.files import identity
from pave.features.worker import Job
from pave.files import tensorfile
from pave.media.clip import Clip
from pave.model.patched import PatchedModel


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
            *(self.array, self.tensors, self.scan, self.infos, self.cameras, self.media, self.features, self.nothing),
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
            data = npy(rng, data)
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
                no_file(file, rng)
            elif file.suffix == ".png":
                file.write_bytes(png(data, rng))
            else:
                file.write_bytes(numbers(data.decode("utf-8", "replace"), rng))
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
            no_file(path, rng)

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

    def nothing(self, rng: Random, place: Path) -> Case:
        path = place / rng.choice(("their.npy", "their.safetensors", "their.mp4", "scene"))
        no_file(path, rng)
        device = rng.choice(
            (*[str(path)] * 5, "/dev/zero", "/dev/stdin", "/dev/urandom", "/proc/self/mem", "/dev/tty", "/proc/kmsg")
        )
        sense = rng.choice(("imu", "imu", "depth", "views", "audio"))
        signal: Any = (
            (device,) if sense == "views" else rng.choice((device, (device, device))) if sense == "imu" else device
        )
        return self.judging(sense, signal, (Path(device).name, sense), video=Path(device) if sense == "audio" else None)
