"""Patches: config and tensors in one self-describing safetensors file.

In: a config and tensors, or a file. Out: a file, or a patch that has been checked: every refusal is a PatchError that
names file, cause and remedy. Files from outside are data: no pickle, no code. Knows nothing of models in memory.

The file's `__metadata__` holds `pave.format`, `pave.config`, `pave.sha256` and maybe `pave.certificate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pave.config import C, PatchConfig, parse
from pave.errors import (
    FileDamaged,
    FileError,
    PatchDamaged,
    PatchError,
    PatchFormatError,
    PatchMismatch,
    PatchNotFound,
    PaveError,
    RecipeError,
)
from pave.files import json_text, tensorfile
from pave.files.tensorfile import CODES
from pave.fusion.cross_attention import blank_fusion, build_fusion
from pave.fusion.qformer import Resampler, blank_resampler, build_resampler
from pave.patch import shrink
from pave.patch.filenames import WEIGHTS

FORMAT = 1
SHARE_BITS, SHARE_RANK = 4, 8  # see `Patch.shrink`
AGAIN = "download or train it again"
CONVERT = "if it is a checkpoint of PAVE's authors, `pave patch convert` makes a patch of it"
REMEDIES = {json_text.AGAIN: AGAIN, tensorfile.SAFE: CONVERT}  # of a file of any kind -> of a patch


@contextmanager
def of_patch() -> Iterator[None]:
    """Raise a FileError of the block as a PatchError: the file was to be a patch, or to become one."""
    try:
        yield
    except PatchError:
        raise
    except FileError as error:
        kind = PatchDamaged if isinstance(error, FileDamaged) else PatchError
        raise kind(error.file, error.cause, REMEDIES.get(error.remedy, error.remedy)) from None


@dataclass(frozen=True)
class Patch:
    """Config and tensors of a patch; `certificate` is measured proof that it listens, when there is any."""

    config: PatchConfig
    tensors: Mapping[str, Tensor] = field(repr=False)
    certificate: Mapping[str, Any] | None = None
    source: str = "memory"
    stored: str = field(default="", repr=False)  # the config as its file says it: an older one may know fewer keys

    @property
    def text(self) -> str:
        """The config as JSON, as it stands in the file."""
        kept = self.stored and PatchConfig.model_validate_json(self.stored) == self.config
        return self.stored if kept else self.config.canonical()

    @cached_property
    def sha256(self) -> str:
        """Over the config and every tensor's name, dtype, shape and bytes; tensors of a patch stay as they are."""
        return tensorfile.digest(self.text, self.tensors)

    def check(self) -> None:
        """Raise what is wrong with the tensors; they are looked at once."""
        return self._checked

    @cached_property
    def _checked(self) -> None:
        check_tensors(self.config, self.tensors, self.source)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors as a model uses them; those that are stored in codes, in `dtype`."""
        return shrink.restored(self.tensors, dtype)

    def shrink(self, bits: int = SHARE_BITS, rank: int | None = SHARE_RANK) -> Patch:
        """The same patch for a fraction of the bytes: matrices in codes of 8 or 4 `bits`, LoRA cut to at most `rank`.

        The defaults bring a whole patch of a 7B base below 20 MB. A certificate of the larger patch proves nothing of
        the smaller one, and is left out."""
        if bits not in (4, 8) or (rank is not None and rank < 1):
            raise PatchError(
                self.source, f"bits={bits}, rank={rank}", "store in 4 or 8 bits, and keep one rank or more"
            )
        config, tensors = self.config, self.weights()
        if config.lora is not None and rank is not None and rank < config.lora.r:
            pairs = [name.removesuffix(".A") for name in tensors if name.startswith("lora.") and name.endswith(".A")]
            for path in pairs:
                a, b = shrink.truncated(tensors[f"{path}.A"], tensors[f"{path}.B"], rank)
                tensors |= {f"{path}.A": a, f"{path}.B": b}
            alpha = config.lora.scaling * (rank**0.5 if config.lora.use_rslora else rank)
            lora = config.lora.model_copy(update={"r": rank, "lora_alpha": alpha})
            config = config.model_copy(update={"lora": lora})
        return Patch(config, shrink.shrunk(tensors, bits), source=self.source)

    @of_patch()
    def save(self, path: str | Path) -> Path:
        """Write the file in one piece; whatever goes wrong, the old file stays. A folder gets `patch.safetensors`."""
        path = Path(path)
        path = path / WEIGHTS if path.is_dir() else path
        check_tensors(self.config, self.tensors, path)
        tensorfile.write(path, self.tensors, self._metadata(tensorfile.digest(self.text, self.tensors)))
        return path

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that `save` would write; the tensors need no values."""
        return tensorfile.size(self.tensors, self._metadata("0" * 64))

    def _metadata(self, sha256: str) -> dict[str, str]:
        metadata = {"pave.format": str(FORMAT), "pave.config": self.text, "pave.sha256": sha256}
        if self.certificate is not None:
            metadata["pave.certificate"] = json_text.canonical(self.certificate)
        return metadata

    @classmethod
    @of_patch()
    def load(cls, path: str | Path, source: str = "") -> Patch:
        """Read and check a patch file, or the `patch.safetensors` of a folder. source: how people know it, if not by
        its path."""
        path = file_of(path)
        tensors, metadata = tensorfile.read(path)
        config, certificate = config_of(path, metadata), metadata.get("pave.certificate")
        proof = None if certificate is None else json_text.parse_json(path, certificate, "certificate")
        patch = cls(config, tensors, proof, source or str(path), metadata["pave.config"])
        promised = metadata.get("pave.sha256", "")
        if patch.sha256 != promised:
            cause = f"its content has sha256 {patch.sha256[:16]}…, but it promises {promised[:16]}…"
            raise PatchDamaged(path, cause, AGAIN)
        patch.check()
        return patch


