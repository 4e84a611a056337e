"""Small real parts for every test: a seeded LLaVA-OneVision of a few layers, its tokenizer, clips with sound."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FRAMES, SIDE, make_base
from released import BLOCKS, SIZES, TINY, fusion_tensors, lora_tensors, write_checkpoint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.base import Base
from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.encoder import load_encoder
from pave.media import Clip
from pave.model import PatchedModel, load
from pave.playroom.world import draw_scene, draw_script
from pave.playroom.writer import write_clip, write_clips
from pave.recipe import Recipe, read_recipe

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_tokenizer(special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen2's, learned from one sentence."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    core.train_from_iterator(["system user assistant You are a helpful assistant. What do you hear?"], learner)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture
def base(tokenizer: PreTrainedTokenizerFast) -> Base:
    return make_base(tokenizer)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> PatchedModel:
    return PatchedModel(make_base(tokenizer, dtype))


@pytest.fixture
def one(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    """A model in float32, for what does not depend on the dtype."""
    return PatchedModel(make_base(tokenizer))


def make_clip(seed: int = 0, frames: int = FRAMES, sound: bool = True) -> Clip:
    """Noise to look at; a tone in noise to listen to, one second per key frame."""
    draw = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (frames, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    times = torch.arange(frames, dtype=torch.float64)
    return Clip.from_frames(
        pictures, times, audio=_sound(frames, draw) if sound else None, rate=16_000 if sound else None
    )


def _sound(seconds: int, draw: torch.Generator) -> Tensor:
    clock = torch.arange(16_000 * seconds) / 16_000
    pitch = 200 + 2000 * torch.rand(1, generator=draw)
    return (0.5 * torch.sin(2 * math.pi * pitch * clock) + 0.05 * torch.randn(len(clock), generator=draw))[None]


def make_config(base: Base, name: str = "ears", **changes: object) -> PatchConfig:
    """A patch that hears log-mel, small enough for this base."""
    options: dict[str, object] = {"bands": 16, "rate": 5}
    spec = load_encoder("logmel", **options).spec
    hearing = SenseFacts(encoder="logmel", options=options, dim=spec.dim, preprocessing=spec.preprocessing)
    fields: dict[str, object] = {
        "senses": {"audio": hearing},
        "fusion": FusionConfig(width=32, heads=2),
        "lora": LoraConfig(r=4, lora_alpha=8),
    }
    return PatchConfig(name=name, base=base.facts(), **(fields | changes))  # type: ignore[arg-type]


def awaken(model: PatchedModel, name: str, scale: float = 0.5, seed: int = 1) -> None:
    """Give an untrained patch weights that act: everything that begins at zero gets noise."""
    draw = torch.Generator().manual_seed(seed)
    attached, _ = model._found(name)
    for parameter in attached.parameters():
        if not parameter.any():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.data.copy_(scale * noise)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder as a user has it: `base/`, `patch.yaml`, `train.jsonl` about six clips with sound, and `mixed.jsonl`,
    which adds two clips without a sound track. Features of its clips are kept in `features/`."""
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
train: {{steps: 4, batch: 3, checkpoint_every: 2}}
""")
    return folder


def write_base(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    """The small base as a folder that `pave.load` opens."""
    base = make_base(tokenizer, seed=seed)
    base.model.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "pave.json").write_text(json.dumps({"frames": FRAMES}))
    return folder


def write_line(video: str, *turns: str, **facts: object) -> str:
    """One line of a data file: questions and answers in turn."""
    spoken = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return json.dumps({"id": video, "video": video, "conversations": spoken} | facts) + "\n"


@pytest.fixture
def recipe(workshop: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """The workshop's recipe with overrides and an output folder of its own; its clips have been seen already."""

    def make(*overrides: str, output: str = "out") -> Recipe:
        folder = tmp_path / output
        if not folder.exists():
            folder.mkdir()
            (folder / "features").symlink_to(workshop / "features")
        return read_recipe(workshop, [f"train.output={folder}", *overrides])

    return make


@contextmanager
def full_disk(size: int = 1024) -> Iterator[None]:
    """Within the block no file of this process can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def released(tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint for the small base, in the authors' layout."""

    def write(name: str = "pave_lora", **how: Any) -> Path:
        return write_checkpoint(
            tmp_path / name, fusion_tensors(**TINY), lora_tensors(SIZES, BLOCKS, 4), blocks=BLOCKS, **how
        )

    return write


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, to see whether one stays."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def playroom() -> PatchedModel:
    return load("playroom", dtype="float32")


@pytest.fixture(scope="module")
def eyes(playroom: PatchedModel) -> Base:
    return playroom.host
