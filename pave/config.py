"""The parts of a patch and the metadata of its file, as validated, frozen values.

In: a mapping (from a recipe or from a patch file's header). Out: a frozen pydantic model, or a RecipeError that
names the key, the value and the remedy. Knows nothing of tensors; dimensions of a base are measured, never configured.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from pave.errors import nearest
from pave.files.json_text import canonical
from pave.files.validation import Config
from pave.text.shown import quoted
from pave.text.values import plain

Modality = Literal["pictures", "sound", "both"]  # what a clip is trained with, or has
RESAMPLED = "resampled"  # name of the only fusion of a patch with a resampler

# Bounds of everything that a patch file or a recipe may say, checked before anything is built from it. They are far
# beyond real values: the widest language models have 18,432 channels.
NAMED = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=96)]  # of a patch; the same as NAMED
SenseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
EncoderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]
ModelType = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=96)]
Hash = Annotated[str, Field(pattern=r"^[\w.-]*$", max_length=64)]  # sha256; empty: unknown
Text = Annotated[str, Field(max_length=4_096)]
Short = Annotated[str, Field(max_length=512)]  # a revision, a licence
LayerName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=256)]
Channels = Annotated[int, Field(ge=1, le=65_536)]
Width = Annotated[int, Field(ge=1, le=32_768)]
Heads = Annotated[int, Field(ge=1, le=1_024)]
Layers = Annotated[int, Field(ge=1, le=64)]
MOST_FRAMES = 65_536
Frames = Annotated[int, Field(ge=1, le=MOST_FRAMES)]
Side = Annotated[int, Field(ge=1, le=4_096)]  # rows or columns of a grid
Facts = Annotated[dict[str, Any], AfterValidator(plain)]  # what no config declares: encoder options, training values
SENSES = 32  # of one patch
SEGMENTS = 4  # of a clip's sound in Audio-Visual LLM (arXiv 2312.06720)
SCALING = 1e-6, 1e3  # smallest and largest factor of LoRA's B·A
VIDEO, QUESTION = "{video}", "{question}"  # placeholders of a prompt template


def commercial(licence: str) -> bool:
    """Whether a licence allows commercial use, by its SPDX identifier."""
    return "NC" not in licence.upper().split("-")


class SenseConfig(Config):
    """One side channel of a patch: its encoder, and how its tokens are aligned with key frames."""

    encoder: EncoderName  # name of a file in encoders/
    options: Facts = {}  # the encoder's own options
    align: Literal["time", "index"] = "time"  # index: the split rule of the official code, for converted patches


class FusionConfig(Config):
    """Shape of the cross-attention that reads a side channel. The defaults are for new recipes."""

    kind: Literal["folded", "official"] = "folded"
    width: Width = 512  # channels inside the attention
    heads: Heads = 4
    layers: Layers = 2  # official only: a folded fusion has one layer
    query: Literal["vision", "projected", "learnable"] = "vision"
    values: Literal["own", "shared"] = "own"  # shared: values are the keys, as in the official code
    rope: Literal["off", "time", "3d"] = "time"  # 3d: time, rows and columns of square grids; 128 channels per head
    head: Literal["linear", "norm"] = "linear"  # norm: the official final LayerNorm, initialised with zero gain
    combine: Literal["add", "interleave", "prefix", "compact"] = "add"
    # compact only: segments of a clip that have a side token each. Omitted if 4, so older files keep their bytes.
    segments: Annotated[int, Field(ge=1, le=1024, exclude_if=lambda count: count == SEGMENTS)] = SEGMENTS
    # Omitted if False, likewise.
    marker: Annotated[bool, Field(exclude_if=operator.not_)] = False  # a learned vector says: pictures, sound or both
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["base", "float32"] = "base"  # compute dtype: the base's; or float32, as the official evaluation

    @model_validator(mode="after")
    def _fits(self) -> FusionConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.rope == "time" and (self.width // self.heads) % 2:
            raise ValueError(f"rope: time needs an even head size, got {self.width}/{self.heads}")
        if self.combine != "compact" and self.segments != SEGMENTS:
            raise ValueError(f"segments={self.segments} is of combine: compact, got {self.combine}; remove the key")
        if self.combine != "add":
            for key in ("kind", "layers", "query", "values", "head"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"combine: {self.combine} inserts tokens and has no {key}; remove the key")
        if self.kind == "folded":
            for key, only in (("head", "linear"), ("values", "own"), ("layers", 2)):
                if getattr(self, key) != only:
                    raise ValueError(f"kind: folded has no {key}: {getattr(self, key)}; use kind: official")
        return self


# Sun et al., "Fine-grained Audio-Visual Joint Representations for Multimodal Large Language Models", arXiv 2310.05863,
# with the values of their inference code; the other presets are PAVE's own.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"slots": 32, "width": 768, "heads": 12, "dropout": 0.1},
    "default": {},
    "tiny": {"queries": 16, "width": 256, "heads": 4},
}


class ResamplerConfig(Config):
    """A causal Q-Former between senses and fusion (FAVOR): it reads all senses of a patch together, step by step, and
    the fusion reads its outputs. `preset: paper | default | tiny` selects the values above; the name alone does too."""

    rate: Annotated[float, Field(gt=0, le=1000)] = 2.0  # steps per second of the clock that all senses are aligned to
    slots: Annotated[int, Field(ge=1, le=4096)] = 25  # maximum tokens of one sense in one step
    window: Annotated[int, Field(ge=1, le=1024)] = 10  # steps per window
    stride: Annotated[int, Field(ge=1, le=1024)] | None = (
        None  # steps between window starts; None: windows do not overlap
    )
    queries: Annotated[int, Field(ge=1, le=4096)] = 32  # outputs per window
    finer: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(max_length=16)
    ] = ()  # shorter windows inside a window, with as many outputs
    width: Width = 512  # channels of a query and of each sense
    heads: Heads = 8
    layers: Layers = 2
    causal_direction: Literal["past", "future", "none"] = "past"  # what a step attends to; future: as in FAVOR's code
    readout: Literal["queries", "states"] = "queries"  # states: the hidden states of the steps, which see no later step
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    diversity: Annotated[float, Field(ge=0, le=1e6)] = (
        0.01  # weight of the loss that makes the outputs of a window differ
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"preset": data}
        if not isinstance(data, dict) or "preset" not in data:
            return data
        given = dict(data)
        name = str(given.pop("preset"))
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
        preset = dict(PRESETS[name])
        if given.get("readout") == "states":
            preset.pop("queries", None)
        return preset | given

    @model_validator(mode="after")
    def _fits(self) -> ResamplerConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if (self.stride or 0) > self.window:
            cause = f"stride={self.stride} skips steps between windows of {self.window}"
            raise ValueError(f"{cause}; use {self.window} or less")
        for steps in self.finer:
            if steps >= self.window or self.window % steps or self.queries * steps % self.window:
                cause = f"finer: windows of {steps} steps do not divide one of {self.window} steps with {self.queries}"
                raise ValueError(f"{cause} queries evenly; use lengths that divide both")
        if len(set(self.finer)) < len(self.finer):
            raise ValueError(f"finer={list(self.finer)} has a duplicate length; list each length once")
        if self.queries == 1 and self.diversity:
            raise ValueError("diversity compares queries, and queries=1; use diversity: 0")
        if self.readout == "states":
            if self.causal_direction != "past":
                raise ValueError(f"readout: states needs causal_direction: past, got {self.causal_direction}")
            for key in ("queries", "finer", "layers", "diversity"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"readout: states outputs the steps themselves and has no {key}; remove the key")
        return self

    @property
    def levels(self) -> dict[int, int]:
        """Steps per window -> outputs per window, shortest windows first."""
        return {steps: self.queries * steps // self.window for steps in sorted((*self.finer, self.window))}

    def __str__(self) -> str:
        outputs = f"{self.queries} outputs" if self.readout == "queries" else "states"
        parts = [f"{outputs} of every {self.window} steps at {self.rate:g} per second", f"width {self.width}"]
        if self.finer:
            parts.append(f"also of every {' and '.join(map(str, self.finer))} steps")
        if self.stride not in (None, self.window):
            parts.append(f"stride {self.stride}")
        if self.causal_direction != "past":
            parts.append("sees later steps" if self.causal_direction == "future" else "sees all steps")
        return ", ".join(parts)

    def channels(self, senses: int) -> int:
        """Channels of the fusion's input."""
        return self.width * (len(self.levels) if self.readout == "queries" else senses)