@of_patch()
def outline(path: str | Path, source: str = "") -> Patch:
    """A patch as its header describes it: its tensors have shapes and no values, and only these are checked."""
    path = file_of(path)
    tensors, metadata = tensorfile.read(path, mapped=True)
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    patch = Patch(config_of(path, metadata), shapes, source=source or str(path), stored=metadata["pave.config"])
    patch.check()
    return patch


@of_patch()
def read_config(path: str | Path) -> PatchConfig:
    """What a patch says of itself, from its header alone; tensors are not read and nothing is proved."""
    path = file_of(path)
    return config_of(path, tensorfile.read_metadata(path))


def file_of(path: str | Path) -> Path:
    """The patch file itself, for a file or for the folder that holds it."""
    path = Path(path)
    found = path / WEIGHTS if path.is_dir() and path.name != WEIGHTS else path
    if not found.exists():
        raise PatchNotFound(found, "no such file", "give a patch file, its folder, or a name of the catalogue")
    if not found.is_file():
        raise PatchDamaged(found, "is not a regular file", "give a patch file or the folder that holds one")
    return found


def resampler_of(config: PatchConfig, *, blank: bool = False) -> Resampler | None:
    """The untrained resampler, if the patch has one; blank: on the meta device, for weights to come."""
    return None if config.resampler is None else (blank_resampler if blank else build_resampler)(*_senses(config))


def fusion_of(config: PatchConfig, name: str, *, blank: bool = False) -> nn.Module:
    """The untrained fusion of one sense, or of what the resampler makes of all, with the dimensions that the config
    records of its base; blank: on the meta device, for weights to come."""
    return (blank_fusion if blank else build_fusion)(config.fusion, **_sizes(config, name))


def tensors_of(config: PatchConfig) -> dict[str, Tensor]:
    """Names and shapes of a patch's tensors, but for those of its LoRA, which hang on the layers of the base."""
    parts = {f"fusion.{name}": blank_fusion.outline(config.fusion, **_sizes(config, name)) for name in config.read}
    if config.resampler is not None:
        parts["resampler"] = blank_resampler.outline(*_senses(config))
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _senses(config: PatchConfig) -> tuple[Any, ...]:
    """What a resampler is built from; a file knows no order of its senses."""
    return config.resampler, config.fusion.combine, tuple(sorted((s, facts.dim) for s, facts in config.senses.items()))


