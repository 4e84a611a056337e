"""Train a patch: recipe -> questions -> frozen features, encoded once -> fusion and LoRA -> checkpoint -> patch file.

    pave-train patches/audio-playroom/patch.yaml [key.sub=value ...] [--resume] [--smoke] [--dry-run]

In: a recipe. Out: `patch.safetensors` and `metrics.json` in the recipe's `train.output`. The base never gets a
gradient; its vision tower and the encoders run once per clip, and all questions of a clip share one prefill.
Same seed, versions and thread count on a CPU give the same file, resumed or not, unless the process lowers
torch.set_float32_matmul_precision: that choice of the user holds here, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pave.ambient import neutral
from pave.errors import DataError, FileError, TrainingError
from pave.features.stored import Ahead
from pave.files.atomic import write_text
from pave.hub import catalogue
from pave.patch.filenames import WEIGHTS
from pave.recipe import Recipe
from pave.text.progress import Shown, silent
from pave.training import curves
from pave.training.checkpoint import Identity, owned, read_checkpoint, write_checkpoint
from pave.training.dataset import Dataset, TrainingClip, packed, read_dataset, shuffled
from pave.training.gate import balanced, fit
from pave.training.keep import Keep
from pave.training.log import Log
from pave.training.look import Look
from pave.training.loss import Score, answers, cross_entropy, divergence, score, scores, total
from pave.training.retention import Probe
from pave.training.seen import Steps
from pave.training.setup import Setup
from pave.training.trainee import Trainee, training

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Result:
    """The outputs of a run."""

    patch: Path
    metrics: dict[str, object]


@neutral()
@torch.enable_grad()
def train(
    recipe: Recipe | str | Path, *, resume: bool = False, progress: Progress | Literal[False] | None = None
) -> Result:
    """Train a recipe (a Recipe, its file or folder, or a name of the catalogue) and write the patch. Random numbers of
    the caller go on as if it had not been called.

    resume: go on from the checkpoint in `train.output`, if there is one; without it, TrainingError for a folder that
    holds a run already. TrainingError also while another process trains there.
    progress: None shows bars on a terminal or in a notebook, and elsewhere a line every few seconds, on stderr; a
    function is called with (step, steps, figures) after every step instead; False shows nothing, also no warnings."""
    recipe = recipe if isinstance(recipe, Recipe) else catalogue.recipe(recipe)
    shown = Shown(bars=progress is None, lines=progress is not False)
    with owned(recipe.output, resume), torch.random.fork_rng(range(torch.cuda.device_count())), shown:
        run = None
        try:
            run = Run.begin(recipe, shown)
            return run.complete(resume, progress or None)
        except KeyboardInterrupt:
            encoded = f"the clips that were encoded are kept in {recipe.output}"
            shown.tell("", f"stopped; {run.left() if run else encoded}")
            raise


@dataclass
class Run:
    """One training run: its models, its data, the patch in training, and its progress."""

    setup: Setup
    dataset: Dataset
    trainee: Trainee
    losses: list[float] = field(default_factory=list)  # of all steps so far
    kept: int = 0  # step of the last checkpoint
    seconds: float = 0.0  # spent in steps
    ahead: Ahead = field(default_factory=Ahead)
    orders: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # of the last epochs
    shown: Shown = field(default_factory=silent)  # what a person sees of it

    @classmethod
    def begin(cls, recipe: Recipe, shown: Shown | None = None, clips: int | None = None) -> Run:
        """A run at its start, with all its clips encoded; or the first `clips` of a file."""
        shown = shown or silent()
        with shown.stage(f"loading {recipe.base}"):
            setup = Setup.of(recipe)
        with shown.stage("clips") as stage:

            def on_clip(done: int, total: int) -> None:
                refused = len(setup.store.refused)
                stage.to(done, total, f"{refused:,} unreadable" if refused else "")

            dataset = read_dataset(setup, clips, on_clip, shown.tell)
        shown.tell(*dataset.remarks())
        return cls.of(setup, dataset, shown)

    @classmethod
    def of(cls, setup: Setup, dataset: Dataset, shown: Shown | None = None) -> Run:
        """A run at its start."""
        return cls(setup, dataset, Trainee.of(setup, dataset), shown=shown or silent())

    def complete(self, resume: bool, progress: Progress | None = None) -> Result:
        """Run all steps, from the last checkpoint if `resume`, and write the patch. `progress`: None shows them."""
        if resume:
            self.resume()
        if progress:
            self.fit(progress)
        else:
            with self.shown.stage("steps", self.setup.recipe.train.steps, self.kept) as stage:
                self.fit(Steps(self.shown, stage))
        return self.finish()

    def fit(self, progress: Progress) -> None:
        """Run the steps and write checkpoints; after an error, the last good checkpoint is intact."""
        options = self.setup.recipe.train
        for step in range(self.kept, options.steps):
            begin = time.perf_counter()
            torch.manual_seed(_mix(options.seed, step))  # dropout depends on the step alone, so resuming repeats it
            rate = self.trainee.set_rates(_schedule(step, options.steps, options.warmup))
            waited = self.ahead.waited
            self.losses.append(self.step(step))
            seconds = time.perf_counter() - begin
            self.seconds += seconds
            figures = {"loss": self.losses[-1], "rate": rate}
            figures |= {name: value.item() for name, value in self.trainee.attached.aux_losses.items()}
            figures |= {"seconds": seconds, "waited": self.ahead.waited - waited}
            if (step + 1) % options.eval_every == 0 and step + 1 < options.steps:
                figures |= self.look().figures
            self.log.add(step + 1, figures)
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
                self.save(step + 1)
            progress(step + 1, options.steps, figures)

    def step(self, step: int) -> float:
        """One optimiser step; returns the loss of the answers, without auxiliary losses."""
        options, trainee = self.setup.recipe.train, self.trainee
        with training(trainee.attached):  # also while activations are recomputed
            try:
                loss, kept = self.losses_of(step)
            except DataError as error:  # its features are damaged, and its file has changed
                raise DataError(f"step {step + 1}: {error}; {self.left()}") from None
            trainee.optimiser.zero_grad()
            if loss.requires_grad:  # False if all clips of the step lack the sense: only the frozen base runs
                sum(trainee.attached.aux_losses.values(), loss + options.keep * kept).backward()
        norm = trainee.clip_gradients(options.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            parts = ["fusion", "lora", *(["resampler"] if self.setup.recipe.resampler else [])]
            rates = " or ".join(f"train.{part}_lr={getattr(options, f'{part}_lr')}" for part in parts)
            cause = f"the loss is {loss.item():.4g}, its gradient norm {norm.item():.4g}"
            raise TrainingError(f"step {step + 1}: {cause}; lower {rates}; {self.left()}")
        trainee.optimiser.step()
        return loss.item()

    def losses_of(self, step: int) -> tuple[Tensor, Tensor | float]:
        """The loss of the answers; and the divergence from the base on its own answers, if it is asked, in which a
        question (or token, as in train.mean_over) weighs as much as in the loss."""
        options, model = self.setup.recipe.train, self.setup.model
        clips, last = self.clips_of(step), step + 1 == options.steps
        following = [] if last else [clip.stored for clip in self.clips_of(step + 1)]
        features = self.ahead.features([clip.stored for clip in clips], following)
        more = self.keep.turns(step, [self.acts(clip) for clip in clips]) if self.keep else [[] for _ in clips]
        turns = [[*clip.turns, *others] for clip, others in zip(clips, more, strict=True)]
        inputs, labels = packed(model, features, turns, self.setup.names)
        logits, targets = scores(model, inputs, labels)
        answer = answers(labels)
        each = answer if options.mean_over == "questions" else torch.arange(len(answer))
        own = [[True] * len(clip.turns) + [False] * len(others) for clip, others in zip(clips, more, strict=True)]
        learned = torch.tensor([*chain(*own)])[answer]
        losses, count = total(cross_entropy(logits[learned], targets[learned]), each[learned])
        if self.keep is None or learned.all():
            return losses / count, 0.0
        teacher = self.keep.teacher(features, more)
        kept, _ = total(divergence(logits[~learned], teacher), each[~learned])
        return losses / count, kept / count

    def look(self, whole: bool = False) -> Look:
        """Measure held-out questions, with the signals of their clips and with those of others, and what the base
        keeps; `whole` as in `Probe.measure`."""
        own, other = (self._score(clips, self.setup.names) for clips in (self.dataset.val, self.control))
        with self.shown.stage("retention"):
            return Look(own, other, self.probe.measure(self.setup.model, self.setup.names, whole=whole))

    def _score(self, clips: Sequence[TrainingClip], names: Sequence[str]) -> Score | None:
        """The score of some held-out clips, if there are any."""
        if not clips:
            return None
        options = self.setup.recipe.train
        with self.shown.stage("held-out") as stage:
            return score(self.setup.model, clips, names, options.batch, options.mean_over, stage.to)

    @cached_property
    def control(self) -> list[TrainingClip]:
        """The held-out clips with the signals of others: a patch that uses them does worse."""
        return shuffled(self.dataset.val, self.acts, self.setup.recipe.train.seed)

    @cached_property
    def log(self) -> Log:
        """The record of the run."""
        return Log(self.setup.recipe, self.kept)

    @cached_property
    def keep(self) -> Keep | None:
        """Questions that need no sense, and the base's own answers; None if none are asked."""
        setup = self.setup
        if not setup.general:
            return None
        clips = [clip.stored for clip in self.dataset.train if self.acts(clip)]
        questions = balanced(setup.general) if setup.recipe.train.gate else setup.general
        return Keep(setup.model, questions, clips, setup.names[:-1], setup.recipe.train.seed)

    @cached_property
    def probe(self) -> Probe:
        """The general questions that training never sees, about held-out clips on which the patch acts, if any."""
        parts = ([clip.stored for clip in part if self.acts(clip)] for part in (self.dataset.val, self.dataset.train))
        return Probe.of(self.setup.model, next(filter(None, parts)), self.setup.names[:-1])

    def acts(self, clip: TrainingClip) -> bool:
        """Whether the patch acts on a clip."""
        always = self.setup.recipe.train.keep_lora_when_absent
        return always or any(clip.has(encoder) for encoder in self.setup.senses.values())

    def clips_of(self, step: int) -> list[TrainingClip]:
        """The clips of a step; each epoch is a random order of all clips that depends on seed and epoch alone."""
        clips, options, length = self.dataset.train, self.setup.recipe.train, self.epoch
        indices = range(step * options.batch, (step + 1) * options.batch)
        return [clips[self._order(index // length)[index % length]] for index in indices]

    def _order(self, epoch: int) -> list[int]:
        """The order of an epoch, drawn once; a step may have clips of two."""
        key = (len(self.dataset.train), epoch)
        if key not in self.orders:
            drawn = _order([clip.weight for clip in self.dataset.train], self.setup.recipe.train.seed, epoch)
            self.orders = {**dict([*self.orders.items()][-1:]), key: drawn}
        return self.orders[key]

    @cached_property
    def epoch(self) -> int:
        """Clips of an epoch, those of a larger weight several times."""
        return len(_order([clip.weight for clip in self.dataset.train], 0, 0))

    def save(self, step: int) -> None:
        """Write the checkpoint atomically; after an error, the previous one is intact."""
        trainee, folder = self.trainee, self.setup.recipe.output
        write_checkpoint(folder, step, trainee.parameters, trainee.optimiser, self._identity(), self.losses)
        self.kept = step

    def resume(self) -> None:
        """Continue from the checkpoint of this recipe; without one, start at step 0."""
        trainee, folder = self.trainee, self.setup.recipe.output
        self.kept, self.losses = read_checkpoint(folder, trainee.parameters, trainee.optimiser, self._identity())

    def left(self) -> str:
        """What a stopped run has left, as text."""
        if not self.kept:
            return "no checkpoint of this run has been written yet"
        folder = self.setup.recipe.output
        return f"the last good checkpoint, of step {self.kept}, is in {folder}, and --resume goes on from it"

    def finish(self) -> Result:
        """Export the patch and write the metrics."""
        names, options, folder = self.setup.names, self.setup.recipe.train, self.setup.recipe.output
        gate = self.close()
        seconds = {**self.dataset.seconds, "steps": self.seconds}
        metrics: dict[str, object] = {
            "steps": options.steps,
            "loss": [round(loss, 5) for loss in self.losses],
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
            "absent": {sense: len(why) for sense, why in self.dataset.absent().items()},
            "unreadable": {str(source): why for source, why in self.dataset.refused.items()},
            "broken": dict(self.dataset.broken),
            "warnings": {path: list(texts) for path, texts in self.dataset.warnings.items()},
        }
        with self.shown.stage("last look"):
            base, look = self._score(self.dataset.val, names[:-1]), self.look(whole=True)
        measured: dict[str, object] = {}
        if base and look.own:
            right = look.own.right
            measured["held_out"] = {key: {"base": base.right[key], "patched": right[key]} for key in right}
            metrics |= {"held_out": look.compared(base)}
        metrics |= {"gate": gate} if gate else {}
        metrics["retention"] = measured["retention"] = look.kept.facts()
        path = replace(self.trainee.attached.export(), certificate=measured).save(folder / WEIGHTS)
        self.log.add(options.steps, look.figures)
        self.log.close()
        metrics["history"] = self.log.looks
        write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        self._draw(base)
        return Result(path, metrics)

    def _draw(self, base: Score | None) -> None:
        """Draw the curves. The run is done: that a picture cannot be drawn does not matter to it."""
        recipe = self.setup.recipe
        try:
            held_out = base and base.right["all"]
            curves.draw(recipe.output / curves.NAME, recipe.name, self.losses, self.log.looks, held_out)
        except FileError as error:
            warnings.warn(str(error), stacklevel=2)

    def close(self) -> dict[str, float]:
        """Fit the gate of the patch, if it has one; the shares of the kept questions that it leaves to the base, and of
        the held-out ones for which it opens."""
        gate, setup, data = self.trainee.attached.gate, self.setup, self.dataset
        if gate is None:
            return {}
        perception = setup.model.perception
        asked, held_out = ([e.question for clip in part for e in clip.examples] for part in (data.train, data.val))
        shares = fit(gate, perception, setup.senses.values(), asked, setup.general)
        opens = [gate.opens(perception.reads(question)) for question in dict.fromkeys(held_out)]
        return {**shares, **({"held_out_opens": round(sum(opens) / len(opens), 4)} if opens else {})}

    def _identity(self) -> Identity:
        """What identifies this run: its config and every question, in order."""
        clips = self.dataset.train
        turns = [
            (e.video.name, e.question, e.answer, *([e.weight] if e.weight != 1 else []), *e.history)
            for clip in clips
            for e in clip.examples
        ]
        questions = hashlib.sha256(json.dumps([*turns, *self.setup.general]).encode()).hexdigest()
        return {**self.trainee.attached.config.model_dump(mode="json"), "questions": questions[:12]}


def _order(weights: Sequence[float], seed: int, epoch: int) -> list[int]:
    """The places of clips in an epoch, in random order. Of n clips with weight w, w n places, whole turns of all of
    them first: every epoch has as many."""
    draw = torch.Generator().manual_seed(_mix(seed, epoch))
    places: list[int] = []
    for weight in dict.fromkeys(weights):
        group = [place for place, each in enumerate(weights) if each == weight]
        count = max(1, round(weight * len(group)))
        turns = (torch.randperm(len(group), generator=draw).tolist() for _ in range(0, count, len(group)))
        places += [group[each] for each in chain(*turns)][:count]
    if len(places) == len(weights) and len(set(weights)) == 1:
        return places  # as before there were weights, so that runs of earlier versions can be resumed
    return [places[each] for each in torch.randperm(len(places), generator=draw).tolist()]


def _mix(seed: int, index: int) -> int:
    """A seed for one step or epoch of a run."""
    return (seed * 1_000_003 + index) % 2**63


def _schedule(step: int, steps: int, warmup: float) -> float:
    """The factor of the learning rate: linear warm-up, then a cosine to zero."""
    warm = max(1, round(steps * warmup))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
