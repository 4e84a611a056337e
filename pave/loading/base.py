"""Loading a base: the embedded one, a folder or a Hub checkpoint; with weights, or as an outline without.

In: a name, a dtype and a device or device map. Out: a `Host` with all weights, or an error that says what is wrong with
the checkpoint. Knows nothing of patches.
"""

from __future__ import annotations

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
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.hub import cached_file, extract_commit_hash

from pave.ambient import neutral
from pave.base import Host
from pave.config import MOST_FRAMES
from pave.errors import BaseModelError, PaveError, nearest, raised_as
from pave.files.atomic import refuse_odd_inside
from pave.files.quiet import quiet_loading
from pave.loading import folder, lmms_lab, low_memory
from pave.prompt import QUESTION, VIDEO
from pave.text.shown import quoted, shortened

Device = str | int | torch.device
UP_TO = f", up to {MOST_FRAMES:,}"

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that a base can compute in
SAFE = {"trust_remote_code": False}  # else transformers asks in the terminal whether to run the code of a base
EMBEDDED = Path(__file__).parents[1] / "playroom" / "base"


def families() -> list[str]:
    """The `model_type`s that have a file in pave/bases/."""
    return sorted(file.stem for file in (Path(__file__).parents[1] / "bases").glob("[!_]*.py"))


