"""Train a patch: recipe -> questions -> frozen features, seen once -> fusion and LoRA -> checkpoint -> patch file.

    pave-train patches/audio-playroom/patch.yaml [key.sub=value ...] [--resume] [--smoke] [--dry-run]

In: a recipe. Out: `patch.safetensors` and `metrics.json` in the recipe's `train.output`. The base never gets a
gradient; its vision tower and the encoders run once per clip, and all questions of a clip share one prefill.
Same seed, versions and thread count on a CPU give the same file, resumed or not.

b clips of a step, t key frames, s visual tokens per key frame, d channels, l tokens of a row
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.base import Base
from pave.config import PatchConfig
from pave.data import IGNORE, Example, Source, collate, pack, read_jsonl, refuse_no_file, unread
from pave.encoder import Encoder, missing
from pave.errors import DataError, EncoderError, RecipeError, TrainingError
from pave.features.cache import FeatureStore, Seeing
from pave.fusion.clock import refuse_overflow
from pave.hub import catalogue
from pave.model.inputs import ClipFeatures, Inputs, layout
from pave.model.patched import PatchedModel, load
from pave.model.steps import Names
from pave.patch.attached import Attached
from pave.patch.base_match import base_match
from pave.patch.file import Patch
from pave.recipe import DataConfig, Recipe
from pave.training.checkpoint import Identity, read_checkpoint, write_checkpoint

# Said elsewhere in the patch, or without influence on its weights.
UNRECORDED = {
    "output",
    "keep_lora_when_absent",
    "eval_every",
    "checkpoint_every",
    "gradient_checkpointing",
    "on_top_of",
    "start_from",
}
# In these a recipe agrees with the patch that it goes on from.
SHAPE = ("senses", "resampler", "fusion", "lora", "newline", "prompt")
CALIBRATION = 16  # clips that an untrained fusion is fitted to
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Asked:
    """One clip and everything that is asked about it."""

    features: ClipFeatures
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    patch: Path
    metrics: dict[str, object]


def train(recipe: Recipe | str | Path, *, resume: bool = False, progress: Progress | None = None) -> Result:
    """Train `recipe` (itself, its file or folder, or a name of the catalogue) and write the patch;
    `progress(step, steps, figures)` is called after every step."""
    run = Run(recipe if isinstance(recipe, Recipe) else catalogue.recipe(recipe))
    run.prepare()
    return run.complete(resume, progress or (lambda step, steps, figures: None))


class Run:
    """One training run; the four steps of `train`, each callable on its own. `clips`: how many to use; None: all."""

    def __init__(self, recipe: Recipe, clips: int | None = None) -> None:
        self.recipe, self.options, self.limit = recipe, recipe.train, clips
        self.folder = recipe.output
        if self.folder.exists() and not self.folder.is_dir():
            raise RecipeError(f"train.output={self.folder}: is a file; give a folder")
        for lacking in filter(None, (missing(each.encoder) for each in recipe.senses.values())):
            raise EncoderError(lacking)  # before the base is fetched, which may be large
        for file in filter(None, (recipe.data.train, recipe.data.val)):
            refuse_no_file(file)
        self.model: PatchedModel = load(recipe.base, dtype=recipe.train.dtype, frames=recipe.frames)
        self.below = [self.model.apply_patch(each) for each in recipe.train.on_top_of]  # frozen
        self.senses = {sense: self.model.encoder(config) for sense, config in recipe.senses.items()}
        encoders = {each.spec.preprocessing: each for each in (*self.model.encoders(), *self.senses.values())}
        self.store = FeatureStore(self.model, list(encoders.values()), self.folder / "features", recipe.data.features)
        self.names = [*(report.name for report in self.below), recipe.name]
        self.begin = self.kept = 0  # the step to start at; that of the last checkpoint of this run
        self.train_clips: list[Asked] = []
        self.val_clips: list[Asked] = []
        self.losses: list[float] = []
        self.refused: dict[Source, str] = {}  # clips that cannot be read, and why
        self.unread: list[str] = []  # signals of clips that no encoder reads
        self.seconds = {"clips": 0.0, "features": 0.0, "steps": 0.0}
        self.start = self._start(self.options.start_from)
        with torch.device("meta"):  # what cannot be built, or not beside the others, is refused before any clip is seen
            layout(self.model.host, [*self.model.attached(), Attached(self.config(), self.model.host)])

    def complete(self, resume: bool, progress: Progress) -> Result:
        """All that comes after `prepare`, one after the other."""
        if resume:
            self.resume()
        self.fit(progress)
        return self.finish()

    def prepare(self, seeing: Seeing | None = None) -> None:
        """Read questions, see every clip once, attach an untrained patch."""
        self.see(seeing)
        self.attach()

    def see(self, seeing: Seeing | None = None) -> None:
        """Read questions and see every clip once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        train_file, val_file = data_files(self.recipe.data, self.folder)
        self.seconds["clips"] = time.perf_counter() - begin
        begin = time.perf_counter()
        asked = [read_jsonl(file) for file in (train_file, val_file) if file]  # both, before anything is looked at
        self.unread = unread(chain(*asked), self.read())
        self.train_clips = _ask_all(self.store, train_file, asked[0], self.limit, seeing)
        self.val_clips = _ask_all(self.store, val_file, asked[1], self.limit, seeing) if val_file else []
        self.refused = self.store.refused
        self.seconds["features"] = time.perf_counter() - begin
        if not self.options.keep_lora_when_absent and not any(map(self._perceives, self.train_clips)):
            why = "; ".join(sorted({why for clip in self.train_clips for why in clip.features.absent.values()})[:3])
            raise DataError(
                f"{train_file}: none of its {len(self.train_clips)} clips has {' or '.join(self.senses)} ({why}), so "
                f"there is nothing to learn from; {'; '.join(self.unread) or 'give clips that have'}"
            )

    def remarks(self) -> list[str]:
        """What clips that were seen lack of the senses, and which of their signals nobody reads."""
        count = len(self.train_clips) + len(self.val_clips)
        lacking = [(sense, why) for sense, why in self.absent().items() if why]
        return [*(f"{len(why)} of {count} clips have no {sense} ({why[0]})" for sense, why in lacking), *self.unread]

    def absent(self) -> dict[str, list[str]]:
        """Of every sense that is trained: why clips lack it, a reason for each of them."""
        return {
            sense: [
                clip.features.absent.get(encoder.spec.preprocessing, "absent: nothing in it can be read")
                for clip in (*self.train_clips, *self.val_clips)
                if not _has(clip, encoder)
            ]
            for sense, encoder in self.senses.items()
        }

    def read(self) -> set[str]:
        """The signals beside a video that encoders read; sound is in the video itself."""
        return {each.spec.sense for each in (*self.model.encoders(), *self.senses.values())} - {"audio"}

    def attach(self) -> None:
        """Put an untrained patch into the model, scaled to the clips that were seen, and give it an optimiser."""
        torch.manual_seed(self.options.seed)
        begun = None if self.start is None else self.start.weights()
        self.attached = self.model.attach(self.recipe.name, self.config(), begun, trainable=True)
        if begun is None:
            heard = list(filter(self._perceives, self.train_clips)) or self.train_clips
            self.model.calibrate(self.recipe.name, [clip.features for clip in heard[:CALIBRATION]])
        self.model.checkpoint_activations(self.options.gradient_checkpointing)
        self.parameters = self.model.trainable(self.recipe.name)
        rates = (self.options.resampler_lr, self.options.fusion_lr, self.options.lora_lr)
        groups = [
            {"params": list(self.parameters[part].values()), "lr": rate}
            for part, rate in zip(("resampler", "fusion", "lora"), rates, strict=True)
            if self.parameters[part]
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=self.options.weight_decay)
        self.rates = [group["lr"] for group in groups]

    def config(self) -> PatchConfig:
        """What the patch file will say of itself."""
        config = patch_config(self.recipe, self.model.host, self.senses)
        training = {
            "clips": len(self.train_clips),
            "questions": sum(len(clip.examples) for clip in self.train_clips),
            **config.training,
            **({"on_top_of": {each.name: each.sha256 for each in self.below}} if self.below else {}),
            **({"start_from": {self.start.config.name: self.start.sha256}} if self.start else {}),
        }
        told = {sense: {"weights": self.store.weights(encoder)} for sense, encoder in self.senses.items()}
        senses = {sense: facts.model_copy(update=told[sense]) for sense, facts in config.senses.items()}
        return config.model_copy(update={"training": training, "senses": senses})

    def fit(self, progress: Progress) -> None:
        """The steps. A checkpoint is written every so often, and the last good one stays whatever happens."""
        for step in range(self.begin, self.options.steps):
            begin = time.perf_counter()
            torch.manual_seed(_mix(self.options.seed, step))  # dropout of a step, the same after a resume
            loss = self.step(step)
            self.losses.append(loss)
            self.seconds["steps"] += time.perf_counter() - begin
            figures = {"loss": loss, "rate": self.optimiser.param_groups[0]["lr"]}
            figures |= {name: value.item() for name, value in self.attached.aux_losses.items()}
            if (step + 1) % self.options.eval_every == 0 and self.val_clips and step + 1 < self.options.steps:
                figures["held-out"] = self.accuracy(self.val_clips)["all"]
            if (step + 1) % self.options.checkpoint_every == 0 or step + 1 == self.options.steps:
                self.save(step + 1)
            progress(step + 1, self.options.steps, figures)

    def step(self, step: int) -> float:
        """One optimiser step; returns the loss of the answers, without what a patch adds for itself."""
        factor = _schedule(step, self.options.steps, self.options.warmup)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        inputs, labels = self.batch(self._clips_of(step), self.names)
        with self.model.training(self.recipe.name):
            scores, wanted = self.scores(inputs, labels)
            loss = F.cross_entropy(scores.float(), wanted)
            self.optimiser.zero_grad()
            if loss.requires_grad:  # not where all clips of the step lack the sense: they get the base's answers
                sum(self.attached.aux_losses.values(), loss).backward()
        parts = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parts, self.options.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            parts = ["fusion", "lora", *(["resampler"] if self.recipe.resampler else [])]
            rates = " or ".join(f"train.{part}_lr={getattr(self.options, f'{part}_lr')}" for part in parts)
            cause = f"the loss is {loss.item():.4g}, its gradient {norm.item():.4g} long"
            raise TrainingError(f"step {step + 1}: {cause}; lower {rates}; {self.left()}")
        self.optimiser.step()
        return loss.item()

    def batch(self, clips: Sequence[Asked], patches: Names) -> tuple[Inputs, Tensor]:
        """Rows of several clips with all their questions, and labels (b l). `patches`: names for all, or per clip."""
        host = self.model.host
        features = [clip.features for clip in clips]
        rows = []
        for clip, seen in zip(clips, self.model.visual_ids(features, patches), strict=True):
            before, _ = host.prompt("")
            turns = [(host.prompt(example.question)[1], self.answer(example)) for example in clip.examples]
            rows.append(pack([*before, *seen], turns))
        tokens = collate(rows, host.pad)
        labels = tokens.pop("labels")
        return self.model.inputs(features, patches, **tokens), labels

    def answer(self, example: Example) -> list[int]:
        """The ids that are learned for an example: its answer and the end of the turn."""
        return [*self.model.host.encode_text(example.answer), self.model.host.end]

    def scores(self, inputs: Inputs, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits where a learned id is due (k vocabulary), and these ids (k)."""
        wanted = labels[:, 1:].to(self.model.host.device)
        columns = (wanted != IGNORE).any(0).nonzero()[:, 0]  # the head is wide: only columns that hold an answer
        logits = self.model.forward(inputs, logits_to_keep=columns).logits
        wanted = wanted[:, columns]
        return logits[wanted != IGNORE], wanted[wanted != IGNORE]

    @torch.no_grad()
    def accuracy(self, clips: Sequence[Asked], patched: bool = True) -> dict[str, float]:
        """Share of questions whose whole answer is the greedy one, over all and by the data file's `channel`."""
        patches = self.names if patched else self.names[:-1]
        tally: dict[str, list[bool]] = {"all": []}
        for first in range(0, len(clips), self.options.batch):
            part = clips[first : first + self.options.batch]
            scores, wanted = self.scores(*self.batch(part, patches))
            hits = iter((scores.argmax(-1) == wanted).tolist())
            for example in (example for clip in part for example in clip.examples):
                right = all(tuple(islice(hits, len(self.answer(example)))))  # takes them all, even after a miss
                for key in {"all", str(example.facts.get("channel", "all"))}:
                    tally.setdefault(key, []).append(right)
        return {key: sum(hits) / len(hits) for key, hits in tally.items()}

    def _clips_of(self, step: int) -> list[Asked]:
        """The clips of a step: every epoch is one shuffle of all, drawn from the seed and the epoch alone."""
        count, size = len(self.train_clips), self.options.batch
        places = range(step * size, (step + 1) * size)
        orders = {epoch: _order(count, self.options.seed, epoch) for epoch in {place // count for place in places}}
        return [self.train_clips[orders[place // count][place % count]] for place in places]

    def save(self, step: int) -> None:
        """Write the checkpoint in one piece; an error leaves the one before."""
        write_checkpoint(self.folder, step, self.parameters, self.optimiser, self._identity(), self.losses)
        self.kept = step

    def resume(self) -> None:
        """Go on from the checkpoint of this very recipe; without one, begin at the start."""
        self.begin, self.losses = read_checkpoint(self.folder, self.parameters, self.optimiser, self._identity())
        self.kept = self.begin

    def left(self) -> str:
        """In words, what is left of a run that has stopped."""
        if not self.kept:
            return "no checkpoint of this run has been written yet"
        return f"the last good checkpoint, of step {self.kept}, is in {self.folder}, and --resume goes on from it"

    def _start(self, source: str | None) -> Patch | None:
        """The patch to go on from, which has to be of the recipe's shape."""
        if source is None:
            return None
        patch, _ = self.model.find_patch(source)
        base_match(patch.config, self.model.host, source, strict=False)
        theirs, ours = (
            config.model_dump(mode="json", include=set(SHAPE), exclude={"senses": {"__all__": {"weights"}}})
            for config in (patch.config, patch_config(self.recipe, self.model.host, self.senses))
        )
        for key in SHAPE:
            if theirs[key] != ours[key]:
                raise RecipeError(
                    f"train.start_from={source}: its {key} is {theirs[key]}, the recipe's {ours[key]}; make them equal"
                )
        return patch

    def _perceives(self, clip: Asked) -> bool:
        """Whether a clip has one of the senses that are trained."""
        return any(_has(clip, encoder) for encoder in self.senses.values())

    def _identity(self) -> Identity:
        """What makes this run this run: its config and every question, in order."""
        asked = [(e.video.name, e.question, e.answer) for clip in self.train_clips for e in clip.examples]
        questions = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return {**self.config().model_dump(mode="json"), "questions": questions[:12]}

    def finish(self) -> Result:
        """Export the patch and write down what was measured."""
        metrics: dict[str, object] = {
            "steps": self.options.steps,
            "loss": [round(loss, 5) for loss in self.losses],
            "seconds": {key: round(value, 1) for key, value in self.seconds.items()},
            "absent": {sense: len(why) for sense, why in self.absent().items()},
            "unreadable": {str(source): why for source, why in self.refused.items()},
        }
        if self.val_clips:
            base, patched = (self.accuracy(self.val_clips, each) for each in (False, True))
            metrics["held_out"] = {key: {"base": base[key], "patched": patched[key]} for key in patched}
        path = self.folder / "patch.safetensors"
        self.model.export(self.recipe.name).save(path)
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        return Result(path, metrics)


def patch_config(recipe: Recipe, base: Base, encoders: Mapping[str, Encoder]) -> PatchConfig:
    """What a patch file of this recipe says of itself before any clip is seen; no paths, no time stamps."""
    for sense, encoder in encoders.items():
        if recipe.resampler:
            refuse_overflow(sense, encoder.spec.rate, encoder.spec.grid, recipe.resampler)
    return PatchConfig(
        name=recipe.name,
        description=recipe.description,
        base=base.facts(),
        newline=recipe.newline or base.newlines[0],
        prompt=base.template,
        senses={sense: encoders[sense].spec.facts(config.align) for sense, config in recipe.senses.items()},
        resampler=recipe.resampler,
        fusion=recipe.fusion,
        lora=recipe.lora,
        licence=recipe.licence,
        keep_lora_when_absent=recipe.train.keep_lora_when_absent,
        training=recipe.train.model_dump(mode="json", exclude=UNRECORDED),
    )


def data_files(data: DataConfig, folder: Path) -> tuple[Path, Path | None]:
    """The JSONL files of a recipe; Playroom clips are written first."""
    if data.playroom is None:
        assert data.train is not None  # the config allows no third case
        return data.train, data.val
    from pave.playroom.writer import write_clips

    world = data.playroom
    clips = folder / "clips"
    asked = [channel for channel in world.channels if channel != "caption"]  # nobody is asked to tell everything
    return (
        write_clips(clips, world.clips, world.seed, "train", world.channels),
        write_clips(clips, max(8, world.clips // 10), world.seed, "val", asked),
    )


def _ask_all(
    store: FeatureStore, file: Path, examples: Sequence[Example], limit: int | None, seeing: Seeing | None
) -> list[Asked]:
    """Every clip that can be read, with its questions."""
    by_clip: dict[Source, list[Example]] = {}
    for example in examples:
        by_clip.setdefault(example.source, []).append(example)
    sources = list(by_clip)[:limit]
    seen = store.read(sources, seeing)
    if not seen:
        raise DataError(f"{file}: none of its {len(sources)} clips can be read; the first: {store.refused[sources[0]]}")
    return [Asked(features, tuple(by_clip[source])) for source, features in seen.items()]


def _has(clip: Asked, encoder: Encoder) -> bool:
    """Whether a clip has what an encoder reads."""
    side = clip.features.sides[encoder.spec.preprocessing]
    return side is not None and side.present


def _order(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mix(seed, epoch))).tolist()


def _mix(seed: int, index: int) -> int:
    """A seed for one step or epoch of a run."""
    return (seed * 1_000_003 + index) % 2**63


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = max(1, round(steps * warmup))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