def _sizes(config: PatchConfig, name: str) -> dict[str, Any]:
    """What a fusion is built from, beside its own config."""
    return {
        "side_dim": config.read[name],
        "vision_dim": config.base.vision_dim,
        "visual_dim": config.base.dim,
        "tokens": config.base.tokens_per_frame,
        "frames": config.base.frames,
        "points": name in config.senses and config.senses[name].points,  # to a resampler they are channels
    }


def refuse_taken(senses: Iterable[str]) -> None:
    """Refuse senses that no module can be called after."""
    for sense in senses:
        if hasattr(nn.ModuleDict, sense):
            raise RecipeError(f"senses.{sense}: torch keeps this name for itself; call it {sense}_signal")


def misfits(expected: Mapping[str, Tensor], have: Mapping[str, tuple[int, ...]]) -> str:
    """The first differences of names and shapes, in words; empty when there are none."""
    want = {name: tuple(value.shape) for name, value in expected.items()}
    wrong = [f"{n} is {have.get(n, 'missing')}, expected {want[n]}" for n in want if have.get(n) != want[n]]
    wrong += [f"{name} is not part of it" for name in sorted(have.keys() - want.keys())]
    return "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def check_tensors(config: PatchConfig, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Names, shapes and finite values, as far as the config tells: LoRA's outer sizes are those of the base's layers,
    and are checked when the patch is applied."""
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise PatchFormatError(source, f"{name} is {tensor.dtype}", "no file holds such tensors")
        if flaw := shrink.flaw(name, tensors):
            raise PatchDamaged(source, f"{name} {flaw}", AGAIN)
    shapes = shrink.shapes(tensors)
    fusion = {name: shape for name, shape in shapes.items() if not name.startswith("lora.")}
    if config.fusion.layers > max(len(tensors), 2) or not (config.senses or config.lora):
        cause = f"its config is absurd: {config.fusion.layers} layers for {list(config.senses)}"
        raise PatchDamaged(source, cause, AGAIN)
    try:
        refuse_taken(config.senses)
        expected = tensors_of(config)
    except (PaveError, RuntimeError, TypeError, OverflowError) as error:
        raise PatchDamaged(source, f"no fusion can be built from its config ({error})", AGAIN) from None
    wrong = misfits(expected, fusion) or _lora_misfits(config, {n: s for n, s in shapes.items() if n not in fusion})
    if wrong:
        raise PatchMismatch(source, f"tensors do not fit its own config: {wrong}", AGAIN)


def _lora_misfits(config: PatchConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if config.lora is None:
        return f"{min(shapes)} is not part of it" if shapes else ""
    if not shapes:
        return "it says lora but holds no lora tensor"
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        if leaf not in ("A", "B") or {f"{path}.A", f"{path}.B"} - shapes.keys():
            return f"{name} is not half of a pair A, B"
        if len(shape) != 2 or shape["AB".index(leaf)] != config.lora.r:
            return f"{name} is {shape}, expected rank {config.lora.r}"
    return ""


@of_patch()
def config_of(path: Path, metadata: Mapping[str, str]) -> PatchConfig:
    """The config in a header's metadata, checked; `path` is what the error will name."""
    version = metadata.get("pave.format")
    if version is None:
        raise PatchFormatError(path, "is safetensors, but says nothing of PAVE", "give a file written by PAVE")
    if version != str(FORMAT):
        newer = version.isdecimal() and int(version) > FORMAT
        remedy = "update pave" if newer else AGAIN
        raise PatchFormatError(path, f"has format {version!r}, this version of PAVE reads {FORMAT}", remedy)
    return parsed(PatchConfig, json_text.parse_json(path, metadata.get("pave.config", ""), "config"), path)


def parsed(kind: type[C], data: Mapping[str, Any], path: Path) -> C:
    """What a file from outside says of itself, validated."""
    try:
        return parse(kind, data, path)
    except RecipeError as error:
        cause = str(error).removeprefix(f"{path}: ")
        raise PatchDamaged(path, f"its config is not valid ({cause})", AGAIN) from None