@neutral()
def load_base(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: Device | Mapping[str, Device] = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> Host:
    """Load a base: "playroom" (embedded, offline), a local folder, or a Hub id.

    device: for the whole base, or by module path as in a Hugging Face device map, which may contain "disk".
    quantize: "int8" or "nf4", for the linear layers of the language model."""
    kind, place = _dtype(dtype), _place(source)
    where = {path: _part(part) for path, part in device.items()} if isinstance(device, Mapping) else _device(device)
    quantise = None if quantize is None else low_memory.quantiser(quantize)
    described, family, original = _described(source, place)
    frames = _frames(source, place, frames)
    half = kind == torch.float16  # rounds bfloat16 weights, which would change the fingerprint
    exact = "auto" if half or original else kind
    with _readable(source, described, "config.json"):
        config = lmms_lab.config_of(described, source) if original else _config(place)
        _refuse_oversized(source, place, config)
        _refuse_odd_layers(source, config)
        _refuse_odd_rope(source, config)
    with _readable(source, described, "tokenizer"):
        tokenizer = _tokenizer(source, place, config)
    with _readable(source, described):
        pixels = _pixels(source, place)
        options: dict[str, Any] = lmms_lab.options(config, tokenizer, source) if original else {}  # pyright: ignore[reportArgumentType]
        options |= {"config": config, "generation_config": _generation(source, place, config, original)}
        outputs: Any = AutoModelForImageTextToText.from_pretrained(
            place,
            dtype=exact,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **SAFE,
            **options,
        )
        model, loaded = outputs
    _refuse_misfits(source, loaded, lmms_lab.UNUSED if original else re.compile(""))
    _refuse_odd_sections(source, model)
    if original:
        model._weight_conversions = None  # else save_pretrained would restore the original names
    with _readable(source, described):
        base = family(
            model,
            tokenizer,
            frames=frames,
            mean=pixels.get("image_mean", ()),
            std=pixels.get("image_std", ()),
            repo=_repo(source),
            revision=_revision(place),
        )
        _refuse_contradictions(base)
    files = _weight_files(place)
    base.weights.read_from(files)
    if half or quantise or isinstance(where, dict):
        base.fingerprint()
    if kind != exact:
        for parameter in model.parameters():  # not buffers: rotary frequencies need float32
            parameter.data = parameter.data.to(kind)
    if quantise:
        quantise(base.language_model)
    if isinstance(where, dict):
        low_memory.dispatch(model, where, base.read_apart)
    else:
        model.to(where)
        base.weights.read_from(files)
    return base


def _weight_files(place: str) -> list[Path]:
    """The files that transformers reads the weights of a base from."""
    folder = place if os.path.isdir(place) else os.path.dirname(cached_file(place, "config.json") or "")
    return sorted(Path(folder).glob("*.safetensors")) if folder else []


def _refuse_contradictions(base: Host) -> None:
    """ValueError for a base whose parts do not fit each other."""
    base.visual_ids([0.0], "none")  # fail now if the tokenizer lacks a special token around key frames
    before, after = base.prompt("")  # or finds one in the plain text of the prompt
    embedding: Any = base.model.get_input_embeddings()
    if not 0 <= base.placeholder < embedding.num_embeddings:
        raise ValueError(f"token {base.placeholder}, which marks pictures, is not in its vocabulary")
    if base.placeholder in (*before, *after) or base.placeholder not in base.prompter.special.values():
        raise ValueError(f"token {base.placeholder}, which marks pictures, is one of its prompts or an ordinary word")
    if base.context is not None and not _is_count(base.context):
        raise ValueError(f"its language model has max_position_embeddings={quoted(base.context)}")
    if min(base.size) < 1:
        raise ValueError(f"its vision tower reads pictures of {base.size[1]}x{base.size[0]} pixels")


def _refuse_misfits(source: str | Path, loaded: Mapping[str, Any], unused: re.Pattern[str]) -> None:
    """Raise if weights are missing, unexpected or of another shape."""
    missing, other = sorted(loaded["missing_keys"]), sorted(loaded["mismatched_keys"])
    extra = sorted(name for name in loaded["unexpected_keys"] if not unused.search(name))
    for what, names in (("missing", missing), ("unexpected", extra)):
        if names:
            raise BaseModelError(f"{source}: {len(names)} of its weights are {what} ({names[0]} …); download it again")
    for name, stored, expected in other:
        cause = f"{name} is {tuple(stored)}, its config.json requires {tuple(expected)}"
        raise BaseModelError(f"{source}: {len(other)} of its weights do not fit ({cause}); download it again")


@neutral()
def outline(source: str | Path, *, dtype: str | torch.dtype = "auto", frames: int | None = None) -> Host:
    """A base from its config alone, for sizes and shapes: on the meta device, without weights or a fingerprint; its
    vocabulary is empty unless the tokenizer is available locally."""
    kind, place = _dtype(dtype), _place(source)
    described, family, original = _described(source, place)
    with _readable(source, described, "config.json"):
        config = lmms_lab.config_of(described, source) if original else _config(place)
        if kind == "auto":
            kind = config.dtype or config.get_text_config().dtype or torch.float32
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config).to(kind)
    with _readable(source, described, "tokenizer"):
        known = _local_tokenizer(place) or Tokenizer(models.BPE())
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, eos_token="<|im_end|>")
    template = f"{VIDEO}{QUESTION}<|im_end|>"
    base = family(model, tokenizer, frames=_frames(source, place, frames), template=template, repo=_repo(source))
    base.weights.known = ""
    return base


def _described(source: str | Path, place: str) -> tuple[dict[str, Any], type[Host], bool]:
    """The config.json of a base, its family, and whether it has the original layout of lmms-lab."""
    if os.path.isdir(place):
        folder.judge(source, place)
    try:
        described, _ = PreTrainedConfig.get_config_dict(place)
        if not isinstance(described, dict):
            raise ValueError("its config.json is not a JSON object")
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        message = f"{source}: cannot be opened ({cause}); download it again"
        if not os.path.isdir(place):
            remedy = "check the name, the connection and HF_HUB_OFFLINE; or pass a folder"
            message = f"{source}: not a local folder, and not available on the Hub ({cause}); {remedy}"
        raise BaseModelError(message) from None
    folder.refuse_odd_config(source, described)
    _refuse_unknown_quantisation(source, described)
    named = described.get("architectures")
    original = isinstance(named, list) and lmms_lab.ARCHITECTURE in named
    name = lmms_lab.FAMILY if original else described.get("model_type")
    if not name:
        cause = "it has no config.json with a model_type"
        raise BaseModelError(f"{source}: {cause}; pass the folder of a checkpoint, 'playroom' or a Hub id")
    if name not in families():
        known = nearest(str(name), families())
        add = f"or add pave/bases/{name}.py, whose BASE is a subclass of pave.base.Host"
        raise BaseModelError(f"{source}: unsupported model_type {name!r}; {known}; {add}")
    return described, import_module(f"pave.bases.{name}").BASE, original


