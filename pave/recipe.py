"""Recipes: the contents of a `patch.yaml`, as validated, frozen values.

In: a YAML file and `key.sub=value` overrides. Out: a `Recipe`, or a RecipeError that names the key, the value and the
remedy. Knows nothing of tensors and of the metadata of patch files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from pave.config import (
    SENSES,
    Frames,
    FusionConfig,
    LoraConfig,
    Modality,
    Name,
    ResamplerConfig,
    SenseConfig,
    SenseName,
    Short,
    Text,
    resampler_fits,
)
from pave.data_sets import DataConfig
from pave.errors import RecipeError
from pave.files.atomic import opened
from pave.files.json_text import canonical
from pave.files.validation import Config, parse
from pave.text.shown import counted, quoted
from pave.text.yaml_text import LONGEST, yaml_value

FILES = ("train", "val", "features", "keep")  # keys of `data` that name files
PATCHES = ("on_top_of", "start_from")  # keys of `train` that name patches


def _younger(default: Any) -> Any:
    """Of a key that is omitted from a resolved recipe if it is the default, so that earlier ones keep their hashes."""
    return Field(exclude_if=lambda value: value == default)


Rate = Annotated[float, Field(ge=0, le=1)]
Epochs = Annotated[float, Field(gt=0, le=10_000)]
Count = Annotated[int, Field(ge=1)]
Warmup = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "constant"]
Beta = Annotated[float, Field(ge=0, lt=1)]
# Rates of the fusion and LoRA that a recipe does not give, by the channels of the base. Those of narrow ones were found
# with the embedded base, of 128 channels, and that of the fusion suits SmolLM2's 576, too (benchmarks/real); the PAVE
# authors train 896 and 3,584 channels with 2e-5 (arXiv 2503.19794).
WIDE = 896
NARROW_RATE, WIDE_RATE = 3e-3, 2e-5


MODALITIES: tuple[Modality, ...] = get_args(Modality)
Share = Annotated[float, Field(ge=0, le=1)]


class Match(Config):
    """Clips that are asked whether their sound belongs to their pictures: half of them have that of another clip."""

    share: Share = 0.1  # of those trained with both; video-SALMONN's (Sun et al., ICML 2024)
    question: Annotated[str, Field(min_length=1, max_length=1_000)] = "Does the sound belong to the pictures?"
    same: Annotated[str, Field(min_length=1, max_length=100)] = "Yes."  # the answer where it does
    other: Annotated[str, Field(min_length=1, max_length=100)] = "No."


class Modalities(Config):
    """How often a clip that has pictures and sound is trained with what. `sound`: with any sense of the patch. Shares
    are those of Audio-Visual LLM's data (130, 45 and 85 of 260 thousand), and need not add up to 1."""

    pictures: Share = 0.5
    sound: Share = 0.17
    both: Share = 0.33
    # channel of the data -> what its questions need: they are not asked without it. Others are asked in any case.
    needs: dict[str, Modality] = Field(default={}, max_length=1_000)
    # Share of clips trained with both that get the sound of another clip, and questions that need one of the two only.
    unpaired: Share = 0.0
    match: Match | None = None

    @model_validator(mode="after")
    def _draws(self) -> Modalities:
        if (self.unpaired or self.match) and not self.both:
            raise ValueError("unpaired and match are about clips that are trained with both; give both a share")
        if self.unpaired and not {"pictures", "sound"} & {*self.needs.values()}:
            cause = "unpaired asks what needs pictures alone, or sound alone"
            raise ValueError(f"{cause}; name channels of the data for either in needs")
        if self.unpaired + (self.match.share if self.match else 0) > 1:
            raise ValueError("unpaired and match.share are more than all clips; lower one of them")
        if not self.pictures + self.sound + self.both:
            raise ValueError("pictures, sound and both are 0, so there is nothing to draw; give one of them a share")
        return self

    def need(self, facts: Mapping[str, Any]) -> Modality | None:
        """What a question needs, by the other keys of its record."""
        return self.needs.get(str(facts.get("channel", "")))


