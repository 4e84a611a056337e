"""What a patch is made of, and what its file says of itself, as frozen values that cannot be impossible.

In: a mapping (from a recipe or from a patch file's header). Out: a frozen pydantic model, or a RecipeError that
names the key, the value and the remedy. Knows nothing of tensors; dimensions of a base are read from it, never typed.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pave.errors import RecipeError, nearest


class Config(BaseModel):
    """Frozen, keyword-only, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


RESAMPLED = "resampled"  # what the one fusion of a patch with a resampler is called
SenseName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class SenseConfig(Config):
    """One side channel of a patch: which signal, read by which encoder, put on which key frame how."""

    encoder: str  # name of a file in encoders/
    options: dict[str, Any] = {}  # the encoder's own options
    align: Literal["time", "index"] = "time"  # index: the official split rule, for converted patches


class FusionConfig(Config):
    """Shape of the cross-attention that reads a side channel. The defaults are those of new recipes."""

    kind: Literal["folded", "official"] = "folded"
    width: Annotated[int, Field(ge=1)] = 512  # channels inside the attention
    heads: Annotated[int, Field(ge=1)] = 4
    layers: Annotated[int, Field(ge=1)] = 2  # official only: a folded fusion has one
    query: Literal["vision", "projected", "learnable"] = "vision"
    values: Literal["own", "shared"] = "own"  # shared: values are the keys, as in the authors' code
    rope: Literal["off", "time", "3d"] = "time"
    head: Literal["linear", "norm"] = "linear"  # norm: the authors' last LayerNorm with zero gain
    combine: Literal["add", "interleave", "prefix"] = "add"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["base", "float32"] = "base"  # what it computes in: the base's dtype; or as the authors evaluate

    @model_validator(mode="after")
    def _fits(self) -> FusionConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if self.rope == "time" and (self.width // self.heads) % 2:
            raise ValueError(f"rope: time needs an even head size, got {self.width}/{self.heads}")
        if self.combine != "add":
            for key in ("kind", "layers", "query", "values", "head"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"combine: {self.combine} has no {key}; it puts tokens beside the visual ones")
        if self.kind == "folded":
            for key, only in (("head", "linear"), ("values", "own"), ("layers", 2)):
                if getattr(self, key) != only:
                    raise ValueError(f"kind: folded has no {key}: {getattr(self, key)}; use kind: official")
        return self


# Sun et al., "Fine-grained Audio-Visual Joint Representations for Multimodal Large Language Models", arXiv 2310.05863,
# as their inference code ships it; the others are ours.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"slots": 32, "width": 768, "heads": 12, "dropout": 0.1},
    "default": {},
    "tiny": {"queries": 16, "width": 256, "heads": 4},
}


