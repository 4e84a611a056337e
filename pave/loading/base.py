"""Opening a base: from the embedded one, a folder or the Hub, whole or as an outline without weights.

In: a name, and where and in which dtype it shall lie. Out: a `Host` whose weights are all there, or an error that says
what is wrong with the checkpoint. Knows nothing of patches.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from pave.base import Host
from pave.errors import BaseModelError, PaveError, nearest
from pave.loading import lmms_lab, low_memory
from pave.prompt import QUESTION, VIDEO

Device = str | int | torch.device

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that a base can compute in
EMBEDDED = Path(__file__).parents[1] / "playroom" / "base"


def families() -> list[str]:
    """The `model_type`s that have a file in pave/bases/."""
    return sorted(file.stem for file in (Path(__file__).parents[1] / "bases").glob("[!_]*.py"))


def load_base(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: Device | Mapping[str, Device] = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> Host:
    """Open a base: "playroom" (embedded, offline), a local folder, or a Hub id.

    device: of all, or of each part by its path, as Hugging Face's device maps say it: "disk" is a place, too.
    quantize: "int8" or "nf4", for the linear layers of the language model."""
    kind, place = _dtype(dtype), _place(source)
    where = {path: _part(part) for path, part in device.items()} if isinstance(device, Mapping) else _device(device)
    quantise = None if quantize is None else low_memory.quantiser(quantize)
    described, family, authors = _described(source, place)
    frames = _frames(source, place, frames)
    half = kind == torch.float16  # holds less than the checkpoint, so that its fingerprint would be another one
    exact = "auto" if half or authors else kind
    with _readable(source):
        config = lmms_lab.config_of(described, source) if authors else None
        tokenizer, pixels = _tokenizer(source, place, config), _pixels(source, place)
        told = lmms_lab.options(config, tokenizer, source) if config else {}
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            place, dtype=exact, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **told
        )
        model, loaded = opened
    _refuse_misfits(source, loaded, lmms_lab.UNUSED if authors else re.compile(""))
    if authors:
        model._weight_conversions = None  # it would be saved under their names again
    base = family(
        model,
        tokenizer,
        frames=frames,
        mean=pixels.get("image_mean", ()),
        std=pixels.get("image_std", ()),
        repo=_repo(source),
        revision=_revision(place),
    )
    base.visual_ids([0.0], "none")  # its tokenizer knows what stands around key frames
    if half or quantise or isinstance(where, dict):
        base.fingerprint()
    if kind != exact:
        for parameter in model.parameters():  # not buffers: the positions of the language model need float32
            parameter.data = parameter.data.to(kind)
    if quantise:
        quantise(base.language_model)
    if isinstance(where, dict):
        low_memory.spread(model, where, base.read_apart)
    else:
        model.to(where)
    return base


def _refuse_misfits(source: str | Path, loaded: Mapping[str, Any], unused: re.Pattern[str]) -> None:
    """Weights that the model has no value for, no place for, or a place of another shape."""
    lost, other = sorted(loaded["missing_keys"]), sorted(loaded["mismatched_keys"])
    extra = sorted(name for name in loaded["unexpected_keys"] if not unused.search(name))
    for what, names in (("missing", lost), ("unknown", extra)):
        if names:
            raise BaseModelError(f"{source}: {len(names)} of its weights are {what} ({names[0]} …); fetch it again")
    for name, there, here in other:
        cause = f"{name} is {tuple(there)}, its config.json asks for {tuple(here)}"
        raise BaseModelError(f"{source}: {len(other)} of its weights do not fit ({cause}); fetch it again")


def outline(source: str | Path, *, dtype: str | torch.dtype = "auto", frames: int | None = None) -> Host:
    """A base as its config alone describes it, for sizes and shapes: it lies on the meta device, without weights or a
    fingerprint; and without words, unless its tokenizer is on this machine already."""
    kind, place = _dtype(dtype), _place(source)
    described, family, authors = _described(source, place)
    with _readable(source):
        config = lmms_lab.config_of(described, source) if authors else AutoConfig.from_pretrained(place)
        if kind == "auto":
            kind = config.dtype or config.get_text_config().dtype or torch.float32
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config).to(kind)
        words = _tokenizer_here(place)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words or Tokenizer(models.BPE()), eos_token="<|im_end|>")
    template = f"{VIDEO}{QUESTION}<|im_end|>"
    base = family(model, tokenizer, frames=_frames(source, place, frames), template=template, repo=_repo(source))
    base._fingerprint = ""
    return base


def _described(source: str | Path, place: str) -> tuple[dict[str, Any], type[Host], bool]:
    """The config.json of a base, its family, and whether it is in the dialect of the base's authors."""
    try:
        described, _ = PreTrainedConfig.get_config_dict(place)
        if not isinstance(described, dict):
            raise ValueError("its config.json is no JSON object")
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        said = f"{source}: cannot be opened ({cause}); fetch it again"
        if not os.path.isdir(place):
            remedy = "check the name, and the connection or HF_HUB_OFFLINE; or give a folder"
            said = f"{source}: no such folder here, and not to be had from the Hub ({cause}); {remedy}"
        raise BaseModelError(said) from None
    named = described.get("architectures")
    authors = isinstance(named, list) and lmms_lab.ARCHITECTURE in named
    name = lmms_lab.FAMILY if authors else described.get("model_type")
    if not name:
        cause = "it has no config.json that names a model_type"
        raise BaseModelError(f"{source}: {cause}; give the folder of a checkpoint, 'playroom' or a Hub id")
    if name not in families():
        known = nearest(str(name), families())
        one = f"a new family is a file pave/bases/{name}.py, whose BASE is a subclass of pave.base.Host"
        raise BaseModelError(f"{source}: no file in pave/bases for model_type {name!r}; {known}; {one}")
    return described, import_module(f"pave.bases.{name}").BASE, authors