class Stage(Config):
    """A part of a run that has some values of `train` to itself. An omitted key is that of `train`."""

    steps: Count | None = None
    epochs: Epochs | None = None  # in place of steps
    batch: Count | None = None
    fusion_lr: Rate | None = None  # 0: this part of the patch does not learn
    resampler_lr: Rate | None = None
    lora_lr: Rate | None = None
    warmup: Warmup | None = None  # fraction of the steps of the stage
    schedule: Schedule | None = None
    modalities: Modalities | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What differs from `train`."""
        return {key: value for key, value in self if value is not None}


Trackers = Annotated[tuple[Literal["tensorboard", "trackio", "wandb"], ...], _younger(())]


class TrainConfig(Config):
    """One run of AdamW. Learning rates are peaks of the schedule, which begins with a linear warm-up."""

    steps: Count | None = 300  # null where epochs are given
    batch: Count = 32  # clips per step; all questions of a clip share its prefill
    epochs: Annotated[Epochs | None, _younger(None)] = None  # in place of steps; rounded up to whole steps
    accumulate: Annotated[Count, _younger(1)] = 1  # parts in which a step goes through the base
    # In place of accumulate; with the visual tokens, questions, answers and padding. One clip alone may have more.
    micro_batch: Annotated[Count | None, _younger(None)] = None  # most tokens of such a part
    fusion_lr: Rate | None = None  # None: 3e-3 for bases below 896 channels, 2e-5 for others; 0: it does not learn
    resampler_lr: Rate = 3e-4  # at the fusion's rate it learns several times more slowly
    lora_lr: Rate | None = None  # likewise
    schedule: Annotated[Schedule, _younger("cosine")] = "cosine"  # after the warm-up; cosine and linear fall to zero
    warmup: Warmup = 0.05  # fraction of the steps
    betas: Annotated[tuple[Beta, Beta], _younger((0.9, 0.98))] = (0.9, 0.98)  # of AdamW; PyTorch's own are 0.9, 0.999
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    stages: Annotated[tuple[Stage, ...], Field(max_length=16), _younger(())] = ()  # in place of steps
    # Weight of a question that needs no sense, on which the base is kept, beside one of the data; 0: none is asked.
    keep: Annotated[float, Field(ge=0, le=1000)] = 1.0
    modalities: Annotated[Modalities | None, _younger(None)] = None  # train with pictures, sound or both, by turns
    gate: bool = True  # fit a gate, which leaves questions that are not about the clip to the base
    mean_over: Literal["questions", "tokens"] = "questions"  # tokens: a long answer weighs more than a short one
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen base; the patch itself always trains in float32
    quantize: Annotated[Literal["int8", "nf4"] | None, _younger(None)] = (
        None  # the frozen language model in 8 or 4 bits
    )
    shard: Annotated[bool, _younger(False)] = False  # divide the frozen language model among the processes of torchrun
    eval_every: Count = 100  # steps between evaluations on the held-out questions
    best: Annotated[bool, _younger(False)] = False  # the patch is that of the best evaluation, not of the last step
    checkpoint_every: Count = 100
    gradient_checkpointing: bool = False  # recompute activations of the language model: slower, less memory
    keep_lora_when_absent: bool = False  # recorded in the patch, and applies to inference too
    on_top_of: tuple[str, ...] = ()  # frozen patches that are applied while this one trains
    start_from: str | None = None  # patch to initialise from; a LoRA of another shape begins anew; None: fresh
    trackers: Trackers = ()  # tensorboard, trackio, wandb: show the figures of log.jsonl there, too
    output: Path | None = None  # None: runs/<name of the recipe>

    @model_validator(mode="before")
    @classmethod
    def _length(cls, data: Any) -> Any:
        """The default number of steps is for recipes that give neither."""
        if isinstance(data, Mapping) and (data.get("epochs") is not None or data.get("stages")):
            return {"steps": None, **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.quantize and self.shard:
            raise ValueError("quantize and shard exclude each other: quantised weights are not divided; remove one")
        lengths = [self.steps, self.epochs, self.stages or None]
        if sum(each is not None for each in lengths) != 1:
            raise ValueError(
                f"steps={self.steps}, epochs={self.epochs}, {len(self.stages)} stages: a run has one length; give "
                "exactly one (steps=null, epochs=null and stages=[] remove the others)"
            )
        for number, stage in enumerate(self.stages, 1):
            if (stage.steps is None) == (stage.epochs is None):
                raise ValueError(f"stage {number} of stages needs exactly one of steps and epochs")
        if self.accumulate > 1 and self.micro_batch is not None:
            raise ValueError(
                f"accumulate={self.accumulate} divides a step by clips, micro_batch={self.micro_batch} by tokens; "
                "use one of them"
            )
        least = min(part.batch for part in self.parts)
        if self.accumulate > least:
            raise ValueError(f"accumulate={self.accumulate}: a step of batch={least} has no so many parts")
        return self

    @property
    def parts(self) -> tuple[TrainConfig, ...]:
        """The stages, each with all its values; or this one."""
        return tuple(self.model_copy(update={"stages": (), **each.given}) for each in self.stages) or (self,)

    @property
    def matches(self) -> tuple[Match, ...]:
        """What clips are asked about whether their sound belongs to them, in some step."""
        parts = (part.modalities for part in self.parts)
        return tuple(each.match for each in parts if each and each.match)

    @property
    def sound_alone(self) -> bool:
        """Whether clips are trained with their sound alone in some step."""
        return any(part.modalities and part.modalities.sound for part in self.parts)

    @property
    def length(self) -> str:
        """How long a run is, as text."""
        lengths = [f"{part.steps}" if part.steps else f"epochs: {part.epochs:g}, in" for part in self.parts]
        sizes = [counted(part.batch, "clip") for part in self.parts]
        return ", then ".join(f"{each} steps of {size}" for each, size in zip(lengths, sizes, strict=True))

    def on(self, channels: int) -> TrainConfig:
        """The same with the rates for a base of so many channels, where none are given."""
        rate = NARROW_RATE if channels < WIDE else WIDE_RATE
        return self.model_copy(update={key: rate for key in ("fusion_lr", "lora_lr") if getattr(self, key) is None})

    def facts(self, exclude: set[str]) -> dict[str, Any]:
        """What a patch file records: single values, or texts by name."""
        facts = self.model_dump(mode="json", exclude=exclude)
        if "betas" in facts:
            facts["betas"] = ", ".join(map(str, self.betas))
        if self.modalities:
            facts["modalities"] = {key: canonical(each) for key, each in self.modalities.model_dump().items()}
        if self.stages:
            facts["stages"] = {
                str(i): canonical(each.model_dump(exclude_none=True)) for i, each in enumerate(self.stages, 1)
            }
        return facts


class Released(Config):
    """An official checkpoint for a recipe: a file on the Hub, for bases of one width."""

    dim: int  # channels of a visual token in the language model
    repo: str
    file: str
    revision: str | None = None


class Recipe(Config):
    """Everything needed to train a patch."""

    name: Name
    description: Text = ""
    base: str = "playroom"
    frames: Frames | None = None  # key frames; None: as the base was trained
    newline: Literal["end", "grid", "none"] | None = None  # layout of newline tokens; None: the base's own
    senses: Annotated[dict[SenseName, SenseConfig], Field(min_length=1, max_length=SENSES)]
    resampler: ResamplerConfig | None = None
    fusion: FusionConfig = FusionConfig()
    lora: LoraConfig | None = LoraConfig()
    licence: Short = "apache-2.0"  # recorded in the patch only if the recipe has the key
    data: DataConfig
    train: TrainConfig = TrainConfig()
    released: tuple[Released, ...] = ()  # what `apply_patch` downloads and converts; not used in training

    _resamples = model_validator(mode="after")(resampler_fits)

    @model_validator(mode="after")
    def _keeps(self) -> Recipe:
        if self.data.keep and not self.train.keep:
            raise ValueError("data.keep has questions, and train.keep=0 asks none; remove one of them")
        return self

    @model_validator(mode="after")
    def _learns(self) -> Recipe:
        trained = ["fusion_lr", *(["lora_lr"] if self.lora else []), *(["resampler_lr"] if self.resampler else [])]
        for part in self.train.parts:
            if all(getattr(part, key) == 0 for key in trained):
                raise ValueError(f"{' and '.join(trained)} are 0, so nothing learns; give one of them a rate")
        if self.train.best and not (self.data.val or self.data.playroom):
            raise ValueError("train.best chooses by held-out questions, and there are none; give data.val")
        return self

    @property
    def output(self) -> Path:
        """The output folder of a run."""
        return self.train.output or Path("runs") / self.name


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read `patch.yaml`, then apply `key.sub=value` overrides (values are YAML). Relative paths in the
    recipe are resolved against its folder; those in overrides against the working directory."""
    path = Path(path)
    path = path / "patch.yaml" if os.path.isdir(path) else path
    try:
        data = yaml_value(_text(path))
    except FileNotFoundError:
        raise RecipeError(f"{path}: recipe not found; pass a patch.yaml, its folder, or a name in patches/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); a recipe is a UTF-8 YAML file") from None
    except ValueError as error:
        raise RecipeError(f"{path}, {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe must be a mapping of keys, got {type(data).__name__}")
    files = data.get("data")
    if isinstance(files, dict):
        data["data"] = {k: _beside(path.parent, v) if k in FILES else v for k, v in files.items()}
    train = data.get("train")
    if isinstance(train, dict):
        data["train"] = {k: _patches(path.parent, v) if k in PATCHES else v for k, v in train.items()}
    for each in overrides:
        override(data, each)
    return parse(Recipe, data, path)