def _refuse_unknown_quantisation(source: str | Path, described: Mapping[str, Any]) -> None:
    """Raise for a quantisation that transformers does not know: it would ignore it, and read weights as they lie."""
    facts = described.get("quantization_config")
    method = facts.get("quant_method") if isinstance(facts, Mapping) else facts
    known = {str(getattr(name, "value", name)) for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    legacy = isinstance(facts, Mapping) and (facts.get("load_in_8bit") or facts.get("load_in_4bit"))
    if facts and not legacy and not (isinstance(method, str) and method in known):
        cause = f"its config.json has quantization_config with quant_method={quoted(method)}, which is unknown"
        raise BaseModelError(f"{source}: {cause}; load the base that is not quantised, with quantize='int8' or 'nf4'")


def _frames(source: str | Path, place: str, frames: int | None) -> int | None:
    """Number of key frames: as requested, or as the base was trained; None if unknown."""
    if frames is not None and not _is_count(frames, MOST_FRAMES):
        raise BaseModelError(f"frames={frames!r}: must be a whole number, 1 or more{UP_TO}")
    with _readable(source):
        known = _json(source, place, "pave.json").get("frames")
    if known is not None and not _is_count(known, MOST_FRAMES):
        cause = f"its pave.json has frames={known!r}"
        raise BaseModelError(f"{source}: {cause}; it must be a whole number, 1 or more{UP_TO}")
    return frames or known


def _is_count(number: Any, most: float = math.inf) -> bool:
    return type(number) is int and 1 <= number <= most  # bool is another type


def _config(place: str) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(place, **SAFE)


def _refuse_oversized(source: str | Path, place: str, config: PreTrainedConfig) -> None:
    """Raise for a config.json of a far larger model than the weights beside it, which transformers would fill up with
    random numbers before it reports them as missing."""
    if not os.path.isdir(place):
        return
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, **SAFE)
    numbers = sum(weight.numel() for weight in [*model.parameters(), *model.buffers()])
    stored = folder.weight_bytes(place)
    if stored and numbers > 4 * stored + (1 << 22):  # the smallest weights of real checkpoints have two bits or more
        cause = f"its config.json describes {numbers:,} numbers, its safetensors files have {stored:,} bytes"
        raise BaseModelError(f"{source}: {cause}; download it again")


def _refuse_odd_layers(source: str | Path, config: PreTrainedConfig) -> None:
    """Raise unless the layers of the vision tower that features are read from exist."""
    depth = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    layers = getattr(config, "vision_feature_layer", None)
    for layer in layers if isinstance(layers, list) else [layers]:
        if depth is not None and layer is not None and not 1 <= abs(layer) <= depth:
            cause = f"its config.json has vision_feature_layer={layers!r}, but its vision tower {depth} layers"
            raise BaseModelError(f"{source}: {cause}; download it again")


