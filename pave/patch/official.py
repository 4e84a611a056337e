"""Checkpoints that the authors of PAVE have released, as patches.

In: a zip, or the folder in it: `non_lora_trainables.bin` (the fusion, pickled), the LoRA as PEFT writes it, and
`config.json`. Out: one patch with the authors' numerics. Widths and depth are read from the shapes; what a checkpoint
does not tell is set down here, from the official repository (dragonlzm/PAVE, commit ef6a93f), but for the sense: which
encoder made its features only the caller knows. Opens nothing that it does not need, and needs no base.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts, parse
from pave.encoder import EncoderSpec, OnBase, load_encoder, missing
from pave.errors import FileError, PatchDamaged, PatchError, PatchFormatError, PatchMismatch, PatchNotFound
from pave.files import json_text, pickled, tensorfile
from pave.patch.file import AGAIN, Patch, of_patch, parsed, refuse_taken
from pave.patch.filenames import HUB_NAME, OFFICIAL_BASE, PEFT_CONFIG, PEFT_WEIGHTS
from pave.patch.filenames import OFFICIAL_FUSION as FUSION
from pave.patch.peft import lora_config, name_of, named_pairs, plain_config
from pave.prompt import CHATML

LICENCE = "unlicensed: the authors' repository names no licence"
CONFIG, PICKLED_LORA = "config.json", "adapter_model.bin"
FILES = {FUSION, PEFT_CONFIG, PEFT_WEIGHTS, PICKLED_LORA, CONFIG}
PREFIX = "base_model.model.model.temporal_aggregator."  # train_pave_w_feat.py saves the model inside PEFT's wrapper
LAYER = re.compile(r"model\.(layers\.[0-9]+\.[\w.]+)")
# What all released variants share and no file says: num_cross_attn_head and use_3d_rope (libs/utils/train_utils.py),
# values from k_linear (blocks.py), a LayerNorm at the end, and a fusion that stays float32 behind a base in float16
# (libs/utils/utils.py).
NUMERICS = {"kind": "official", "heads": 4, "rope": "off", "values": "shared", "head": "norm", "precision": "float32"}
FRAMES, TOKENS = 32, 196  # frames_upbound; 27 × 27 patches, pooled to 14 × 14
# What config.json may say of a layout that is built in here, where it says anything of it.
BUILT_IN = {
    "model_type": "pave_qwen2",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_spatial_pool_mode": "bilinear",
    "feat_combine_method": "add",
}
NEWLINES = {"grid": "grid", "one_token": "end", "no_token": "none"}  # mm_newline_position -> ours
RELEASED = "give a zip that the authors released, or the folder in it"
UNSAFE = re.compile(r"^/|^[A-Za-z]:|\\|\0|(^|/)\.\.(/|$)")
RATIO = 100  # unpacked bytes for each one of the zip; weights hardly shrink at all


@of_patch()
def convert(source: str | Path, sense: str, encoder: str | EncoderSpec, *, name: str = "", **options: Any) -> Patch:
    """The patch of a released checkpoint, as convert("pave_avsd.zip", "audio", "imagebind-audio").

    encoder: who made the features that it was trained with, by name, or by what it says of itself. It need not be
    installed: the patch then reads features that are brought along as SideTokens. name: of the patch. options: of an
    encoder that is told by name, as preset="llava3d".
    """
    source = Path(source)
    refuse_taken([sense])
    with _unpacked(source) as folder:
        said, (newline, blocks) = plain_config(_there(folder, PEFT_CONFIG)), _base(_there(folder, CONFIG))
        lora, pairs = _lora(folder, said, blocks)
        fusion = _fusion(folder / FUSION)
        shape, side, channels = _shape(folder / FUSION, fusion)
    repo = said.get("base_model_name_or_path")
    repo = repo if isinstance(repo, str) and HUB_NAME.fullmatch(repo) else ""  # or a folder of their machine
    known = {"model_type": OFFICIAL_BASE, "repo": repo, "frames": FRAMES, "tokens_per_frame": TOKENS}
    made = {
        "name": name_of(name or source.resolve().name.removesuffix(".zip")),
        "description": "A checkpoint of PAVE's authors, converted.",
        "base": {**known, **channels, "fingerprint": ""},
        "newline": newline,
        "prompt": CHATML,
        "senses": {sense: _facts(source, sense, encoder, side, options)},
        "fusion": shape,
        "lora": lora,
        "licence": LICENCE,
    }
    tensors = {f"fusion.{sense}.{key}": value for key, value in fusion.items()}
    tensors |= {f"lora.{key}": value for key, value in pairs.items()}
    patch = Patch(parse(PatchConfig, made, source), tensors, source=str(source))
    patch.check()
    return patch


def kept_as(name: str, file: str, sense: str, encoder: str | EncoderSpec) -> str:
    """What a converted checkpoint is called where it is kept: another name whenever it would become another patch."""
    who = [encoder, ""] if isinstance(encoder, str) else [encoder.name, encoder.preprocessing]
    made = hashlib.sha256(json.dumps([file, sense, *who, NUMERICS, FRAMES, TOKENS]).encode()).hexdigest()
    return f"{name}-{made[:16]}.safetensors"


def _facts(source: Path, sense: str, encoder: str | EncoderSpec, side: int, options: Any) -> SenseFacts:
    if isinstance(encoder, str) and missing(encoder):
        encoder = EncoderSpec(encoder, sense, dim=side, rate=0, options=options)  # its rate is not recorded
    elif isinstance(encoder, str):
        loaded = load_encoder(encoder, **options)
        if isinstance(loaded, OnBase):
            cause = f"{encoder} looks with the eyes of a base here, which no released checkpoint was trained on"
            raise PatchMismatch(source, cause, "give its options, as --option preset=llava3d")
        encoder = loaded.spec
    if encoder.dim != side:
        cause = f"its fusion reads {side} channels, {encoder.name} gives {encoder.dim}"
        raise PatchMismatch(source, cause, "name the encoder that made the features it was trained with")
    return encoder.facts("index")


# ---------------------------------------------------------------- what the files say


def _there(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise PatchNotFound(folder, f"holds no {name}", RELEASED)
    return folder / name


def _base(path: Path) -> tuple[str, Any]:
    """Newline layout, and the number of blocks of the language model. (The size of its vocabulary says nothing: the
    authors cut rows that no token has.)"""
    said = json_text.read_json(path)
    newline = said.get("mm_newline_position")
    if not isinstance(newline, str) or newline not in NEWLINES:
        raise PatchFormatError(path, f"mm_newline_position={newline!r}", f"patches know {', '.join(NEWLINES)}")
    for key, known in BUILT_IN.items():
        if (value := said.get(key)) not in (known, None):
            raise PatchFormatError(path, f"{key}={value!r}", f"patches know {known}, which the authors released")
    return NEWLINES[newline], said.get("num_hidden_layers")


def _lora(folder: Path, said: Mapping[str, Any], blocks: Any) -> tuple[LoraConfig, dict[str, Tensor]]:
    path = folder / PICKLED_LORA
    if path.is_file() and not (folder / PEFT_WEIGHTS).exists():
        tensors = pickled.read(path)
    else:
        path = _there(folder, PEFT_WEIGHTS)
        tensors, _ = tensorfile.read(path)

    def inside(name: str) -> str | None:
        match = LAYER.fullmatch(name)
        return match and match[1]

    pairs = named_pairs(path, tensors, inside)
    layers = {name.rpartition(".")[0] for name in pairs}
    named = said.get("target_modules")
    if isinstance(named, list) and (odd := sorted(_odd({str(word).removeprefix("model.") for word in named}, layers))):
        cause = f"{len(odd)} layers stand only here or only in {PEFT_CONFIG}, the first is {odd[0]}"
        raise PatchDamaged(path, cause, AGAIN)
    return lora_config(folder / PEFT_CONFIG, said, _words(layers, blocks)), pairs


def _odd(words: Collection[str], layers: Collection[str]) -> set[str]:
    """Words of PEFT that name none of these layers, and layers that no word names."""
    means = {word: {layer for layer in layers if f".{layer}".endswith(f".{word}")} for word in words}
    return {word for word, found in means.items() if not found}.union(layers).difference(*means.values())


def _words(layers: Collection[str], blocks: Any) -> set[str]:
    """PEFT's words for these layers: the short ones when all blocks of the language model have them."""
    numbers = {layer.split(".", 2)[1] for layer in layers}
    kinds = {layer.split(".", 2)[2] for layer in layers}
    whole = {f"layers.{i}.{kind}" for i in range(len(numbers)) for kind in kinds}
    short = len(numbers) == blocks and whole == layers
    return {kind.rpartition(".")[2] for kind in kinds} if short else set(layers)