Rank = Annotated[int, Field(ge=1, le=16_384)]
Alpha = Annotated[float, Field(gt=0)]


class LoraConfig(Config):
    """LoRA of the language model, with the option names of PEFT."""

    r: Rank = 16
    lora_alpha: Alpha = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    target_modules: Annotated[tuple[LayerName, ...], Field(min_length=1, max_length=4_096)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    # By layer, in place of r and lora_alpha: names as in target_modules, of which the longest that matches counts; no
    # regular expressions. Omitted if empty, so older files keep their bytes.
    rank_pattern: Annotated[dict[LayerName, Rank], Field(max_length=4_096, exclude_if=operator.not_)] = {}
    alpha_pattern: Annotated[dict[LayerName, Alpha], Field(max_length=4_096, exclude_if=operator.not_)] = {}

    def __hash__(self) -> int:
        return hash((self.r, self.lora_alpha, self.use_rslora, self.target_modules))

    @model_validator(mode="after")
    def _acts(self) -> LoraConfig:
        least, most = SCALING
        for layer in ("", *self.rank_pattern, *self.alpha_pattern):
            if not least <= self.scaling_of(layer) <= most:
                cause = f"lora_alpha={self.alpha(layer):g} with r={self.rank(layer)} scales LoRA"
                cause += f" by {self.scaling_of(layer):g}{layer and f' in {quoted(layer)}'}"
                raise ValueError(f"{cause}; use a factor from {least:g} to {most:g}")
        return self

    @property
    def scaling(self) -> float:
        """The factor of B·A, as in PEFT, of layers that no pattern names."""
        return self.lora_alpha / self._divisor(self.r)

    def rank(self, layer: str) -> int:
        """The rank of a layer, by its path."""
        return _by_layer(self.rank_pattern, layer, self.r)

    def alpha(self, layer: str) -> float:
        """The lora_alpha of a layer, by its path."""
        return _by_layer(self.alpha_pattern, layer, self.lora_alpha)

    def scaling_of(self, layer: str) -> float:
        """The factor of B·A of a layer, by its path."""
        return self.alpha(layer) / self._divisor(self.rank(layer))

    def truncated(self, rank: int, layers: Iterable[str]) -> LoraConfig:
        """The config with at most `rank` ranks in each of these layers, and the same factors of B·A."""
        kept = {layer: min(self.rank(layer), rank) for layer in layers}
        alphas = {
            layer: self.alpha(layer) if own == self.rank(layer) else self.scaling_of(layer) * self._divisor(own)
            for layer, own in kept.items()
        }
        r = min(self.r, rank)
        alpha = self.lora_alpha if r == self.r else self.scaling * self._divisor(r)
        return self.model_copy(update={"r": r, "lora_alpha": alpha}).with_layers(kept, alphas)

    def with_layers(self, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> LoraConfig:
        """The config with these ranks and alphas by layer, for all of its layers."""
        changes = {"rank_pattern": _pattern(ranks, self.r), "alpha_pattern": _pattern(alphas, self.lora_alpha)}
        return self.model_copy(update=changes)

    def _divisor(self, rank: int) -> float:
        return rank**0.5 if self.use_rslora else rank


V = TypeVar("V", int, float)


def _by_layer(pattern: Mapping[str, V], layer: str, other: V) -> V:
    """The value of the longest name in `pattern` that a layer's path ends with."""
    while pattern and layer:
        if layer in pattern:
            return pattern[layer]
        layer = layer.partition(".")[2]
    return other


def _pattern(values: Mapping[str, V], other: V) -> dict[str, V]:
    """The fewest names that give these layers their values, and `other` to layers that are not named."""
    named = {layer: value for layer, value in values.items() if value != other}
    return {
        layer: value for layer, value in values.items() if value != other or _by_layer(named, layer, other) != value
    }


def resampler_fits(config: Any) -> Any:
    """Raise where a resampler or a marker does not support these senses or this fusion."""
    if config.fusion.marker and not config.senses:
        raise ValueError("fusion.marker is about senses, and there are none; add one, or remove the key")
    if config.resampler is not None:
        if not config.senses:
            raise ValueError("a resampler needs at least one sense; add a sense, or remove resampler")
        if RESAMPLED in config.senses:
            raise ValueError(f"senses.{RESAMPLED}: the name is reserved for resampler outputs; rename the sense")
        if config.fusion.rope == "3d":
            raise ValueError("fusion.rope: 3d needs square grids, which a resampler does not output; use time or off")
        for sense, facts in config.senses.items():
            if facts.align != "time":
                raise ValueError(f"senses.{sense}: a resampler does not support align: {facts.align}; use align: time")
        if config.fusion.combine == "compact":
            raise ValueError("fusion.combine: compact pools the senses itself; use another, or remove resampler")
        if config.resampler.readout == "states" and config.fusion.combine != "add":
            raise ValueError(f"resampler.readout: states needs fusion.combine: add, got {config.fusion.combine}")
    return config


class SenseFacts(SenseConfig):
    """A sense as a patch file records it: its config in the recipe, and the facts of the encoder's spec."""

    dim: Channels  # of one side token
    revision: Short = ""
    licence: Short = ""
    preprocessing: Annotated[Hash, Field(min_length=1)]  # sha256 of the encoder's resolved options
    grid: tuple[Side, Side] = (1, 1)
    # Whether the last three channels of a token are a point in metres. Omitted if False, as in older files.
    points: Annotated[bool, Field(exclude_if=operator.not_)] = False
    # sha256 of the encoder's weights, if feature files record it. Omitted if empty, so older files keep their bytes.
    weights: Annotated[Hash, Field(exclude_if=operator.not_)] = ""


class BaseFacts(Config):
    """The base a patch was made for. `fingerprint` is the hash of the language model's weights."""

    model_type: ModelType
    repo: Text = ""
    revision: Short = ""
    dim: Channels  # of a visual token in the language model
    vision_dim: Annotated[int, Field(ge=0, le=65_536)]  # channels before the projector; 0: not exposed
    tokens_per_frame: Annotated[int, Field(ge=1, le=65_536)]
    frames: Frames
    fingerprint: Hash


def _trained(values: dict[str, Any]) -> dict[str, Any]:
    """Single values; or texts by name, as of the patches below: {"ears": sha256}."""
    for key, value in values.items():
        texts = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        if isinstance(value, dict | list | tuple) and not texts:
            raise ValueError(f"{key} is neither a single value nor texts by name")
    return values


def _laid_out(template: str) -> str:
    if template and (template.count(VIDEO), template.count(QUESTION)) != (1, 1):
        raise ValueError(f"needs {VIDEO} once and {QUESTION} once")
    return template


class PatchConfig(Config):
    """The metadata of a patch file: the resolved recipe, without paths or timestamps."""

    name: Name
    description: Text = ""
    base: BaseFacts
    newline: Literal["end", "grid", "none"] = "end"
    prompt: Annotated[Text, AfterValidator(_laid_out)] = ""  # template with {video} and {question}; "": the base's own
    senses: Annotated[dict[SenseName, SenseFacts], Field(max_length=SENSES)]
    resampler: ResamplerConfig | None = None
    fusion: FusionConfig
    lora: LoraConfig | None = None
    licence: Short = ""  # as its owner chose it; empty: nobody has
    keep_lora_when_absent: bool = False
    # Whether it has a gate, which leaves questions that are not about the clip to the base. Omitted if False, so that
    # older files keep their bytes.
    gate: Annotated[bool, Field(exclude_if=operator.not_)] = False
    # Whether it was trained to act on clips without pictures, too. Omitted likewise.
    sound_alone: Annotated[bool, Field(exclude_if=operator.not_)] = False
    training: Annotated[Facts, AfterValidator(_trained)] = {}

    _resamples = model_validator(mode="after")(resampler_fits)

    @property
    def carries(self) -> bool:
        """Whether it has tokens of its own for clips without pictures, to add to; one that inserts needs none."""
        return self.sound_alone and self.fusion.combine == "add"

    @property
    def replaces(self) -> bool:
        """Whether few tokens of its own stand in place of all visual ones."""
        return self.fusion.combine == "compact"

    @property
    def marked(self) -> tuple[Modality, ...]:
        """The modalities with a learned marker: those that it acts on. Where it has tokens of its own for clips without
        pictures, these are learned already."""
        found: tuple[tuple[Modality, bool], ...] = (
            ("pictures", self.keep_lora_when_absent),
            ("sound", self.sound_alone and not self.carries),
            ("both", True),
        )
        return tuple(each for each, acts in found if acts and self.fusion.marker)

    @property
    def read(self) -> dict[str, int]:
        """Input channels of each fusion by name: the senses, or the outputs of the resampler."""
        if self.resampler is not None:
            return {RESAMPLED: self.resampler.channels(len(self.senses))}
        return {sense: facts.dim for sense, facts in self.senses.items()}

    def canonical(self) -> str:
        """The canonical JSON of this config: sorted keys, no spaces. The key of an absent resampler is omitted, so that
        patches older than resamplers keep their bytes."""
        facts = self.model_dump(mode="json", exclude={"resampler"} if self.resampler is None else None)
        return canonical(facts)