def _refuse_odd_rope(source: str | Path, config: PreTrainedConfig) -> None:
    """Raise if rotary sections of pictures take more than a head has."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    sections = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    if sections is None:
        return
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    counts = isinstance(sections, list) and all(type(each) is int and each >= 0 for each in sections)
    if not counts or len(sections) != 3 or 2 * sum(sections) > head:
        cause = f"its config.json has mrope_section={quoted(sections)}, but heads of {head}"
        raise BaseModelError(f"{source}: {cause}; download it again")


def _refuse_odd_sections(source: str | Path, model: torch.nn.Module) -> None:
    """Raise unless the rotary sections of a model share out its frequencies, whoever has set them."""
    for module in model.modules():
        sections, frequencies = getattr(module, "mrope_section", None), getattr(module, "inv_freq", None)
        if isinstance(sections, list | tuple) and frequencies is not None and sum(sections) != len(frequencies):
            cause = f"its rotary sections {quoted(list(sections))} do not add up to {len(frequencies)}, half of a head"
            raise BaseModelError(f"{source}: {cause}; correct head sizes or mrope_section in its config.json")


def _generation(source: str | Path, place: str, config: PreTrainedConfig, original: bool) -> GenerationConfig:
    """The ids that end, pad and begin a text, and the base's repetition penalty, which belongs to its greedy answers.
    Whatever else a generation_config.json sets, such as sampling or beams, would change them."""
    text, own = config.get_text_config(), {} if original else _json(source, place, folder.GENERATION)

    def known(token: Any) -> bool:
        return type(token) is int and 0 <= token < text.vocab_size

    ids = {key: own.get(key, getattr(text, key, None)) for key in ("eos_token_id", "pad_token_id", "bos_token_id")}
    ends = ids.pop("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if odd := [token for token in ends if type(token) is not int]:
        cause = f"eos_token_id has {quoted(odd[0])}, which is no id of a token"
        raise BaseModelError(f"{source}: {cause}; correct its {folder.GENERATION}")
    # An id beyond the vocabulary, as the default of a family has, ends nothing: the tokenizer's own end still does.
    ends = [token for token in ends if known(token)]
    # Padding is masked, and prompts are complete: ids of these that do not exist are common, and do no harm.
    penalty = own.get("repetition_penalty")
    given = {key: token for key, token in ids.items() if known(token)}
    if isinstance(penalty, int | float) and not isinstance(penalty, bool) and 0 < penalty < math.inf:
        given["repetition_penalty"] = float(penalty)
    return GenerationConfig(eos_token_id=ends or None, **given)


@contextmanager
def _readable(source: str | Path, described: Mapping[str, Any] | None = None, part: str = "") -> Iterator[None]:
    """Quietly, and any failure of the block as a BaseModelError; `described`: the config.json, if it has been read;
    `part`: what the block reads."""
    try:
        with quiet_loading(downloads=not os.path.isdir(source) and source != "playroom"):
            yield
    except BaseModelError as error:
        named = str(error).startswith(f"{source}: ")
        raise error if named else BaseModelError(f"{source}: {error}") from None
    except PaveError:
        raise
    except BaseException as error:  # a damaged file can fail anywhere, with any exception; Rust's are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause, remedy = _cause_of(error), f"download it again{'' if part else ', as safetensors'}"
        if "trust_remote_code" in str(error):
            cause, remedy = "it needs code of its own", folder.NO_CODE
        elif (described or {}).get("quantization_config") is not None:
            cause = f"its weights are quantised, and cannot be opened here: {cause}"
            remedy = "load the base that is not quantised, with quantize='int8' or 'nf4' to save memory"
        raise BaseModelError(f"{source}: {f'its {part} ' if part else ''}cannot be read ({cause}); {remedy}") from error


def _cause_of(error: BaseException) -> str:
    """Why a library has failed, in one short line."""
    if isinstance(error, KeyError):
        return f"{quoted(error.args[0] if error.args else '')} is not known to transformers"
    if isinstance(error, ZeroDivisionError):
        return "one of its numbers is 0, and must not be"
    if isinstance(error, RecursionError) or "recursion limit" in str(error):
        return "it is nested too deep"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shortened(" ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1]), 300)


def _place(source: str | Path) -> str:
    """The folder of a base, or the Hub id itself."""
    if not isinstance(source, str | os.PathLike):
        kind, known = type(source).__name__, getattr(source, "name_or_path", "")
        remedy = f"pass {known!r}" if known else "pass 'playroom', a folder or a Hub id"
        raise BaseModelError(f"got a {kind}, not the name of a base; {remedy}, and device= to place its parts")
    if source == "playroom":
        if not (EMBEDDED / "config.json").is_file():
            raise BaseModelError("playroom: the embedded base is missing from this installation; reinstall pave")
        return str(EMBEDDED)
    if source and os.path.isdir(source):  # unlike Path.is_dir, False for names too long for a file system
        place = str(Path(source).resolve())
        with raised_as(BaseModelError, source):
            refuse_odd_inside(place)
        return place
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        cause = "not a local folder and not a Hub id (user/name)"
        raise BaseModelError(f"{source or repr('')}: {cause}; {nearest(str(source), ['playroom'])}")
    return str(source)


def _repo(source: str | Path) -> str:
    """The origin of a base for patch files; empty for a folder, whose path is private."""
    return "" if source != "playroom" and os.path.isdir(source) else str(source)


def _revision(place: str) -> str:
    """The commit of a base from the Hub."""
    return "" if os.path.isdir(place) else extract_commit_hash(cached_file(place, "config.json"), None) or ""


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    known = {str(each).removeprefix("torch."): each for each in DTYPES}
    if dtype != "auto" and dtype not in DTYPES and dtype not in known:
        raise BaseModelError(f"dtype={dtype!r}: use 'auto', {', '.join(map(repr, known))}")
    return known.get(str(dtype), dtype)


def _part(place: Device) -> str:
    """The device of a part of the base, as accelerate expects it."""
    return "disk" if place == "disk" else str(_device(place))


def _device(device: Device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device  # torch.device() alone accepts devices that do not exist
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        cause = f"torch {torch.__version__} cannot use it on this machine"
        raise BaseModelError(f"device={str(device)!r}: {cause}; use 'auto' or 'cpu'") from error


def _json(source: str | Path, place: str, name: str) -> Mapping[str, Any]:
    file = cached_file(place, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False)
    return folder.read(source, Path(file)) if file else {}


def _pixels(source: str | Path, place: str) -> Mapping[str, Any]:
    """Mean and standard deviation of pixels, from whichever file the checkpoint's version stores them in."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
        described = _json(source, place, name)
        described = described.get("video_processor", described)
        if "image_mean" in described:
            mean, std = (_three(source, name, described, key) for key in ("image_mean", "image_std"))
            if min(std, default=1) <= 0:
                raise BaseModelError(f"{source}: its {name} has image_std={std}, which must be positive; fix the file")
            return {"image_mean": mean, "image_std": std}
    return {}


