"""The clips of a run: read and encoded once, their questions as token ids, and rows of them for a step.

In: a `Setup`. Out: a `Dataset`; clips that cannot be read are left out and told.

b clips of a step, l tokens of a row
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor

from pave.base import Host
from pave.data import Example, Source, collate, pack, read_jsonl, unread
from pave.encoder import Encoder
from pave.errors import DataError
from pave.features.cache import FeatureCache, OnClip
from pave.model.applied import Names
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.patched import PatchedModel
from pave.playroom.writer import write_clips
from pave.recipe import DataConfig
from pave.training.setup import Setup

Turn = tuple[list[int], list[int]]  # ids of a question behind the video, and of its answer with the end of the turn


@dataclass(frozen=True)
class TrainingClip:
    """One clip and everything that is asked about it."""

    features: ClipFeatures
    examples: tuple[Example, ...]
    turns: tuple[Turn, ...]  # of the examples

    def has(self, encoder: Encoder) -> bool:
        """Whether the clip has what an encoder reads."""
        side = self.features.sides[encoder.spec.preprocessing]
        return side is not None and side.present


@dataclass(frozen=True)
class Dataset:
    """The clips that could be read, for training and held out, and what became of the others."""

    train: list[TrainingClip]
    val: list[TrainingClip]
    senses: dict[str, Encoder]  # those that are trained
    refused: dict[Source, str]  # clips that cannot be read, and why
    unread: list[str]  # signals of clips that no encoder reads
    seconds: dict[str, float]  # that each step took

    @property
    def questions(self) -> int:
        """How many are learned from."""
        return sum(len(clip.examples) for clip in self.train)

    def remarks(self) -> list[str]:
        """What clips lack of the senses, and which of their signals nobody reads."""
        count = len(self.train) + len(self.val)
        lacking = [(sense, why) for sense, why in self.absent().items() if why]
        return [*(f"{len(why)} of {count} clips have no {sense} ({why[0]})" for sense, why in lacking), *self.unread]

    def absent(self) -> dict[str, list[str]]:
        """Of every sense that is trained: why clips lack it, a reason for each of them."""
        return {
            sense: [
                clip.features.absent.get(encoder.spec.preprocessing, "absent: nothing in it can be read")
                for clip in (*self.train, *self.val)
                if not clip.has(encoder)
            ]
            for sense, encoder in self.senses.items()
        }

    def sensing(self) -> list[TrainingClip]:
        """Clips to learn from that have one of the senses."""
        return [clip for clip in self.train if any(clip.has(encoder) for encoder in self.senses.values())]


def see(setup: Setup, clips: int | None = None, seeing: OnClip | None = None) -> Dataset:
    """Read the questions, then see every clip once; `clips`: how many to use, None: all."""
    setup.recipe.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    train_file, val_file = data_files(setup.recipe.data, setup.recipe.output)
    written = time.perf_counter()
    asked = [read_jsonl(file) for file in (train_file, val_file) if file]  # both, before anything is looked at
    train = _ask_all(setup, train_file, asked[0], clips, seeing)
    val = _ask_all(setup, val_file, asked[1], clips, seeing) if val_file else []
    seconds = {"clips": written - begin, "features": time.perf_counter() - written}
    idle = unread(chain(*asked), setup.streams)
    dataset = Dataset(train, val, dict(setup.senses), setup.store.refused, idle, seconds)
    if not setup.recipe.train.keep_lora_when_absent and not dataset.sensing():
        why = "; ".join(sorted({why for clip in train for why in clip.features.absent.values()})[:3])
        raise DataError(
            f"{train_file}: none of its {len(train)} clips has {' or '.join(setup.senses)} ({why}), so there is "
            f"nothing to learn from; {'; '.join(idle) or 'give clips that have'}"
        )
    return dataset


def data_files(data: DataConfig, folder: Path) -> tuple[Path, Path | None]:
    """The JSONL files of a recipe; Playroom clips are written first."""
    if data.playroom is None:
        assert data.train is not None  # the config allows no third case
        return data.train, data.val
    world = data.playroom
    clips = folder / "clips"
    asked = [channel for channel in world.channels if channel != "caption"]  # nobody is asked to tell everything
    return (
        write_clips(clips, world.clips, world.seed, "train", world.channels),
        write_clips(clips, max(8, world.clips // 10), world.seed, "val", asked),
    )


def _ask_all(
    setup: Setup, file: Path, examples: Sequence[Example], limit: int | None, seeing: OnClip | None
) -> list[TrainingClip]:
    """Every clip that can be read, with its questions."""
    by_clip: dict[Source, list[Example]] = {}
    for example in examples:
        by_clip.setdefault(example.source, []).append(example)
    sources = list(by_clip)[:limit]
    store: FeatureCache = setup.store
    seen = store.read(sources, seeing)
    if not seen:
        raise DataError(f"{file}: none of its {len(sources)} clips can be read; the first: {store.refused[sources[0]]}")
    return [training_clip(setup.model.host, features, by_clip[source]) for source, features in seen.items()]


def training_clip(host: Host, features: ClipFeatures, examples: Iterable[Example]) -> TrainingClip:
    """A clip with its questions, tokenised once for all steps."""
    examples = tuple(examples)
    turns = tuple(
        (host.prompt(example.question)[1], [*host.encode_text(example.answer), host.end]) for example in examples
    )
    return TrainingClip(features, examples, turns)


def batch(model: PatchedModel, clips: Sequence[TrainingClip], patches: Names) -> tuple[Inputs, Tensor]:
    """Rows of several clips with all their questions, and labels (b l). `patches`: names for all, or per clip."""
    layout = model.lay_out([clip.features for clip in clips], patches)
    before = model.host.prompter.prefix
    rows = [pack([*before, *visual], clip.turns) for clip, visual in zip(clips, layout.visual, strict=True)]
    tokens = collate(rows, model.host.pad)
    labels = tokens.pop("labels")
    return layout.inputs(**tokens), labels
