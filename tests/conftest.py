"""Small real fixtures: a seeded LLaVA-OneVision of a few layers, its tokenizer, clips with sound."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_base
from released import BLOCKS, SIZES, TINY, fusion_tensors, lora_tensors, write_checkpoint
from small import make_tokenizer, write_base, write_line
from transformers import PreTrainedTokenizerFast

from pave.base import Host
from pave.cli import main
from pave.model.patched import PatchedModel, load
from pave.playroom.world import draw_scene, draw_script
from pave.playroom.writer import write_clip, write_clips
from pave.recipe import Recipe, read_recipe


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No waiting for the disk: the files of tests need not outlive a crash of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random weights whatever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast) -> Host:
    return make_base(tokenizer)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> PatchedModel:
    return PatchedModel(make_base(tokenizer, dtype))


@pytest.fixture
def one(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    """A model in float32, for tests that do not depend on the dtype."""
    return PatchedModel(make_base(tokenizer))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A user's folder: `base/`, `patch.yaml`, `train.jsonl` about six clips with sound, and `mixed.jsonl`, which adds
    two clips without a sound track. Features of its clips are cached in `features/`. Its recipe asks nothing that needs
    no sense and fits no gate, which would take half of a run so short: add KEEPING (`runs`) for both."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "features").mkdir()
    write_base(folder / "base", tokenizer)
    lines = write_clips(folder, 6, split="train", channels=("audio",)).read_text().splitlines(keepends=True)
    for seed in range(2):
        write_clip(folder / f"clips/deaf-{seed}.mp4", draw_scene(seed), draw_script(seed), seed, audio=False)
        lines.insert(3 * seed, write_line(f"clips/deaf-{seed}.mp4", "is there a beep?", "no"))
    (folder / "mixed.jsonl").write_text("".join(lines))
    (folder / "patch.yaml").write_text(f"""\
name: ears
base: {folder / "base"}
senses:
  audio: {{encoder: logmel, options: {{bands: 16, rate: 5}}}}
fusion: {{width: 32, heads: 2}}
lora: {{r: 4}}
data: {{train: {folder / "train.jsonl"}}}
train: {{steps: 4, batch: 3, checkpoint_every: 2, keep: 0, gate: false}}
""")
    return folder


@pytest.fixture
def recipe(workshop: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """The workshop's recipe with overrides and its own output folder; all share the cached features."""

    def make(*overrides: str, output: str = "out") -> Recipe:
        folder = tmp_path / output
        if not folder.exists():
            folder.mkdir()
            (folder / "features").symlink_to(workshop / "features")
        return read_recipe(workshop, [f"train.output={folder}", *overrides])

    return make


@pytest.fixture
def released(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint for the small base, in the layout of the official release."""

    def write(name: str = "pave_lora", **how: Any) -> Path:
        return write_checkpoint(
            tmp_path / name, fusion_tensors(**TINY), lora_tensors(SIZES, BLOCKS, 4), blocks=BLOCKS, **how
        )

    return write


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, to check that none is left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def playroom() -> PatchedModel:
    return load("playroom", dtype="float32")


@pytest.fixture(scope="module")
def playroom_host(playroom: PatchedModel) -> Host:
    return playroom.host


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `pave WORDS` in this process; returns exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pave", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run
