"""Bases: a frozen Hugging Face video LLM behind the few things that a patch needs of it.

In: key frames and questions. Out: visual tokens before and after the projector, packed rows of them, token ids of the
prompt, a fingerprint of the weights. One file in `pave/bases/` per family, named like its `model_type`. Refuses to know
of patches; never changes the model's class, names or weights.

b clips, t key frames, s visual tokens per key frame, q d channels before and after the projector, v visual rows of a
packed clip, y x the grid of a key frame's visual tokens
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from safetensors import SafetensorError
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from pave.config import BaseFacts
from pave.errors import BaseModelError, MediaError, nearest
from pave.media import Clip, preprocess
from pave.prompt import CHATML, Prompter

Newline = Literal["end", "grid", "none"]

EMBEDDED = Path(__file__).parent / "playroom" / "base"


@dataclass(frozen=True)
class Visual:
    """Frozen features of b clips; ragged rows are padded with zero frames."""

    vision: Tensor  # (b t s q) pooled, before the projector
    tokens: Tensor  # (b t s d) pooled, after the projector, no newline
    frames: Tensor  # int64 (b,) real key frames of each row
    times: Tensor  # float64 (b t) seconds

    def to(self, device: torch.device, dtype: torch.dtype) -> Visual:
        """Features on `device` in `dtype`; times stay float64."""
        move = {"device": device, "dtype": dtype}
        return Visual(self.vision.to(**move), self.tokens.to(**move), self.frames.to(device), self.times.to(device))

    def rows(self) -> list[Visual]:
        """Each clip as a batch of its own, without padding."""
        counts = self.frames.tolist()
        parts = (self.vision, self.tokens, self.frames, self.times)
        alone = zip(*(part.split(1) for part in parts), strict=True)
        return [
            Visual(vision[:, :n], tokens[:, :n], frames, times[:, :n])
            for n, (vision, tokens, frames, times) in zip(counts, alone, strict=True)
        ]

    @staticmethod
    def stack(clips: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Visual:
        """Collate (vision, tokens, times) of single clips."""
        vision, tokens, times = (pad_sequence(list(parts), batch_first=True) for parts in zip(*clips, strict=True))
        return Visual(vision, tokens, torch.tensor([len(clip[2]) for clip in clips]), times)


class Base(ABC):
    """A frozen video LLM. From here on its parameters ask for no gradient and it is in eval mode."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        frames: int = 32,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        template: str = CHATML,
        repo: str = "",
        revision: str = "",
    ) -> None:
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.frames, self.mean, self.std = frames, tuple(mean), tuple(std)
        self.repo, self.revision = repo, revision
        self.prompter = Prompter(tokenizer, template)
        self.encode_text, self.prompt, self.end = self.prompter.encode_text, self.prompter.prompt, self.prompter.end
        self._fingerprint: str | None = None

    # What a family says of itself

    @property
    @abstractmethod
    def language_model(self) -> nn.Module:
        """The decoder that LoRA may enter."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Channels of a visual token in the language model."""

    @property
    @abstractmethod
    def vision_dim(self) -> int:
        """Channels before the projector."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a key frame's visual tokens."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the vision tower reads."""

    @property
    @abstractmethod
    def placeholder(self) -> int:
        """Token id that marks a visual row in the prompt."""

    @property
    @abstractmethod
    def newline(self) -> Tensor:
        """The learned newline row (d,)."""

    @abstractmethod
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (t 3 y x) -> pooled features before (t s q) and after (t s d) the projector, in one vision pass."""

    @abstractmethod
    def outputs(self, rows: Tensor) -> dict[str, Any]:
        """Packed rows (b v d) as the `mm_encoder_outputs` of the base's own forward() and generate()."""

    # What every family shares

    @property
    def model_type(self) -> str:
        return self.model.config.model_type

    @property
    def template(self) -> str:
        return self.prompter.template

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        """Where the language model reads its tokens."""
        return self._embedding.device

    @property
    def _embedding(self) -> Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)  # every language model embeds its tokens
        return weight

    @property
    def dtype(self) -> torch.dtype:
        return self.newline.dtype

    def pixels(self, clip: Clip) -> Tensor:
        """A clip's key frames as the vision tower wants them, float32 (t 3 y x)."""
        if clip.frames is None or not len(clip.frames):
            raise MediaError(
                "the clip has no pictures, but this base sees by key frames; give a clip with a video track"
            )
        return preprocess(clip.frames, self.size, self.mean, self.std)

    @torch.no_grad()
    def encode(
        self, pixels: Sequence[Tensor], times: Sequence[Tensor] | None = None, chunk: int | None = None
    ) -> Visual:
        """Key frames of b clips, each (t 3 y x), in one vision pass however ragged; `chunk` bounds its frames."""
        counts = [len(clip) for clip in pixels]
        frames = torch.cat(list(pixels)).to(self.device, self.dtype)
        seen = [self.look(part) for part in frames.split(chunk or len(frames))]
        vision, tokens = (torch.cat(parts).split(counts) for parts in zip(*seen, strict=True))
        if times is None:
            times = [torch.arange(count, dtype=torch.float64) for count in counts]
        clocks = [clock.to(device=self.device, dtype=torch.float64) for clock in times]
        return Visual.stack(list(zip(vision, tokens, clocks, strict=True)))

    def rows_of(self, frames: int, newline: Newline) -> int:
        """How many visual rows, newlines included, `frames` key frames take in the prompt."""
        return frames * self.tokens_per_frame + {"end": 1, "grid": frames * self.grid[0], "none": 0}[newline]

    def pack(self, frames: Tensor, newline: Newline, beside: Sequence[Sequence[Tensor]] = ()) -> Tensor:
        """Visual tokens (t s d) of one clip as rows (v d). end: one newline behind the last frame; grid: one behind
        each grid row of each frame, as the authors of PAVE train. `beside`: further tokens, in groups (n d) that stand
        before their key frame, or in one group before all."""
        end = self.newline.to(frames)
        if newline == "grid":
            grid = rearrange(frames, "t (y x) d -> t y x d", y=self.grid[0])
            ends = repeat(end, "d -> t y 1 d", t=len(frames), y=self.grid[0])
            frames = rearrange(torch.cat([grid, ends], 2), "t y x d -> t (y x) d")
        rows = list(frames)
        for groups in beside:
            for i, group in zip(range(len(rows)), groups, strict=False):  # padded frames have groups too, all empty
                rows[i] = torch.cat([group.to(rows[i]), rows[i]])
        return torch.cat([*rows, end[None]] if newline == "end" else rows)

    @property
    def stops(self) -> list[int]:
        """Ids that end an answer: what the checkpoint says, and the end of a turn."""
        told: Any = self.model.generation_config and self.model.generation_config.eos_token_id
        known = {self.end, self._eos, *(told if isinstance(told, list) else [told])}
        return sorted(token for token in known if token is not None)

    @property
    def _eos(self) -> int | None:
        token: Any = self.tokenizer.eos_token_id
        return token

    @property
    def pad(self) -> int:
        """The id of padding, which no mask ever shows to the model."""
        token: Any = self.tokenizer.pad_token_id
        return self.stops[0] if token is None else token

    def fingerprint(self) -> str:
        """sha256 of the language model's weights as bfloat16, vocabulary rows cut to the tokenizer; computed once.

        Equal for sharded and cast copies of one checkpoint; hashing 7B parameters takes seconds, so it waits until a
        patch is applied or saved."""
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._weights()):
            value = tensor.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
            digest.update(json.dumps([name, list(value.shape)]).encode())
            digest.update(value.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        rows = len(self.tokenizer)
        embedding, head = self._embedding, getattr(self.model.get_output_embeddings(), "weight", self._embedding)
        for name, tensor in self.language_model.named_parameters():
            yield name, tensor[:rows] if tensor is embedding else tensor
        if head is not embedding:
            yield "lm_head.weight", head[:rows]

    def facts(self) -> BaseFacts:
        """What a patch file records of its base."""
        return BaseFacts(
            model_type=self.model_type,
            repo=self.repo,
            revision=self.revision,
            dim=self.dim,
            vision_dim=self.vision_dim,
            tokens_per_frame=self.tokens_per_frame,
            frames=self.frames,
            fingerprint=self.fingerprint(),
        )


def families() -> list[str]:
    """The `model_type`s that have a file in pave/bases/."""
    return sorted(file.stem for file in (Path(__file__).parent / "bases").glob("[!_]*.py"))


def load_base(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> Base:
    """Open a base: "playroom" (embedded, offline), a local folder, or a Hub id."""
    if quantize is not None:
        raise BaseModelError(f"quantize={quantize!r}: quantised bases arrive in a later version; leave quantize=None")
    kind, where, place = _dtype(dtype), _device(device), _place(source)
    config, family = _family(source, place)
    frames = _frames(source, place, frames)
    half = kind == torch.float16  # holds less than the checkpoint, so that its fingerprint would be another one
    with _readable(source):
        model, loaded = family.MODEL.from_pretrained(place, dtype="auto" if half else kind, output_loading_info=True)
        tokenizer, pixels = _tokenizer(place), _pixels(place)
    lost = sorted(loaded["missing_keys"])
    if lost:
        raise BaseModelError(f"{source}: {len(lost)} of its weights are missing ({lost[0]} …); fetch it again")
    base = family.build(
        model.to(where),
        tokenizer,
        frames=frames,
        mean=pixels.get("image_mean", (0.5, 0.5, 0.5)),
        std=pixels.get("image_std", (0.5, 0.5, 0.5)),
        repo=_repo(source),
        revision=getattr(config, "_commit_hash", None) or "",
    )
    if half:
        base.fingerprint()
        model.to(torch.float16)
    return base


def outline(source: str | Path, *, dtype: str | torch.dtype = "auto", frames: int | None = None) -> Base:
    """A base as its config alone describes it, for sizes and shapes: it lies on the meta device, without weights, a
    fingerprint or words."""
    kind, place = _dtype(dtype), _place(source)
    config, family = _family(source, place)
    if kind == "auto":
        kind = config.dtype or config.get_text_config().dtype or torch.float32
    with _readable(source), torch.device("meta"):
        model = family.MODEL(config).to(kind)
    marks = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}  # of CHATML
    wordless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **marks)
    base = family.build(model, wordless, frames=_frames(source, place, frames), repo=_repo(source))
    base._fingerprint = ""
    return base


