"""Patches: config and tensors in one self-describing safetensors file.

In: a config and tensors, or a file. Out: a file, or a validated patch; every failure is a PatchError that names file,
cause and remedy. Files from outside are data: no pickle, no code. Knows nothing of models in memory.

The file's `__metadata__` holds `pave.format`, `pave.config`, `pave.sha256` and optionally `pave.certificate`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pave.ambient import neutral
from pave.config import PatchConfig
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
from pave.files.validation import C, parse
from pave.fusion.cross_attention import blank_fusion, build_fusion
from pave.fusion.inserted import Summary
from pave.fusion.qformer import Resampler, blank_resampler, build_resampler
from pave.patch import shrink
from pave.patch.carrier import Carrier
from pave.patch.filenames import WEIGHTS
from pave.patch.gate import Gate
from pave.patch.marker import Marker
from pave.text.shown import counted, quoted
from pave.text.values import plain

FORMAT = 1
FEW_PARTS, MOST_PARTS = 64, 256  # layers that a config may have, whatever its file holds; and in any case
DEEPEST, VALUES = 16, 20_000  # of a config: levels, and values, far beyond those of a 72B base with all layers named
SHARE_BITS, SHARE_RANK = 4, 8  # see `Patch.shrink`
AGAIN = "download or train it again"
CONVERT = "convert an official PAVE checkpoint with `pave patch convert`"
REMEDIES = {json_text.AGAIN: AGAIN, tensorfile.SAFE: CONVERT}  # generic remedy -> remedy for a patch


@contextmanager
def of_patch() -> Iterator[None]:
    """Re-raise a FileError of the block as a PatchError."""
    try:
        yield
    except PatchError:
        raise
    except FileError as error:
        kind = PatchDamaged if isinstance(error, FileDamaged) else PatchError
        raise kind(error.file, error.cause, REMEDIES.get(error.remedy, error.remedy)) from None


@dataclass(frozen=True)
class Patch:
    """Config and tensors of a patch; `certificate`: measured evidence that it uses its senses, if any."""

    config: PatchConfig
    tensors: Mapping[str, Tensor] = field(repr=False)
    certificate: Mapping[str, Any] | None = None
    source: str = "memory"
    stored: str = field(default="", repr=False)  # the config text of its file; an older version may have fewer keys
    recorded: str = field(default="", repr=False)  # the sha256 in its header, of a patch without its tensors

    @property
    def text(self) -> str:
        """The config as JSON, as in the file."""
        unchanged = self.stored and PatchConfig.model_validate_json(self.stored) == self.config
        return self.stored if unchanged else self.config.canonical()

    @cached_property
    @neutral()
    def sha256(self) -> str:
        """Of the config and every tensor's name, dtype, shape and bytes. Cached: do not modify tensors in place."""
        return tensorfile.digest(self.text, self.tensors)

    @property
    def content(self) -> str:
        """`sha256`; of a patch without its tensors, what its file says."""
        return self.recorded or self.sha256

    def check(self) -> None:
        """Validate the tensors, once."""
        return self._checked

    @cached_property
    @neutral()
    def _checked(self) -> None:
        check_tensors(self.config, self.tensors, self.source)

    @property
    def retention(self) -> dict[str, float]:
        """How much of the base's own answers to questions that need no sense stays, if training measured it: `tokens`,
        the share that is still the most likely; `kl`, nats per token; `answers`, the share of unchanged ones. With a
        gate also `left`, the share of these questions that it leaves to the base, and `ungated`, `tokens` without it.
        """
        found = (self.certificate or {}).get("retention")
        figures = found.items() if isinstance(found, Mapping) else ()
        return {str(name): value for name, value in figures if type(value) in (int, float) and value >= 0}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @neutral()
    def weights(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The tensors as a model uses them; quantised ones are restored in `dtype`."""
        return shrink.restored(self.tensors, dtype)

    @neutral()
    def shrink(self, bits: int = SHARE_BITS, rank: int | None = SHARE_RANK) -> Patch:
        """A smaller copy of the patch: matrices quantised to 8 or 4 `bits`, LoRA truncated to at most `rank`.

        With the defaults, a patch of a 7B base takes less than 20 MB. The certificate is dropped, since it was measured
        with the original."""
        if bits not in (4, 8) or (rank is not None and rank < 1):
            raise PatchError(self.source, f"bits={bits}, rank={rank}", "use 4 or 8 bits, and a rank of 1 or more")
        config, tensors = self.config, self.weights()
        if config.lora is not None and rank is not None:
            pairs = [name.removesuffix(".A") for name in tensors if name.startswith("lora.") and name.endswith(".A")]
            wide = [path for path in pairs if len(tensors[f"{path}.A"]) > rank]
            for path in wide:
                a, b = shrink.truncated(tensors[f"{path}.A"], tensors[f"{path}.B"], rank)
                tensors |= {f"{path}.A": a, f"{path}.B": b}
            if wide:
                lora = config.lora.truncated(rank, [path.removeprefix("lora.") for path in pairs])
                config = config.model_copy(update={"lora": lora})
        return Patch(config, shrink.shrunk(tensors, bits), source=self.source)

    @neutral()
    @of_patch()
    def save(self, path: str | Path) -> Path:
        """Write the file atomically: on any error the old file stays. In a folder, write `patch.safetensors`."""
        path = Path(path)
        path = path / WEIGHTS if os.path.isdir(path) else path
        check_tensors(self.config, self.tensors, path)
        tensorfile.write(path, self.tensors, self._metadata(tensorfile.digest(self.text, self.tensors)))
        return path

    @property
    def file_bytes(self) -> int:
        """Size of the file that `save` would write; tensors may be on the meta device."""
        return tensorfile.size(self.tensors, self._metadata("0" * 64))

    def _metadata(self, sha256: str) -> dict[str, str]:
        metadata = {"pave.format": str(FORMAT), "pave.config": self.text, "pave.sha256": sha256}
        if self.certificate is not None:
            metadata["pave.certificate"] = json_text.canonical(self.certificate)
        return metadata

    @classmethod
    @neutral()
    @of_patch()
    def load(cls, path: str | Path, source: str = "") -> Patch:
        """Read and check a patch file, or the `patch.safetensors` of a folder. source: its name in reports
        and errors, if not the path."""
        path = file_of(path)
        tensors, metadata = tensorfile.read(path)
        config, measured = config_of(path, metadata), _certificate(path, metadata)
        patch = cls(config, tensors, measured, source or str(path), metadata["pave.config"])
        recorded = metadata.get("pave.sha256", "")
        if patch.sha256 != recorded:
            cause = f"its content has sha256 {patch.sha256[:16]}…, its metadata {recorded[:16]}…"
            raise PatchDamaged(path, cause, AGAIN)
        patch.check()
        return patch


@neutral()
@of_patch()
def outline(path: str | Path, source: str = "") -> Patch:
    """A patch from its header: tensors are on the meta device, and only names and shapes are checked."""
    path = file_of(path)
    tensors, metadata = tensorfile.read(path, mapped=True)
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    patch = Patch(config_of(path, metadata), shapes, source=source or str(path), stored=metadata["pave.config"])
    patch.check()
    return patch


def read_config(path: str | Path) -> PatchConfig:
    """The config of a patch from its header; tensors are neither read nor checked."""
    return read_facts(path).config


@of_patch()
def read_facts(path: str | Path) -> Patch:
    """A patch without its tensors, from its header: config and certificate."""
    path = file_of(path)
    return facts_of(path, tensorfile.read_metadata(path))


@of_patch()
def facts_of(path: Path, metadata: Mapping[str, str]) -> Patch:
    """A patch without its tensors, from a header's metadata."""
    config = config_of(path, metadata)  # which checks the metadata
    stored, recorded = metadata["pave.config"], metadata.get("pave.sha256", "")
    return Patch(config, {}, _certificate(path, metadata), str(path), stored, recorded)


def _certificate(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    text = metadata.get("pave.certificate")
    return None if text is None else json_text.parse_json(path, text, "certificate")


def file_of(path: str | Path) -> Path:
    """The patch file, from its own path or that of its folder."""
    path = Path(path)
    found = path / WEIGHTS if os.path.isdir(path) and path.name != WEIGHTS else path
    if not os.path.exists(found):
        raise PatchNotFound(found, "file not found", "pass a patch file, its folder, or a catalogue name")
    if not os.path.isfile(found):
        raise PatchDamaged(found, "is not a regular file", "pass a patch file or its folder")
    return found


def resampler_of(config: PatchConfig, *, blank: bool = False) -> Resampler | None:
    """The untrained resampler, if any; blank: on the meta device."""
    return None if config.resampler is None else (blank_resampler if blank else build_resampler)(*_senses(config))


def fusion_of(config: PatchConfig, name: str, *, blank: bool = False) -> nn.Module:
    """The untrained fusion of one sense or of the resampler outputs, with the base dimensions of the config; blank: on
    the meta device."""
    return (blank_fusion if blank else build_fusion)(config.fusion, **_sizes(config, name))


def tensors_of(config: PatchConfig) -> dict[str, Tensor]:
    """Names and shapes of a patch's tensors, except LoRA, which depends on the layers of the base."""
    parts = {f"fusion.{name}": blank_fusion.outline(config.fusion, **_sizes(config, name)) for name in config.read}
    if config.resampler is not None:
        parts["resampler"] = blank_resampler.outline(*_senses(config))
    if config.gate:
        parts["gate"] = Gate(config.base.dim).to("meta").state_dict()
    if config.replaces:
        with torch.device("meta"):
            parts["summary"] = Summary(config.base.dim, config.fusion.width).state_dict()
    if config.carries:
        parts["carrier"] = Carrier(config.base.vision_dim, config.base.dim).to("meta").state_dict()
    if config.marked:
        parts["marker"] = Marker(config.base.dim, config.marked).to("meta").state_dict()
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _senses(config: PatchConfig) -> tuple[Any, ...]:
    """Arguments of a resampler; senses are sorted, as files do not record their order."""
    return config.resampler, config.fusion.combine, tuple(sorted((s, facts.dim) for s, facts in config.senses.items()))


def _sizes(config: PatchConfig, name: str) -> dict[str, Any]:
    """Arguments of a fusion besides its own config."""
    return {
        "side_dim": config.read[name],
        "vision_dim": config.base.vision_dim,
        "visual_dim": config.base.dim,
        "tokens": config.base.tokens_per_frame,
        "frames": config.base.frames,
        "points": name in config.senses and config.senses[name].points,  # a resampler treats them as plain channels
    }


def refuse_taken(senses: Iterable[str]) -> None:
    """Refuse sense names that nn.ModuleDict reserves."""
    for sense in senses:
        if hasattr(nn.ModuleDict, sense):
            raise RecipeError(f"senses.{sense}: torch reserves this name; rename it to {sense}_signal")


def misfits(expected: Mapping[str, Tensor], have: Mapping[str, tuple[int, ...]]) -> str:
    """The first differences of names and shapes as text; empty if there are none."""
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    wrong = [f"{n} is {have.get(n, 'missing')}, expected {wanted[n]}" for n in wanted if have.get(n) != wanted[n]]
    wrong += [f"{name} is unexpected" for name in sorted(have.keys() - wanted.keys())]
    return "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def check_tensors(config: PatchConfig, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Check the config again, which Python code may have changed, then names, shapes and finite values of the tensors
    against it. LoRA's outer sizes depend on the base, and are checked when the patch is applied."""
    parsed(PatchConfig, config.model_dump(), source)
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise PatchFormatError(source, f"{name} is {tensor.dtype}, which patch files do not support", "cast it")
        if flaw := shrink.flaw(name, tensors):
            raise PatchDamaged(source, f"{name} {flaw}", AGAIN)
    shapes = shrink.shapes(tensors)
    fusion = {name: shape for name, shape in shapes.items() if not name.startswith("lora.")}
    # Before any module is built: its layers cost memory even on the meta device.
    parts = len(config.read) * (config.fusion.layers if config.fusion.kind == "official" else 1)
    parts += config.resampler.layers if config.resampler else 0
    if not (config.senses or config.lora):
        raise PatchDamaged(source, "its config has neither a sense nor LoRA", AGAIN)
    most = min(max(len(fusion), FEW_PARTS), MOST_PARTS)
    if parts > most:
        cause = f"its config has {counted(parts, 'layer')} for {counted(len(config.senses), 'sense')}"
        limit = f"at most {most:,} are possible with {counted(len(fusion), 'tensor')} for them"
        raise PatchDamaged(source, f"{cause}; {limit}", AGAIN)
    try:
        refuse_taken(config.senses)
        expected = tensors_of(config)
    except (PaveError, RuntimeError, TypeError, OverflowError) as error:
        raise PatchDamaged(source, f"its config describes no valid fusion ({error})", AGAIN) from None
    wrong = misfits(expected, fusion) or _lora_misfits(config, {n: s for n, s in shapes.items() if n not in fusion})
    if wrong:
        raise PatchMismatch(source, f"tensors do not fit its own config: {wrong}", AGAIN)


def _lora_misfits(config: PatchConfig, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if config.lora is None:
        return f"{min(shapes)} is unexpected" if shapes else ""
    if not shapes:
        return "its config has lora, but it has no lora tensor"
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        if leaf not in ("A", "B") or f"{path}.A" not in shapes or f"{path}.B" not in shapes:
            return f"{name} is not one of a pair A, B"
        rank = config.lora.rank(path.removeprefix("lora."))
        if len(shape) != 2 or shape["AB".index(leaf)] != rank:
            return f"{name} is {shape}, expected rank {rank}"
    return ""


@of_patch()
def config_of(path: Path, metadata: Mapping[str, str]) -> PatchConfig:
    """The validated config of a header's metadata; errors name `path`."""
    if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
        raise PatchDamaged(path, "its metadata is not a mapping of texts", AGAIN)
    version = metadata.get("pave.format")
    if version is None:
        raise PatchFormatError(path, "is safetensors without PAVE metadata", "pass a file written by PAVE")
    if version != str(FORMAT):
        newer = version.isdecimal() and len(version) < 10 and int(version) > FORMAT
        remedy = "update pave" if newer else AGAIN
        raise PatchFormatError(path, f"has format {quoted(version)}, this version of PAVE reads {FORMAT}", remedy)
    try:
        facts = json_text.parse_json(path, metadata.get("pave.config", ""), "config", DEEPEST)
        plain(facts, VALUES, DEEPEST)
    except json_text.NestedTooDeep as error:
        raise PatchFormatError(path, error.cause, AGAIN) from None
    except ValueError as error:
        raise PatchFormatError(path, f"its config {error}", AGAIN) from None
    return parsed(PatchConfig, facts, path)


def parsed(kind: type[C], data: Mapping[str, Any], source: str | Path) -> C:
    """Metadata of a file, validated; PatchDamaged if invalid."""
    try:
        return parse(kind, data, "")
    except RecipeError as error:
        cause = str(error).removeprefix(": ")
        raise PatchDamaged(source, f"its config is not valid ({cause})", AGAIN) from None