def _frames(source: str | Path, place: str, frames: int | None) -> int | None:
    """How many key frames: as asked for, or what the base was trained with; None when nobody says."""
    if frames is not None and not _is_count(frames):
        raise BaseModelError(f"frames={frames!r}: give the number of key frames, 1 or more")
    with _readable(source):
        known = _json(place, "pave.json").get("frames")
    if known is not None and not _is_count(known):
        raise BaseModelError(
            f"{source}: its pave.json says frames={known!r}; write the number of key frames, 1 or more"
        )
    return frames or known


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


@contextmanager
def _readable(source: str | Path) -> Iterator[None]:
    try:
        yield
    except PaveError:
        raise
    except Exception as error:  # what lies in a damaged file decides where it fails, and how
        lines = str(error).strip().splitlines() or [type(error).__name__]
        cause = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
        raise BaseModelError(f"{source}: cannot be read ({cause}); fetch it again, as safetensors") from error


def _place(source: str | Path) -> str:
    """Where a base lies: a folder, or the Hub id itself."""
    if source == "playroom":
        if not (EMBEDDED / "config.json").is_file():
            raise BaseModelError("playroom: the embedded base is missing from this installation; reinstall pave")
        return str(EMBEDDED)
    if source and os.path.isdir(source):  # unlike Path.is_dir, not startled by a name too long for a file system
        return str(Path(source).resolve())
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        raise BaseModelError(
            f"{source or repr('')}: no such folder, and no Hub id (user/name); {nearest(str(source), ['playroom'])}"
        )
    return str(source)


def _repo(source: str | Path) -> str:
    """What a patch file may say of where its base came from; a folder of this machine is nobody's business."""
    return "" if source != "playroom" and Path(source).is_dir() else str(source)


def _revision(place: str) -> str:
    """The commit of a base of the Hub."""
    return "" if Path(place).is_dir() else extract_commit_hash(cached_file(place, "config.json"), None) or ""


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    known = {str(each).removeprefix("torch."): each for each in DTYPES}
    if dtype != "auto" and dtype not in DTYPES and dtype not in known:
        raise BaseModelError(f"dtype={dtype!r}: give 'auto', {', '.join(map(repr, known))}")
    return known.get(str(dtype), dtype)


def _part(place: Device) -> str:
    """Where a part of the base goes, as accelerate says it."""
    return "disk" if place == "disk" else str(_device(place))


def _device(device: Device) -> torch.device:
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
    said = json.loads(Path(found).read_text("utf-8")) if found else {}
    if not isinstance(said, dict):
        raise ValueError(f"its {name} is no JSON object")
    return said


def _pixels(source: str | Path, place: str) -> Mapping[str, Any]:
    """How the checkpoint normalises pixels: its own mean and standard deviation, wherever its version keeps them."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
        described = _json(place, name)
        described = described.get("video_processor", described)
        if "image_mean" in described:
            mean, std = (_three(source, name, described, word) for word in ("image_mean", "image_std"))
            if min(std, default=1) <= 0:
                raise BaseModelError(f"{source}: its {name} says image_std={std}, which divides; write numbers above 0")
            return {"image_mean": mean, "image_std": std}
    return {}


def _three(source: str | Path, file: str, described: Mapping[str, Any], word: str) -> list[float]:
    """A number for each colour; none where the file says nothing."""
    told = described.get(word) or []
    finite = isinstance(told, list) and all(type(each) in (int, float) and math.isfinite(each) for each in told)
    if not finite or len(told) not in (0, 3):
        raise BaseModelError(f"{source}: its {file} says {word}={told!r}; write three finite numbers")
    return told


def _tokenizer(source: str | Path, place: str, config: PreTrainedConfig | None) -> PreTrainedTokenizerFast:
    file = Path(place, "tokenizer.json")
    if file.is_file() and not Path(place, "tokenizer_config.json").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    try:
        return AutoTokenizer.from_pretrained(place, config=config)
    except ValueError as error:
        if "instantiate the backend tokenizer" not in str(error):
            raise
        cause = "it has no tokenizer.json, nor other files that a tokenizer can be made of"
        raise BaseModelError(f"{source}: {cause}; put those of this very base beside its config.json") from None


def _tokenizer_here(place: str) -> Tokenizer | None:
    """The tokenizer of a folder, or of the Hub's cache; nothing is fetched for it."""
    absent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(place, "tokenizer.json", local_files_only=True, **absent)
    return None if file is None else Tokenizer.from_file(file)
