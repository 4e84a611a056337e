"""Recipes: what a `patch.yaml` asks for, as frozen values that cannot be impossible.

In: a YAML file and `key.sub=value` overrides. Out: a `Recipe`, or a RecipeError that names the key, the value and the
remedy. Knows nothing of tensors, nor of what a patch file records.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from pave.config import Config, FusionConfig, LoraConfig, ResamplerConfig, SenseConfig, SenseName, parse, resampler_fits
from pave.errors import RecipeError

# What carries the answers of the Playroom.
AskedChannel = Literal[
    "video",
    "audio",
    "audio+video",
    "order",
    "fast",
    "fast+video",
    "audio+fast",
    "audio+fast+video",
    "views",
    "views+video",
    "depth",
    "imu",
    "imu+video",
    "speech",
    "speech+video",
    "match",
]
Channel = Literal[AskedChannel, "caption"]  # caption: everything at once, for training


class PlayroomData(Config):
    """Clips of the synthetic world, written as real mp4 files before training."""

    clips: Annotated[int, Field(ge=8)] = 1200
    seed: int = 0
    channels: tuple[Channel, ...] = ("video", "audio", "audio+video", "order", "caption")

    @model_validator(mode="after")
    def _asks(self) -> PlayroomData:
        if not set(self.channels) - {"caption"}:
            raise ValueError("channels needs one beside caption, for held-out questions")
        return self


class DataConfig(Config):
    """Either files of your own (JSONL), or clips of the Playroom."""

    train: Path | None = None  # JSONL; media paths are relative to its folder
    val: Path | None = None
    playroom: PlayroomData | None = None
    features: tuple[Path, ...] = ()  # folders of feature files, as `pave encode` writes them: used instead of encoding

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.train is None) == (self.playroom is None):
            raise ValueError(
                "data needs exactly one of train: FILE.jsonl and playroom: {...}; "
                "data.playroom=null leaves the Playroom"
            )
        if self.playroom and self.val:
            raise ValueError("data.playroom writes its own held-out questions; leave out val")
        return self


PATCHES = ("on_top_of", "start_from")  # keys of `train` that name patches


class TrainConfig(Config):
    """One run. Rates are those of AdamW at their peak; the schedule is a linear warm-up, then a cosine to zero."""

    steps: Annotated[int, Field(ge=1)] = 300
    batch: Annotated[int, Field(ge=1)] = 32  # clips per step; all questions of a clip share its prefill
    fusion_lr: Annotated[float, Field(gt=0, le=1)] = 3e-3
    resampler_lr: Annotated[float, Field(gt=0, le=1)] = 3e-4  # at the fusion's rate it learns several times more slowly
    lora_lr: Annotated[float, Field(gt=0, le=1)] = 3e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the steps
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen base; the patch itself always trains in float32
    eval_every: Annotated[int, Field(ge=1)] = 100  # steps between looks at the held-out questions
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    gradient_checkpointing: bool = (
        False  # recompute the language model's layers instead of keeping them: slower, smaller
    )
    keep_lora_when_absent: bool = False  # recorded in the patch, then holds at inference too
    on_top_of: tuple[str, ...] = ()  # patches that are applied, frozen, while this one is trained
    start_from: str | None = None  # a patch of the same shape, whose weights training begins with; None: untrained ones
    output: Path | None = None  # None: runs/<name of the recipe>


class Released(Config):
    """A checkpoint that the authors of PAVE released for a recipe: a file on the Hub, for bases of one width."""

    dim: int  # channels of a visual token in the language model
    repo: str
    file: str
    revision: str | None = None


class Recipe(Config):
    """Everything needed to train a patch."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=96)]
    description: str = ""
    base: str = "playroom"
    frames: Annotated[int, Field(ge=1)] | None = None  # key frames; None: what the base was trained with
    newline: Literal["end", "grid", "none"] | None = None  # behind the visual tokens; None: as the base has it
    senses: Annotated[dict[SenseName, SenseConfig], Field(min_length=1)]
    resampler: ResamplerConfig | None = None
    fusion: FusionConfig = FusionConfig()
    lora: LoraConfig | None = LoraConfig()
    licence: str = "apache-2.0"
    data: DataConfig
    train: TrainConfig = TrainConfig()
    released: tuple[Released, ...] = ()  # what `apply_patch` fetches and converts; no part of a training run

    _resamples = model_validator(mode="after")(resampler_fits)

    @property
    def output(self) -> Path:
        """The folder that a run writes to."""
        return self.train.output or Path("runs") / self.name


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read `patch.yaml`, then apply `key.sub=value` overrides (values are YAML). Data files that the recipe names are
    found from its own folder, and so are patches that it builds on; those of overrides from here."""
    path = Path(path)
    path = path / "patch.yaml" if path.is_dir() else path
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; give a patch.yaml, its folder, or a name in patches/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); a recipe is a UTF-8 YAML file") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys, got {type(data).__name__}")
    files = data.get("data")
    if isinstance(files, dict):
        data["data"] = {k: _beside(path.parent, v) if k != "playroom" else v for k, v in files.items()}
    train = data.get("train")
    if isinstance(train, dict):
        data["train"] = {k: _patches(path.parent, v) if k in PATCHES else v for k, v in train.items()}
    for words in overrides:
        override(data, words)
    return parse(Recipe, data, path)


def _patches(folder: Path, named: Any) -> Any:
    """Patches as found from a folder, where they are files or folders there."""
    if isinstance(named, list):
        return [_patches(folder, each) for each in named]
    return str(folder / named) if isinstance(named, str) and (folder / named).exists() else named


def _beside(folder: Path, named: Any) -> Any:
    """Paths as found from a folder."""
    if isinstance(named, list):
        return [_beside(folder, each) for each in named]
    return str(folder / named) if isinstance(named, str) else named


def overridden(words: Iterable[str]) -> dict[str, Any]:
    """A mapping of nothing but overrides, as options of an encoder on the command line."""
    data: dict[str, Any] = {}
    for each in words:
        override(data, each)
    return data


def override(data: dict[str, Any], words: str) -> None:
    """Put `key.sub=value` into a mapping; the value is YAML."""
    key, equals, value = words.partition("=")
    if not equals or not key:
        raise RecipeError(f"{words!r} is not key.sub=value; write for example train.steps=100")
    *parents, last = key.split(".")
    if not all((*parents, last)):
        raise RecipeError(f"{words!r} has an empty part; write for example train.steps=100")
    for parent in parents:
        if not isinstance(data.setdefault(parent, {}), dict):
            raise RecipeError(f"{key}: {parent!r} holds a value, not a mapping")
        data = data[parent]
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"{words!r}: the value is not YAML ({' '.join(str(error).split())})") from None