def _fusion(path: Path) -> dict[str, Tensor]:
    """The tensors of the fusion under our names, which are the authors'. They create v_linear and save it, but take
    values from k_linear (blocks.py, line 143)."""
    found = {key.removeprefix(PREFIX): value for key, value in pickled.read(path).items()}
    return {key: value for key, value in found.items() if ".attn.v_linear." not in key}


def _shape(path: Path, fusion: Mapping[str, Tensor]) -> tuple[FusionConfig, int, dict[str, int]]:
    """The fusion's config, the channels of its side tokens, and those of the base. The first and the last tensors tell
    them; whether all others agree is checked with the whole patch."""
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


# ---------------------------------------------------------------- the zip


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The folder that holds the files: the source, what is in it, or a copy that is gone behind the block."""
    if source.is_dir():
        yield _holder(source, source)
    elif not source.exists():
        raise PatchNotFound(source, "no such file or folder", RELEASED)
    elif not source.is_file():
        raise PatchFormatError(source, "is neither a file nor a folder", RELEASED)
    else:
        with TemporaryDirectory(prefix="pave-") as folder:
            _extract(source, Path(folder))
            try:
                yield _holder(Path(folder), source)
            except FileError as error:
                raise type(error)(error.file.replace(folder, str(source), 1), error.cause, error.remedy) from None


def _holder(folder: Path, source: Path) -> Path:
    """The folder itself or the one inside it."""
    if (folder / FUSION).is_file():
        return folder
    found = [place for place in sorted(folder.iterdir()) if (place / FUSION).is_file()]
    if len(found) != 1:
        raise PatchNotFound(source, f"holds {len(found) or 'no'} {FUSION}", RELEASED)
    return found[0]


def _extract(source: Path, folder: Path) -> None:
    """Unpack the wanted files of a zip, once nothing in it is suspicious."""
    try:
        with zipfile.ZipFile(source) as archive:
            if cause := _suspicion(archive.infolist(), source.stat().st_size):
                raise PatchDamaged(source, cause, "nothing was unpacked; download it from its authors")
            for member in archive.infolist():
                path = PurePosixPath(member.filename)
                if path.name in FILES and len(path.parts) <= 2:
                    archive.extract(member, folder)
    except OSError as error:
        cause = f"cannot be unpacked ({error.strerror or error})"
        raise PatchError(source, cause, "free space or mend the rights") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError) as error:
        raise PatchDamaged(source, f"is no zip, or a damaged one ({error})", AGAIN) from None


def _suspicion(members: Collection[zipfile.ZipInfo], size: int) -> str:
    """What is wrong with a zip of `size` bytes, by its table of contents; empty when nothing is."""
    seen: set[str] = set()
    for member in members:
        name = member.orig_filename
        if UNSAFE.search(name):
            return f"{name!r} would leave the folder that it is unpacked to"
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"{name!r} is a link or a device"
        if member.flag_bits & 1:
            return f"{name!r} is encrypted"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"{name!r} is packed by the rare method {member.compress_type}"
        if name.casefold() in seen:
            return f"{name!r} stands in it twice"
        seen.add(name.casefold())
    total = sum(member.file_size for member in members)
    if total > min(tensorfile.MAX_BYTES, RATIO * size):
        return f"its {size:,} bytes would become {total:,}"
    return ""