def _three(source: str | Path, file: str, described: Mapping[str, Any], key: str) -> list[float]:
    """One number per colour channel; empty if the file has none."""
    values = described.get(key) or []
    finite = isinstance(values, list) and all(type(each) in (int, float) and math.isfinite(each) for each in values)
    if not finite or len(values) not in (0, 3):
        raise BaseModelError(f"{source}: its {file} has {key}={values!r}; it must be three finite numbers")
    return values


def _tokenizer(source: str | Path, place: str, config: PreTrainedConfig | None) -> PreTrainedTokenizerFast:
    file = Path(place, "tokenizer.json")
    if file.is_file() and not Path(place, "tokenizer_config.json").is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(file))
    try:
        return AutoTokenizer.from_pretrained(place, config=config, **SAFE)
    except ValueError as error:
        if "instantiate the backend tokenizer" not in str(error):
            raise
        cause = "it has no tokenizer.json, and no other files to build a tokenizer from"
        raise BaseModelError(f"{source}: {cause}; copy those of the same base beside its config.json") from None


def _local_tokenizer(place: str) -> Tokenizer | None:
    """The tokenizer of a folder or of the Hub's cache; nothing is downloaded."""
    absent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(place, "tokenizer.json", local_files_only=True, **absent)
    return None if file is None else Tokenizer.from_file(file)
