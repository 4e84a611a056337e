"""Official PAVE checkpoints, converted to patches.

In: a zip, or a folder, that holds at any depth one `non_lora_trainables.bin` (the fusion, pickled), and beside it the
LoRA in PEFT's format and `config.json`. Out: one patch with the official numerics. Widths and depth are read from the
shapes; what a checkpoint does not record is defined here, from the official repository (dragonlzm/PAVE, commit
ef6a93f), except the encoder of its features, which the caller names. Opens only the files it needs, and needs no base.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from unicodedata import normalize

from torch import Tensor

from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.encoder import EncoderSpec, OnBase, load_encoder, missing
from pave.errors import FileError, PatchDamaged, PatchError, PatchFormatError, PatchMismatch, PatchNotFound
from pave.files import json_text, pickled, tensorfile
from pave.files.atomic import opened
from pave.files.locks import scratch
from pave.files.validation import parse
from pave.patch.file import AGAIN, Patch, of_patch, parsed, refuse_taken
from pave.patch.filenames import OFFICIAL_BASE, PEFT_CONFIG, PEFT_WEIGHTS
from pave.patch.filenames import OFFICIAL_FUSION as FUSION
from pave.patch.peft import lora_config, name_of, named_pairs, plain_config, repo_of
from pave.prompt import CHATML

LICENCE = "unlicensed: the authors' repository names no licence"
CONFIG, PICKLED_LORA = "config.json", "adapter_model.bin"
FILES = {FUSION, PEFT_CONFIG, PEFT_WEIGHTS, PICKLED_LORA, CONFIG}
PREFIX = "base_model.model.model.temporal_aggregator."  # train_pave_w_feat.py saves the model inside PEFT's wrapper
LAYER = re.compile(r"model\.(layers\.[0-9]+\.[\w.]+)")
# What all official variants share and no file records: num_cross_attn_head and use_3d_rope (libs/utils/train_utils.py),
# values from k_linear (blocks.py), a final LayerNorm, and a fusion in float32 on a base in float16
# (libs/utils/utils.py).
NUMERICS = {"kind": "official", "heads": 4, "rope": "off", "values": "shared", "head": "norm", "precision": "float32"}
FRAMES, TOKENS = 32, 196  # frames_upbound; 27 × 27 patches, pooled to 14 × 14
# The only supported values of optional keys of config.json, which describe the layout.
BUILT_IN = {
    "model_type": "pave_qwen2",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_spatial_pool_mode": "bilinear",
    "feat_combine_method": "add",
}
# Options of the encoders that made the authors' features, where a recipe's default is another. Channel 0 is what
# torchaudio's fbank takes in tools/audio/extract_imagebind_audio_feature.py. How the authors chose the views of a scan
# is not published; LLaVA-3D's own rule would leave out half of a scan of 63 views.
FEATURES = {"imagebind-audio": {"channel": "first"}, "rgbd-geometry": {"sampling": "even"}}
NEWLINES = {"grid": "grid", "one_token": "end", "no_token": "none"}  # mm_newline_position -> `newline` of a patch
RELEASED = "pass an official zip, or the folder in it"
UNSAFE = re.compile(r"^/|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)")
LITTER = frozenset({"__MACOSX"})  # what macOS adds to a zip: a shadow of every file
DEPTH, ENTRIES = 16, 100_000  # of a folder that is searched
RATIO = 100  # maximum unpacked bytes per byte of the zip; weights are nearly incompressible


@of_patch()
def convert(source: str | Path, sense: str, encoder: str | EncoderSpec, *, name: str = "", **options: Any) -> Patch:
    """Convert an official checkpoint, as convert("pave_avsd.zip", "audio", "imagebind-audio").

    encoder: the encoder of its training features, by name or spec. If it is not installed, the patch reads features
    passed as SideTokens. name: of the patch. options: of an encoder passed by name, as preset="llava3d".
    """
    source = Path(source)
    refuse_taken([sense])
    with _unpacked(source) as folder:
        adapter = plain_config(_required(folder, PEFT_CONFIG))
        newline, blocks = _base(_required(folder, CONFIG))
        lora, pairs = _lora(folder, adapter, blocks)
        fusion = _fusion(folder / FUSION)
        shape, side, channels = _shape(folder / FUSION, fusion)
    base = {"model_type": OFFICIAL_BASE, "repo": repo_of(adapter), "frames": FRAMES, "tokens_per_frame": TOKENS}
    config = {
        "name": named(source, name),
        "description": "A checkpoint of PAVE's authors, converted.",
        "base": {**base, **channels, "fingerprint": ""},
        "newline": newline,
        "prompt": CHATML,
        "senses": {sense: _facts(source, sense, encoder, side, options)},
        "fusion": shape,
        "lora": lora,
        "licence": LICENCE,
    }
    tensors = {f"fusion.{sense}.{key}": value for key, value in fusion.items()}
    tensors |= {f"lora.{key}": value for key, value in pairs.items()}
    patch = Patch(parse(PatchConfig, config, source), tensors, source=str(source))
    patch.check()
    return patch


def named(source: Path, name: str = "") -> str:
    """The name of a converted patch: as given, or that of its source."""
    return name_of(name or source.resolve().name.removesuffix(".zip"))


def as_authors(encoder: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an encoder for a converted checkpoint: those of the authors' features, unless given."""
    return {**FEATURES.get(encoder, {}), **options}


