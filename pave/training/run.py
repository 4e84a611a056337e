"""Train a patch: recipe -> questions -> frozen features, encoded once -> fusion and LoRA -> checkpoint -> patch file.

    pave-train patches/audio-playroom/patch.yaml [key.sub=value ...] [--resume] [--smoke] [--dry-run]

In: a recipe. Out: `patch.safetensors` and `metrics.json` in the recipe's `train.output`. The base never gets a
gradient; its vision tower and the encoders run once per clip, and all questions of a clip share one prefill.
Same seed, versions and thread count on a CPU give the same file, resumed or not, unless the process lowers
torch.set_float32_matmul_precision: that choice of the user holds here, too.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from pave.ambient import neutral
from pave.errors import DataError, TrainingError
from pave.features.stored import Ahead
from pave.files.atomic import write_text
from pave.hub import catalogue
from pave.patch.filenames import WEIGHTS
from pave.recipe import Recipe
from pave.text.progress import Shown, silent
from pave.training.checkpoint import NAME, Best, State, owned, read_checkpoint, restore, values, write_checkpoint
from pave.training.dataset import Dataset, TrainingClip, read_dataset, shuffled, turns_of
from pave.training.gate import fit
from pave.training.general import built_in, without
from pave.training.heart import compared, familiar
from pave.training.keep import Keep
from pave.training.log import Log
from pave.training.look import Look
from pave.training.loss import Score, score
from pave.training.modalities import Draw
from pave.training.passes import Passes, Share
from pave.training.plan import Stretch, mix, order, stretches
from pave.training.ranks import ALONE, Ranks, joined
from pave.training.retention import Probe
from pave.training.seen import Steps
from pave.training.setup import Setup
from pave.training.trainee import Trainee, attention, training

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

    resume: go on from the checkpoint in `train.output`, if there is one, also to more steps than it was begun with;
    without it, TrainingError for a folder that holds a run already. TrainingError also while another process trains
    there.
    progress: None shows bars on a terminal or in a notebook, and elsewhere a line every few seconds, on stderr; a
    function is called with (step, steps, figures) after every step instead; False shows nothing, also no warnings.

    In processes that torchrun, accelerate or Ray has started together, each has a part of the clips (docs/train.md);
    all call this, the first one shows and writes, and all return the same."""
    recipe = recipe if isinstance(recipe, Recipe) else catalogue.recipe(recipe)
    random = torch.random.fork_rng(range(torch.cuda.device_count()))
    with joined() as ranks, owned(recipe.output, resume, ranks), random:
        shown = Shown(bars=progress is None, lines=progress is not False) if ranks.first else silent()
        run = None
        with shown:
            try:
                run = Run.begin(recipe, shown, ranks=ranks)
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
    figures: dict[str, float] = field(default_factory=dict)  # of the last step: all its losses
    kept: int = 0  # step of the last checkpoint
    lengths: dict[int, int] = field(default_factory=dict)  # from which step on the run was to have how many
    best: Best | None = None
    seconds: float = 0.0  # spent in steps
    ahead: Ahead = field(default_factory=Ahead)
    orders: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # of the last epochs
    drawn: dict[int, list[TrainingClip]] = field(default_factory=dict)  # of the last two steps
    shown: Shown = field(default_factory=silent)  # what a person sees of it

    @classmethod
    def begin(cls, recipe: Recipe, shown: Shown | None = None, clips: int | None = None, ranks: Ranks = ALONE) -> Run:
        """A run at its start, with all its clips encoded; or the first `clips` of a file."""
        shown = shown or silent()
        with shown.stage(f"loading {recipe.base}"):
            setup = Setup.of(recipe, ranks)
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
        with self.setup.ranks.reachable(self.left):
            if resume:
                self.resume()
            if progress:
                self.fit(progress)
            else:
                with self.shown.stage("steps", self.steps, self.kept) as stage:
                    self.fit(Steps(self.shown, stage))
            return self.finish()

    @cached_property
    def stages(self) -> list[Stretch]:
        """The stages of the run, or all of it."""
        return stretches(self.setup.recipe.train, self.epoch)

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.stages[-1].end

    def stage(self, step: int) -> Stretch:
        """The stage of a step."""
        return next(stage for stage in reversed(self.stages) if stage.begin <= step)

    def fit(self, progress: Progress) -> None:
        """Run the steps and write checkpoints; after an error, the last good checkpoint is intact."""
        options = self.setup.recipe.train
        self.lengths = self.lengths or {0: self.steps}
        for step in range(self.kept, self.steps):
            begin, waited = time.perf_counter(), self.ahead.waited
            seed = mix(options.seed, step)  # dropout depends on the step and the process, so resuming repeats it
            torch.manual_seed(seed if self.setup.ranks.first else mix(seed, self.setup.ranks.rank))
            stage, last = self.stage(step), step + 1 == self.steps
            if step == stage.begin:
                self.trainee.optimiser.state.clear()  # a stage has the moments of its own steps, as a run has
            rate = self.trainee.set_rates(stage.options, stage.factor(step))
            self.losses.append(self.step(step))
            seconds = time.perf_counter() - begin
            self.seconds += seconds
            figures = {**self.figures, "rate": rate, "seconds": seconds, "waited": self.ahead.waited - waited}
            if (step + 1) % options.eval_every == 0 and not last:
                look = self.look()
                self.choose(step + 1, look.own)
                figures |= look.figures
            if last and options.best:
                self.choose(step + 1, self._score(self.dataset.val, self.setup.names))
            if self.log:
                self.log.add(step + 1, figures)
            if (step + 1) % options.checkpoint_every == 0 or last:
                self.save(step + 1)
            progress(step + 1, self.steps, figures)

    def choose(self, step: int, held_out: Score | None) -> None:
        """With train.best, keep the weights after a step if they are the best so far."""
        if not self.setup.recipe.train.best or held_out is None:
            return
        accuracy = held_out.right["all"]
        if self.best is None or accuracy > self.best.accuracy:
            self.best = Best(step, accuracy, values(self.trainee.parameters))

    def step(self, step: int) -> float:
        """One optimiser step; returns the loss of the answers, without auxiliary losses."""
        options, trainee, figures = self.stage(step).options, self.trainee, Counter[str]()
        longest = max(clip.length for clip in self.clips_of(step))
        with training(trainee.attached), attention(self.setup.model.host, longest):  # also of recomputed activations
            trainee.optimiser.zero_grad()
            try:
                for learned, kept, auxiliary, modalities in self.losses_of(step):
                    more = {name: value.item() for name, value in auxiliary.items()}
                    for name, value in {"loss": learned.item(), **more, **modalities}.items():
                        figures[name] += value
                    if learned.requires_grad:  # False if all clips lack the sense: only the frozen base runs
                        sum(auxiliary.values(), learned + options.keep * kept).backward()
            except DataError as error:  # its features are damaged, and its file has changed
                raise DataError(f"step {step + 1}: {error}; {self.left()}") from None
        self.figures = self.passes.add_up(figures, self.clips_of(step))
        loss = self.figures["loss"]
        norm = trainee.clip_gradients(options.max_grad_norm)
        if not (math.isfinite(loss) and norm.isfinite()):
            parts = ["fusion", "lora", *(["resampler"] if self.setup.recipe.resampler else [])]
            rates = " or ".join(f"train.{part}_lr={getattr(options, f'{part}_lr')}" for part in parts)
            cause = f"the loss is {loss:.4g}, its gradient norm {norm.item():.4g}"
            raise TrainingError(f"step {step + 1}: {cause}; lower {rates}; {self.left()}")
        trainee.optimiser.step()
        return loss

    def losses_of(self, step: int) -> Iterator[Share]:
        """The losses of each pass of a step, as in `Passes.losses`."""
        clips, following = self.clips_of(step), [] if step + 1 == self.steps else self.clips_of(step + 1)
        more = self.keep.turns(step, [self.acts(clip) for clip in clips]) if self.keep else [[] for _ in clips]
        return self.passes.losses(self.stage(step).options, clips, more, following)

    @cached_property
    def passes(self) -> Passes:
        """The passes of its steps."""
        return Passes(self.setup, self.trainee, self.keep, self.ahead)

    @cached_property
    def together(self) -> int:
        """How many held-out clips go through the base together, at most as many as in a part of a step."""
        options, longest = self.setup.recipe.train, max((clip.length for clip in self.dataset.val), default=1)
        most = math.ceil(options.batch / options.accumulate)
        return max(1, min(most, options.micro_batch // longest)) if options.micro_batch else most

    def look(self, whole: bool = False) -> Look:
        """Measure held-out questions, with the signals of their clips and with those of others, and what the base
        keeps; `whole` as in `Probe.measure`."""
        own, other = (self._score(clips, self.setup.names) for clips in (self.dataset.val, self.control))
        with self.shown.stage("retention"):
            return Look(own, other, self.probe.measure(self.setup.model, self.setup.names, whole=whole))

    def _score(self, clips: Sequence[TrainingClip], names: Sequence[str], part: str = "held-out") -> Score | None:
        """The score of some clips, if there are any."""
        if not clips:
            return None
        mean_over = self.setup.recipe.train.mean_over
        with self.shown.stage(part) as stage:
            return score(self.setup.model, clips, names, self.together, mean_over, stage.to)

    @cached_property
    def control(self) -> list[TrainingClip]:
        """The held-out clips with the signals of others: a patch that uses them does worse."""
        return shuffled(self.dataset.val, self.acts, self.setup.recipe.train.seed)

    @cached_property
    def log(self) -> Log | None:
        """The record of the run, which the first process writes."""
        return Log(self.setup.recipe, self.kept) if self.setup.ranks.first else None

    @cached_property
    def keep(self) -> Keep | None:
        """Questions that need no sense, and the base's own answers; None if none are asked."""
        clips = [clip.stored for clip in self.dataset.train if self.acts(clip)]
        return Keep.of(self.setup, clips, self.dataset.learned(self.setup.recipe.train))

    @cached_property
    def probe(self) -> Probe:
        """The general questions that training never sees, about held-out clips on which the patch acts, if any."""
        parts = ([clip.stored for clip in part if self.acts(clip)] for part in (self.dataset.val, self.dataset.train))
        questions = without(every := built_in("retention"), self.dataset.learned(self.setup.recipe.train)) or every
        return Probe.of(self.setup.model, next(filter(None, parts)), self.setup.names[:-1], questions)

    def acts(self, clip: TrainingClip) -> bool:
        """Whether the patch acts on a clip."""
        always = self.setup.recipe.train.keep_lora_when_absent
        return always or any(clip.has(encoder) for encoder in self.setup.senses.values())

    def clips_of(self, step: int) -> list[TrainingClip]:
        """The clips of a step; each epoch is a random order of all clips that depends on seed and epoch alone. With
        train.modalities, each is as it was drawn for the step: the same objects as long as it and the next one run."""
        clips, length, stage = self.dataset.train, self.epoch, self.stage(step)
        if step not in self.drawn:
            found = [clips[self._order(index // length)[index % length]] for index in stage.clips(step)]
            shares = stage.options.modalities
            if shares:
                draw = Draw(shares, clips, partial(turns_of, self.setup.model.host))
                found = draw.step(found, stage.options.seed, step)
            self.drawn = {**{last: self.drawn[last] for last in [*self.drawn][-1:]}, step: found}
        return self.drawn[step]

    def _order(self, epoch: int) -> list[int]:
        """The order of an epoch, drawn once; a step may have clips of two."""
        key = (len(self.dataset.train), epoch)
        if key not in self.orders:
            drawn = order([clip.weight for clip in self.dataset.train], self.setup.recipe.train.seed, epoch)
            self.orders = {**dict([*self.orders.items()][-1:]), key: drawn}
        return self.orders[key]

    @cached_property
    def epoch(self) -> int:
        """Clips of an epoch, those of a larger weight several times."""
        return self.dataset.epoch

    def save(self, step: int) -> None:
        """Write the checkpoint atomically; after an error, the previous one is intact."""
        trainee, folder = self.trainee, self.setup.recipe.output
        state = State(step, self.losses, self.lengths, self.best)
        if self.setup.ranks.first:
            write_checkpoint(folder, state, trainee.parameters, trainee.optimiser, self._identity())
        self.kept = step

    def resume(self) -> None:
        """Continue from the checkpoint of this recipe; without one, start at step 0. The run may have become longer or
        shorter since, which is told."""
        trainee, folder = self.trainee, self.setup.recipe.output
        ranks = self.setup.ranks
        with ranks.together():
            state = read_checkpoint(folder, trainee.parameters, trainee.optimiser, self._identity())
        ranks.agree(state and state.step, f"{folder / NAME}: the step of the checkpoint that they find there")
        if state is None:
            return
        self.kept, self.losses, self.best = state.step, state.losses, state.best
        before = state.lengths[max(state.lengths)]
        self.lengths = {**state.lengths, **({self.kept: self.steps} if self.steps != before else {})}
        if self.steps < self.kept:
            cause = f"{folder / NAME} is of step {self.kept}, beyond the {self.steps} that the recipe asks for"
            raise TrainingError(f"{cause}; ask for as many or more, or give another train.output")
        if self.steps != before:
            self.shown.tell(
                f"the run was to have {before} steps and goes on to {self.steps}: from step {self.kept} on, its rates "
                f"are those of a run of {self.steps} steps, so the patch is not that of a run begun with {self.steps}"
            )

    def left(self) -> str:
        """What a stopped run has left, as text."""
        if not self.kept:
            return "no checkpoint of this run has been written yet"
        folder = self.setup.recipe.output
        return f"the last good checkpoint, of step {self.kept}, is in {folder}, and --resume goes on from it"

    def finish(self) -> Result:
        """Export the patch and write the metrics."""
        names, folder, ranks = self.setup.names, self.setup.recipe.output, self.setup.ranks
        if self.best is not None:
            restore(self.trainee.parameters, self.best.values)
        gate = self.close()
        seconds = {**self.dataset.seconds, "steps": self.seconds}
        metrics: dict[str, object] = {
            "steps": self.steps,
            "loss": [round(loss, 5) for loss in self.losses],
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
            **self.dataset.facts(),
        }
        with self.shown.stage("last look"):
            base, look = self._score(self.dataset.val, names[:-1]), self.look(whole=True)
            again = familiar(self.dataset.train, self.acts, self.setup.recipe.train.seed) if look.other else []
            seen = self._score(again, names, "training clips")
        measured: dict[str, object] = {}
        if base and look.own:
            right = look.own.right
            measured["held_out"] = {key: {"base": base.right[key], "patched": right[key]} for key in right}
            metrics |= {"held_out": look.compared(base)}
        if self.best is not None:
            metrics["best"] = measured["best"] = {"step": self.best.step, "held_out": self.best.accuracy}
        metrics |= {"gate": gate} if gate else {}
        if heart := compared(training=(seen, again), held_out=(look.other, self.control)):
            metrics["by_heart"] = heart
        metrics["retention"] = measured["retention"] = look.kept.facts()
        patch = self.trainee.attached.export()
        if len(self.lengths) > 1:
            planned = {f"from step {step}": f"{steps} steps" for step, steps in self.lengths.items()}
            training = {**patch.config.training, "planned": planned}
            patch = replace(patch, config=patch.config.model_copy(update={"training": training}))
        if self.log:
            replace(patch, certificate=measured).save(folder / WEIGHTS)
            self.log.add(self.steps, look.figures)
            self.log.close()
            metrics["history"] = self.log.looks
            write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
            self.log.draw(self.losses, base and base.right["all"])
        return Result(folder / WEIGHTS, ranks.gather(metrics)[0])

    def close(self) -> dict[str, float]:
        """Fit the gate of the patch, if it has one; the shares of the kept questions that it leaves to the base, and of
        the held-out ones for which it opens."""
        gate, setup, data = self.trainee.attached.gate, self.setup, self.dataset
        if gate is None:
            return {}
        own, held_out = data.learned(setup.recipe.train), [e.question for clip in data.val for e in clip.examples]
        return fit(gate, setup.model.perception, setup.senses.values(), own, setup.general, held_out)

    def _identity(self) -> dict[str, Any]:
        """What identifies this run: its config and every question, in order."""
        questions = self.dataset.fingerprint(self.setup.general)
        return {**self.trainee.attached.config.model_dump(mode="json"), "questions": questions}