def _family(source: str | Path, place: str) -> tuple[Any, Any]:
    """The config of a base, and the file of its family."""
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise BaseModelError(f"{source}: cannot be opened ({cause}); give 'playroom', a folder or a Hub id") from None
    if config.model_type not in families():
        known = nearest(config.model_type, families())
        raise BaseModelError(f"{source}: no file in pave/bases for model_type {config.model_type!r}; {known}")
    return config, import_module(f"pave.bases.{config.model_type}")


def _frames(source: str | Path, place: str, frames: int | None) -> int:
    """How many key frames: as asked for, or what the base was trained with."""
    if frames is not None and frames < 1:
        raise BaseModelError(f"frames={frames}: a base sees at least one key frame")
    with _readable(source):
        known = _json(place, "pave.json").get("frames", 32)
    if not isinstance(known, int) or known < 1:
        raise BaseModelError(f"{source}: its pave.json says frames={known!r}; a base sees at least one key frame")
    return frames or known


@contextmanager
def _readable(source: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        cause = str(error).strip().splitlines()[0]
        raise BaseModelError(f"{source}: cannot be read ({cause}); fetch it again") from None


def _place(source: str | Path) -> str:
    """Where a base lies: a folder, or the Hub id itself."""
    if source == "playroom":
        if not (EMBEDDED / "config.json").is_file():
            raise BaseModelError("playroom: the embedded base is missing from this installation; reinstall pave")
        return str(EMBEDDED)
    if Path(source).is_dir():
        return str(Path(source).resolve())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise BaseModelError(
            f"{source}: no such folder, and no Hub id (user/name); {nearest(str(source), ['playroom'])}"
        )
    return str(source)


def _repo(source: str | Path) -> str:
    """What a patch file may say of where its base came from; a folder of this machine is nobody's business."""
    return "" if source != "playroom" and Path(source).is_dir() else str(source)


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise BaseModelError(f"dtype={dtype!r}: give 'auto', 'float32', 'bfloat16' or 'float16'")
    return found


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device  # only a tensor tells whether this torch and machine have it
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        cause = f"torch {torch.__version__} cannot use it on this machine"
        raise BaseModelError(f"device={str(device)!r}: {cause}; give 'auto' or 'cpu'") from error


def _json(place: str, name: str) -> Mapping[str, Any]:
    found = cached_file(
        place, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False
    )
    return json.loads(Path(found).read_text("utf-8")) if found else {}


def _pixels(place: str) -> Mapping[str, Any]:
    """How the checkpoint normalises pixels: its own mean and standard deviation, wherever its version keeps them."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
        described = _json(place, name)
        described = described.get("video_processor", described)
        if "image_mean" in described:
            return described
    return {}


def _tokenizer(place: str) -> PreTrainedTokenizerFast:
    file = Path(place, "tokenizer.json")
    if file.is_file() and not Path(place, "tokenizer_config.json").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    return AutoTokenizer.from_pretrained(place)