def cached_name(name: str, file: str, sense: str, encoder: str | EncoderSpec) -> str:
    """File name of a converted checkpoint in the cache: a hash of everything that the conversion depends on."""
    facts = [encoder, ""] if isinstance(encoder, str) else [encoder.name, encoder.preprocessing]
    digest = hashlib.sha256(json.dumps([file, sense, *facts, NUMERICS, FRAMES, TOKENS]).encode()).hexdigest()
    return f"{name}-{digest[:16]}.safetensors"


def _facts(source: Path, sense: str, encoder: str | EncoderSpec, side: int, options: Any) -> SenseFacts:
    if isinstance(encoder, str) and missing(encoder):
        encoder = EncoderSpec(encoder, sense, dim=side, rate=0, options=options)  # patches do not record the rate
    elif isinstance(encoder, str):
        loaded = load_encoder(encoder, **as_authors(encoder, options))
        if isinstance(loaded, OnBase):
            cause = f"{encoder} uses the vision tower of the base, which no official checkpoint was trained on"
            raise PatchMismatch(source, cause, "pass other options, as --option preset=llava3d")
        encoder = loaded.spec
    if encoder.dim != side:
        cause = f"its fusion reads {side} channels, {encoder.name} outputs {encoder.dim}"
        raise PatchMismatch(source, cause, "name the encoder of its training features")
    return encoder.facts("index")


# ---------------------------------------------------------------- contents of the files