class ResamplerConfig(Config):
    """A causal Q-Former between senses and fusion (FAVOR): it reads all senses of a patch together, step by step, and
    the fusion reads what it makes of them. `preset: paper | default | tiny` stands for the values above, and so does
    such a word alone."""

    rate: Annotated[float, Field(gt=0, le=1000)] = 2.0  # steps per second of the clock that all senses are put on
    slots: Annotated[int, Field(ge=1, le=4096)] = 25  # tokens of one sense in one step, at most
    window: Annotated[int, Field(ge=1, le=1024)] = 10  # steps that are looked at together
    stride: Annotated[int, Field(ge=1)] | None = None  # steps from window to window; None: they do not overlap
    queries: Annotated[int, Field(ge=1, le=4096)] = 32  # outputs of a window
    finer: tuple[Annotated[int, Field(ge=1)], ...] = ()  # shorter windows inside a window, with as many outputs in all
    width: Annotated[int, Field(ge=1)] = 512  # channels of a query, and of each sense
    heads: Annotated[int, Field(ge=1)] = 8
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    causal_direction: Literal["past", "future", "none"] = "past"  # what a step sees; future: as its authors ship it
    readout: Literal["queries", "states"] = "queries"  # states: the steps themselves, which know nothing of later ones
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    diversity: Annotated[float, Field(ge=0)] = 0.01  # weight of the loss that keeps a window's outputs apart

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
            raise ValueError(f"no preset {name!r}; {nearest(name, PRESETS)}")
        preset = dict(PRESETS[name])
        if given.get("readout") == "states":
            preset.pop("queries", None)
        return preset | given

    @model_validator(mode="after")
    def _fits(self) -> ResamplerConfig:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        if (self.stride or 0) > self.window:
            cause = f"stride={self.stride} leaves steps out between windows of {self.window}"
            raise ValueError(f"{cause}; use {self.window} or less")
        for steps in self.finer:
            if steps >= self.window or self.window % steps or self.queries * steps % self.window:
                cause = f"finer: windows of {steps} steps do not lie evenly in one of {self.window} with {self.queries}"
                raise ValueError(f"{cause} queries; take shorter ones that divide it, and queries that they share")
        if len(set(self.finer)) < len(self.finer):
            raise ValueError(f"finer={list(self.finer)} names a length twice")
        if self.queries == 1 and self.diversity:
            raise ValueError("one query has no other to be kept apart from; use diversity: 0")
        if self.readout == "states":
            if self.causal_direction != "past":
                raise ValueError(f"readout: states is for causal_direction: past, got {self.causal_direction}")
            for key in ("queries", "finer", "layers", "diversity"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"readout: states has no {key}; it reads the steps themselves: leave it out")
        return self

    @property
    def levels(self) -> dict[int, int]:
        """Steps of a window -> outputs of a window, the shortest windows first."""
        return {steps: self.queries * steps // self.window for steps in sorted((*self.finer, self.window))}

    def __str__(self) -> str:
        outputs = f"{self.queries} outputs" if self.readout == "queries" else "states"
        words = [f"{outputs} of every {self.window} steps at {self.rate:g} per second", f"width {self.width}"]
        if self.finer:
            words.append(f"also of every {' and '.join(map(str, self.finer))} steps")
        if self.stride not in (None, self.window):
            words.append(f"begun every {self.stride}")
        if self.causal_direction != "past":
            words.append("sees later steps" if self.causal_direction == "future" else "sees all steps")
        return ", ".join(words)

    def channels(self, senses: int) -> int:
        """Of what the fusion reads."""
        return self.width * (len(self.levels) if self.readout == "queries" else senses)


class LoraConfig(Config):
    """LoRA of the language model, in PEFT's own words."""

    r: Annotated[int, Field(ge=1)] = 16
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    @property
    def scaling(self) -> float:
        """What PEFT multiplies B·A by."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


def resampler_fits(config: Any) -> Any:
    """Refuse what a resampler cannot do for these senses and this fusion."""
    if config.resampler is not None:
        if not config.senses:
            raise ValueError("a resampler needs a sense to read; add one, or leave it out")
        if RESAMPLED in config.senses:
            raise ValueError(f"senses.{RESAMPLED}: what a resampler makes has this name; take another")
        if config.fusion.rope == "3d":
            raise ValueError("fusion.rope: 3d needs square grids, which no resampler gives; use time or off")
        for sense, facts in config.senses.items():
            if facts.align != "time":
                raise ValueError(f"senses.{sense}: a resampler knows no align: {facts.align}; use align: time")
        if config.resampler.readout == "states" and config.fusion.combine != "add":
            raise ValueError(f"resampler.readout: states is for combine: add, got {config.fusion.combine}")
    return config


class SenseFacts(SenseConfig):
    """A sense as a patch file records it: the recipe's words and what the encoder said of itself."""

    dim: Annotated[int, Field(ge=1)]  # channels of one side token
    revision: str = ""
    licence: str = ""
    preprocessing: Annotated[str, Field(min_length=1)]  # sha256 of the encoder's resolved options
    grid: tuple[int, int] = (1, 1)
    # Whether the last three channels of a token are a point in metres. Unsaid where not, as in older files.
    points: Annotated[bool, Field(exclude_if=operator.not_)] = False
    # sha256 of the encoder's weights, where feature files told it; written only then: older files keep their bytes
    weights: Annotated[str, Field(exclude_if=operator.not_)] = ""


class BaseFacts(Config):
    """The base a patch was made for. `fingerprint` is the hash of the language model's weights."""

    model_type: str
    repo: str = ""
    revision: str = ""
    dim: int  # channels of a visual token in the language model
    vision_dim: int  # channels before the projector
    tokens_per_frame: int
    frames: int
    fingerprint: str


class PatchConfig(Config):
    """What a patch file says of itself: the resolved recipe, without paths or time stamps."""

    name: str
    description: str = ""
    base: BaseFacts
    newline: Literal["end", "grid", "none"] = "end"
    prompt: str = ""  # template with {video} and {question}
    senses: dict[SenseName, SenseFacts]
    resampler: ResamplerConfig | None = None
    fusion: FusionConfig
    lora: LoraConfig | None = None
    licence: str = "apache-2.0"
    keep_lora_when_absent: bool = False
    training: dict[str, Any] = {}

    _resamples = model_validator(mode="after")(resampler_fits)

    @property
    def read(self) -> dict[str, int]:
        """What the fusions read, each with its channels: the senses; or what a resampler makes of them all."""
        if self.resampler is not None:
            return {RESAMPLED: self.resampler.channels(len(self.senses))}
        return {sense: facts.dim for sense, facts in self.senses.items()}

    def canonical(self) -> str:
        """The one JSON text of this config: sorted keys, no spaces. It says nothing of a resampler that is not there:
        patches from before there were any keep their bytes."""
        facts = self.model_dump(mode="json", exclude={"resampler"} if self.resampler is None else None)
        return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


C = TypeVar("C", bound=Config)


def parse(kind: type[C], data: Mapping[str, Any], source: str | Path) -> C:
    """Validate `data` as `kind`; `source` is the file that the error will name."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{source}: " + "; ".join(_sentence(kind, item) for item in error.errors())) from None


# For pydantic's words, which are of Python's types and not of a recipe.
WANTED = {
    "dict_type": "write a mapping: {NAME: ...}",
    "tuple_type": "write a list: [...]",
    "string_type": "give a text",
    "path_type": "give a path",
    "bool_parsing": "give true or false",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "give a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "give a number"),
}


def _sentence(kind: type[Config], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or kind.__name__.lower()
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        return f"{where}: unknown key; {nearest(str(key), _keys(kind, parents))}"
    if error["type"] == "missing":
        return f"{where}: missing; add it"
    wanted = WANTED.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "model_type":
        wanted = f"write a mapping: {{{', '.join(f'{key}: ...' for key in _keys(kind, error['loc'])[:2])}}}"
    return f"{where}={error['input']!r}: {wanted}"


def _keys(kind: type[Config], parents: Iterable[Any]) -> list[str]:
    """The keys allowed at a place; steps through dict values (senses.<any name>) by their value type."""
    for parent in parents:
        field = kind.model_fields.get(parent)
        nested = _config_in(field.annotation) if field else None
        kind = nested or kind
    return list(kind.model_fields)


def _config_in(annotation: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    found = [_config_in(arg) for arg in getattr(annotation, "__args__", ())]
    return next((kind for kind in found if kind), None)