def _text(path: Path) -> str:
    """The text of a file, or a beginning that is too long."""
    with opened(path) as file, TextIOWrapper(file, "utf-8") as text:
        return text.read(LONGEST + 1)


def _patches(folder: Path, named: Any) -> Any:
    """Resolve patches against a folder if they exist there; catalogue and Hub names stay."""
    if isinstance(named, list):
        return [_patches(folder, each) for each in named]
    return str(folder / named) if isinstance(named, str) and os.path.exists(folder / named) else named


def _beside(folder: Path, named: Any) -> Any:
    """Resolve paths against a folder; in a data set, those of its files."""
    if isinstance(named, list):
        return [_beside(folder, each) for each in named]
    if isinstance(named, dict):
        maps = named.get("maps")
        placed = {key: _beside(folder, named[key]) for key in ("file", "media") if key in named}
        placed |= {"maps": {key: _beside(folder, each) for key, each in maps.items()}} if isinstance(maps, dict) else {}
        return named | placed
    return str(folder / named) if isinstance(named, str) else named


def overridden(overrides: Iterable[str]) -> dict[str, Any]:
    """A mapping built from overrides alone, such as encoder options of the command line."""
    data: dict[str, Any] = {}
    for each in overrides:
        override(data, each)
    return data


def override(data: dict[str, Any], text: str) -> None:
    """Set `key.sub=value` in a mapping; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{text!r} is not key.sub=value; write for example train.steps=100")
    *parents, last = key.split(".")
    if not all((*parents, last)):
        raise RecipeError(f"{text!r} has an empty key; write for example train.steps=100")
    for parent in parents:
        if not isinstance(data.setdefault(parent, {}), dict):
            raise RecipeError(f"{key}: {parent!r} is a value, not a mapping; check the key")
        data = data[parent]
    try:
        data[last] = yaml_value(value)
    except ValueError as error:
        cause = str(error).removeprefix("line 1: ")
        raise RecipeError(f"{quoted(text)}: the value is not YAML of a recipe: {cause}") from None