def _required(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise PatchNotFound(folder, f"has no {name}", RELEASED)
    return folder / name


def _base(path: Path) -> tuple[str, Any]:
    """Newline layout, and the number of blocks of the language model. (Not its vocabulary size: the official code
    truncates unused rows.)"""
    config = json_text.read_json(path)
    newline = config.get("mm_newline_position")
    if not isinstance(newline, str) or newline not in NEWLINES:
        raise PatchFormatError(path, f"mm_newline_position={newline!r}", f"supported: {', '.join(NEWLINES)}")
    for key, known in BUILT_IN.items():
        if (value := config.get(key)) not in (known, None):
            raise PatchFormatError(path, f"{key}={value!r}", f"supported: {known}, as in the official release")
    return NEWLINES[newline], config.get("num_hidden_layers")


def _lora(folder: Path, adapter: Mapping[str, Any], blocks: Any) -> tuple[LoraConfig, dict[str, Tensor]]:
    path = folder / PICKLED_LORA
    if path.is_file() and not (folder / PEFT_WEIGHTS).exists():
        tensors = pickled.read(path)
    else:
        path = _required(folder, PEFT_WEIGHTS)
        tensors, _ = tensorfile.read(path)

    def inside(name: str) -> str | None:
        match = LAYER.fullmatch(name)
        return match and match[1]

    pairs = named_pairs(path, tensors, inside)
    layers = set(pairs.names)
    named = adapter.get("target_modules")
    if isinstance(named, list):
        targets = {str(each).removeprefix("model.") for each in named}
        if unmatched := sorted(_unmatched(targets, layers)):
            cause = f"{len(unmatched)} layers are only here or only in {PEFT_CONFIG}, the first is {unmatched[0]}"
            raise PatchDamaged(path, cause, AGAIN)
    names = {layer: (stored,) for layer, stored in pairs.names.items()}
    return lora_config(folder / PEFT_CONFIG, adapter, _targets(layers, blocks), names), pairs.tensors


def _unmatched(targets: Collection[str], layers: Collection[str]) -> set[str]:
    """Target names of PEFT that match none of these layers, and layers that no target matches."""
    matches = {target: {layer for layer in layers if f".{layer}".endswith(f".{target}")} for target in targets}
    return {target for target, found in matches.items() if not found}.union(layers).difference(*matches.values())


def _targets(layers: Collection[str], blocks: Any) -> set[str]:
    """PEFT's target names for these layers: short ones if all blocks of the language model have them."""
    numbers = {layer.split(".", 2)[1] for layer in layers}
    kinds = {layer.split(".", 2)[2] for layer in layers}
    whole = {f"layers.{i}.{kind}" for i in range(len(numbers)) for kind in kinds}
    short = len(numbers) == blocks and whole == layers
    return {kind.rpartition(".")[2] for kind in kinds} if short else set(layers)


def _fusion(path: Path) -> dict[str, Tensor]:
    """The tensors of the fusion, under the official names. v_linear is dropped: the official code saves it but
    computes values with k_linear (blocks.py, line 143)."""
    found = {key.removeprefix(PREFIX): value for key, value in pickled.read(path).items()}
    return {key: value for key, value in found.items() if ".attn.v_linear." not in key}


def _shape(path: Path, fusion: Mapping[str, Tensor]) -> tuple[FusionConfig, int, dict[str, int]]:
    """The fusion's config, the channels of its side tokens and those of the base, from the first and last tensors; the
    others are checked with the whole patch."""
    try:
        width, vision = fusion["query_input_mapping.weight"].shape
        _, side = fusion["input_mapping.weight"].shape
        (dim,) = fusion["output_norm.weight"].shape
    except (KeyError, ValueError) as error:
        cause = f"its widths cannot be read from the first and last weights ({type(error).__name__}: {error})"
        raise PatchMismatch(path, cause, RELEASED) from None
    layers = len({key.split(".")[1] for key in fusion if key.startswith("cross_attn_layers.")})
    config = parsed(FusionConfig, {**NUMERICS, "width": width, "layers": layers}, path)
    return config, side, {"dim": dim, "vision_dim": vision}


# ---------------------------------------------------------------- where the files are


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The folder of the files: the source, the only fitting one below it, or a temporary copy for the block."""
    if os.path.isdir(source):
        yield _holder(source)
    elif not os.path.exists(source):
        raise PatchNotFound(source, "file or folder not found", RELEASED)
    elif not os.path.isfile(source):
        raise PatchFormatError(source, "is neither a file nor a folder", RELEASED)
    else:
        with scratch() as folder:
            _extract(source, folder)
            try:
                yield folder
            except FileError as error:
                raise type(error)(error.file.replace(str(folder), str(source), 1), error.cause, error.remedy) from None


def _holder(source: Path) -> Path:
    """The folder of the fusion: the source itself, or the only one below it."""
    if (source / FUSION).is_file():
        return source
    files = list(_files_below(source))
    found = {file.parent.resolve(): file for file in files if file.name == FUSION and file.is_file()}
    _refuse_all_but_one(source, found.values(), files)
    return next(iter(found.values())).parent


def _files_below(source: Path) -> Iterator[Path]:
    seen = 0
    for place, folders, names in os.walk(source, followlinks=True):
        folder = Path(place)
        folders[:] = sorted(set(folders) - LITTER) if len(folder.parts) - len(source.parts) < DEPTH else []
        if (seen := seen + len(folders) + len(names)) > ENTRIES:
            raise PatchError(source, f"has more than {ENTRIES:,} files", "pass the folder of the checkpoint itself")
        yield from (folder / name for name in sorted(names))


def _refuse_all_but_one(source: Path, found: Collection[PurePath], files: Iterable[PurePath]) -> None:
    if len(found) > 1:
        shown = ", ".join(str(path) for path in sorted(found)[:3]) + (", ..." if len(found) > 3 else "")
        raise PatchNotFound(source, f"has {len(found)} {FUSION}: {shown}", "pass the folder of one of them")
    if not found:
        inner = next((f", but holds {path}: unpack it" for path in files if path.suffix.lower() == ".zip"), "")
        raise PatchNotFound(source, f"has no {FUSION}{inner}", RELEASED)


def _extract(source: Path, folder: Path) -> None:
    """Copy the needed files of a zip into a folder, flat, after checking all entries."""
    try:
        with opened(source) as file, zipfile.ZipFile(file) as archive:
            if cause := _suspicion(archive.infolist(), source.stat().st_size):
                raise PatchDamaged(source, cause, "nothing was unpacked; download the official file")
            members = {PurePosixPath(each.filename): each for each in archive.infolist() if not each.is_dir()}
            files = [path for path in members if LITTER.isdisjoint(path.parts)]
            found = [path for path in files if path.name == FUSION]
            _refuse_all_but_one(source, found, files)
            for path in files:
                if path.name in FILES and path.parent == found[0].parent:
                    with archive.open(members[path]) as packed, (folder / path.name).open("xb") as copy:
                        shutil.copyfileobj(packed, copy, 1 << 20)
    except OSError as error:
        cause = f"cannot be unpacked ({error.strerror or error})"
        raise PatchError(source, cause, "free disk space or fix the permissions") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError) as error:
        raise PatchDamaged(source, f"is not a zip, or a damaged one ({error})", AGAIN) from None


def _suspicion(members: Collection[zipfile.ZipInfo], size: int) -> str:
    """What is wrong with a zip of `size` bytes by its directory, as text; empty if nothing."""
    seen: set[str] = set()
    for member in members:
        name = member.orig_filename
        if UNSAFE.search(name):
            return f"{name!r} would be written outside the target folder"
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"{name!r} is a link or a device"
        if member.flag_bits & 1:
            return f"{name!r} is encrypted"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"{name!r} has the unsupported compression method {member.compress_type}"
        if (same := normalize("NFC", str(PurePosixPath(name))).casefold()) in seen:
            return f"{name!r} is a duplicate"
        seen.add(same)
    total = sum(member.file_size for member in members)
    if total > min(tensorfile.MAX_BYTES, RATIO * size):
        return f"its {size:,} bytes would unpack to {total:,}"
    return ""
