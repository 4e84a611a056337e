"""Small real parts for every test: a tokenizer, a clip with sound, a patch, a base in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from families import FRAMES, SIDE, make_base
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pave.base import Host
from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.encoder import load_encoder
from pave.media.clip import Clip
from pave.model.patched import PatchedModel

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]


def make_tokenizer(special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    """Byte-level BPE like Qwen2's, trained on one sentence."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    core.train_from_iterator(["system user assistant You are a helpful assistant. What do you hear?"], learner)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def make_clip(seed: int = 0, frames: int = FRAMES, sound: bool = True) -> Clip:
    """Frames of noise; sound of a tone in noise, one second per key frame."""
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


def make_config(base: Host, name: str = "ears", **changes: object) -> PatchConfig:
    """The config of a log-mel patch, small enough for this base."""
    options: dict[str, object] = {"bands": 16, "rate": 5}
    spec = load_encoder("logmel", **options).spec
    hearing = SenseFacts(encoder="logmel", options=options, dim=spec.dim, preprocessing=spec.preprocessing)
    fields: dict[str, object] = {
        "senses": {"audio": hearing},
        "fusion": FusionConfig(width=32, heads=2),
        "lora": LoraConfig(r=4, lora_alpha=8),
        "licence": "apache-2.0",
    }
    return PatchConfig(name=name, base=base.facts(), **(fields | changes))  # type: ignore[arg-type]


def awaken(model: PatchedModel, name: str, scale: float = 0.5, seed: int = 1) -> None:
    """Give an untrained patch an effect: every parameter that starts at zero gets noise."""
    draw = torch.Generator().manual_seed(seed)
    attached, _ = model.applied.found(name)
    for parameter in attached.parameters():
        if not parameter.any():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.data.copy_(scale * noise)


def write_base(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Path:
    """The small base as a folder for `pave.load`."""
    base = make_base(tokenizer, seed=seed)
    base.model.save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "pave.json").write_text(json.dumps({"frames": FRAMES}))
    return folder


def write_line(video: str, *turns: str, **facts: object) -> str:
    """One line of a data file: questions and answers in turn."""
    spoken = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return json.dumps({"id": video, "video": video, "conversations": spoken} | facts) + "\n"


@contextmanager
def full_disk(size: int = 1024) -> Iterator[None]:
    """Within the block, no file of this process can grow beyond `size` bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
