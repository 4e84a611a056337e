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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pave.ambient import neutral
from pave.errors import DataError, TrainingError
from pave.features.stored import Ahead
from pave.files.atomic import write_text
from pave.hub import catalogue
from pave.patch.filenames import WEIGHTS
from pave.recipe import Recipe
from pave.training.checkpoint import Identity, owned, read_checkpoint, write_checkpoint
from pave.training.dataset import Dataset, TrainingClip, packed, read_dataset
from pave.training.gate import balanced, fitted
from pave.training.general import built_in
from pave.training.keep import Keep
from pave.training.loss import answers, cross_entropy, divergence, scores, token_accuracy, total
from pave.training.ranks import ALONE, Ranks, joined
from pave.training.retention import Probe
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
def train(recipe: Recipe | str | Path, *, resume: bool = False, progress: Progress | None = None) -> Result:
    """Train a recipe (a Recipe, its file or folder, or a name of the catalogue) and write the patch;
    `progress(step, steps, figures)` is called after every step. Random numbers of the caller go on as if it had not
    been called.

    resume: go on from the checkpoint in `train.output`, if there is one; without it, TrainingError for a folder that
    holds a run already. TrainingError also while another process trains there.

    In processes that torchrun, accelerate or Ray has started together, each has a part of the clips (docs/train.md);
    all call this, the first one writes, and all return the same."""
    recipe = recipe if isinstance(recipe, Recipe) else catalogue.recipe(recipe)
    random = torch.random.fork_rng(range(torch.cuda.device_count()))
    with joined() as ranks, owned(recipe.output, resume, ranks), random:
        return Run.begin(recipe, ranks).complete(resume, progress or (lambda step, steps, figures: None))


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

    @classmethod
    def begin(cls, recipe: Recipe, ranks: Ranks = ALONE) -> Run:
        """A run at its start, with all its clips encoded."""
        setup = Setup.of(recipe, ranks)
        return cls.of(setup, read_dataset(setup))

    @classmethod
    def of(cls, setup: Setup, dataset: Dataset) -> Run:
        """A run at its start."""
        return cls(setup, dataset, Trainee.of(setup, dataset))

    def complete(self, resume: bool, progress: Progress) -> Result:
        """Run all steps, from the last checkpoint if `resume`, and write the patch."""
        with self.setup.ranks.reachable(self.left):
            if resume:
                self.resume()
            self.fit(progress)
            return self.finish()

    def fit(self, progress: Progress) -> None:
        """Run the steps and write checkpoints; after an error, the last good checkpoint is intact."""
        options, model = self.setup.recipe.train, self.setup.model
        for step in range(self.kept, options.steps):
            begin = time.perf_counter()
            seed = _mix(options.seed, step)  # dropout depends on the step and the process, so resuming repeats it
            torch.manual_seed(seed if self.setup.ranks.first else _mix(seed, self.setup.ranks.rank))
            rate = self.trainee.set_rates(_schedule(step, options.steps, options.warmup))
            self.losses.append(self.step(step))
            self.seconds += time.perf_counter() - begin
            figures = {"loss": self.losses[-1], "rate": rate}
            figures |= {name: value.item() for name, value in self.trainee.attached.aux_losses.items()}
            if (step + 1) % options.eval_every == 0 and step + 1 < options.steps:
                if self.dataset.val:
                    accuracy = token_accuracy(model, self.dataset.val, self.setup.names, options.batch)
                    figures["held-out"] = accuracy["all"]
                figures["retention"] = self.probe.measure(model, self.setup.names).tokens
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
                self.save(step + 1)
            progress(step + 1, options.steps, figures)

    def step(self, step: int) -> float:
        """One optimiser step; returns the loss of the answers, without auxiliary losses."""
        options, trainee, attached = self.setup.recipe.train, self.trainee, self.trainee.attached
        attached.aux_losses, attached.aux_count = {}, 0
        with training(attached):  # also while activations are recomputed
            try:
                loss, kept = self.losses_of(step)
            except DataError as error:  # its features are damaged, and its file has changed
                raise DataError(f"step {step + 1}: {error}; {self.left()}") from None
            trainee.optimiser.zero_grad()
            aux = self.aux_losses()
            if loss.requires_grad:  # False if all clips of the step lack the sense: only the frozen base runs
                sum(aux.values(), loss + options.keep * kept).backward()
        loss = self.add_up(loss, aux)
        norm = trainee.clip_gradients(options.max_grad_norm)
        if not (loss.isfinite() and norm.isfinite()):
            parts = ["fusion", "lora", *(["resampler"] if self.setup.recipe.resampler else [])]
            rates = " or ".join(f"train.{part}_lr={getattr(options, f'{part}_lr')}" for part in parts)
            cause = f"the loss is {loss.item():.4g}, its gradient norm {norm.item():.4g}"
            raise TrainingError(f"step {step + 1}: {cause}; lower {rates}; {self.left()}")
        trainee.optimiser.step()
        return loss.item()

    def aux_losses(self) -> dict[str, Tensor]:
        """This process's part of each auxiliary loss: a mean over all values of all processes."""
        attached, ranks = self.trainee.attached, self.setup.ranks
        if ranks.count == 1 or not (self.setup.recipe.resampler and self.setup.recipe.resampler.diversity):
            return attached.aux_losses
        share = attached.aux_count / max(1, sum(ranks.gather(attached.aux_count)))
        own = attached.aux_losses.get("diversity", torch.zeros(()))
        return {"diversity": own * share}

    def add_up(self, loss: Tensor, aux: dict[str, Tensor]) -> Tensor:
        """The loss of the step, whose parts and whose gradients all processes have."""
        ranks, device = self.setup.ranks, self.setup.model.host.device
        if ranks.count == 1:
            return loss
        parts = torch.stack([each.detach().to(device) for each in (loss, *aux.values())])
        loss, *sums = ranks.add_up(self.trainee.all, parts)
        self.trainee.attached.aux_losses = dict(zip(aux, sums, strict=True))
        return loss

    def losses_of(self, step: int) -> tuple[Tensor, Tensor | float]:
        """The loss of the answers; and the divergence from the base on its own answers, if it is asked, in which a
        question (or token, as in train.mean_over) weighs as much as in the loss. Of several processes, each has the
        terms of its own clips."""
        options, model, ranks = self.setup.recipe.train, self.setup.model, self.setup.ranks
        every, last = self.clips_of(step), step + 1 == options.steps
        clips = ranks.share(every)
        following = [] if last else [clip.stored for clip in ranks.share(self.clips_of(step + 1))]
        features = self.ahead.features([clip.stored for clip in clips], following)
        asked = self.keep.turns(step, [self.acts(clip) for clip in every]) if self.keep else [[] for _ in every]
        more = ranks.share(asked)
        turns = [[*clip.turns, *others] for clip, others in zip(clips, more, strict=True)]
        inputs, labels = packed(model, features, turns, self.setup.names)
        logits, targets = scores(model, inputs, labels)
        answer = answers(labels)
        each = answer if options.mean_over == "questions" else torch.arange(len(answer))
        own = [[True] * len(clip.turns) + [False] * len(others) for clip, others in zip(clips, more, strict=True)]
        learned = torch.tensor([*chain(*own)])[answer]
        losses, _ = total(cross_entropy(logits[learned], targets[learned]), each[learned])
        count = sum(
            1 if options.mean_over == "questions" else len(turn.answer) for clip in every for turn in clip.turns
        )
        if self.keep is None or learned.all():
            if self.keep and self.setup.sharded and any(asked):  # others ask the base, and need its parts
                self.keep.teacher(features[:1], [next(filter(None, asked))])
            return losses / count, 0.0
        teacher = self.keep.teacher(features, more)
        kept, _ = total(divergence(logits[~learned], teacher), each[~learned])
        return losses / count, kept / count

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
        if self.setup.ranks.first:
            write_checkpoint(folder, step, trainee.parameters, trainee.optimiser, self._identity(), self.losses)
        self.kept = step

    def resume(self) -> None:
        """Continue from the checkpoint of this recipe; without one, start at step 0."""
        trainee, folder = self.trainee, self.setup.recipe.output
        with self.setup.ranks.together():
            self.kept, self.losses = read_checkpoint(folder, trainee.parameters, trainee.optimiser, self._identity())
        found = self.setup.ranks.gather(self.kept)
        if len({*found}) > 1:
            cause = f"{folder}: process 0 finds a checkpoint of step {found[0]} there, others of steps {found[1:]}"
            raise TrainingError(f"{cause}; to resume, give a train.output that all machines share")

    def left(self) -> str:
        """What a stopped run has left, as text."""
        if not self.kept:
            return "no checkpoint of this run has been written yet"
        folder = self.setup.recipe.output
        return f"the last good checkpoint, of step {self.kept}, is in {folder}, and --resume goes on from it"

    def finish(self) -> Result:
        """Export the patch and write the metrics."""
        model, names, options = self.setup.model, self.setup.names, self.setup.recipe.train
        gate = self.close()
        seconds = {**self.dataset.seconds, "steps": self.seconds}
        metrics: dict[str, object] = {
            "steps": options.steps,
            "loss": [round(loss, 5) for loss in self.losses],
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
            "absent": {sense: len(why) for sense, why in self.dataset.absent().items()},
            "unreadable": {str(source): why for source, why in self.dataset.refused.items()},
            "warnings": {path: list(texts) for path, texts in self.dataset.warnings.items()},
        }
        if held_out := self.dataset.val:
            base, patched = (token_accuracy(model, held_out, each, options.batch) for each in (names[:-1], names))
            metrics["held_out"] = {key: {"base": base[key], "patched": patched[key]} for key in patched}
        metrics |= {"gate": gate} if gate else {}
        metrics["retention"] = self.probe.measure(model, names, whole=True).facts()
        folder = self.setup.recipe.output
        measured = {key: metrics[key] for key in ("held_out", "retention") if key in metrics}
        if self.setup.ranks.first:
            replace(self.trainee.attached.export(), certificate=measured).save(folder / WEIGHTS)
            write_text(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        return Result(folder / WEIGHTS, metrics)

    def close(self) -> dict[str, float]:
        """Fit the gate of the patch, if it has one; the shares of the kept questions that it leaves to the base, and of
        the held-out ones for which it opens."""
        gate, setup, data = self.trainee.attached.gate, self.setup, self.dataset
        if gate is None:
            return {}
        read = setup.model.perception.reads
        asked, held_out = ([e.question for clip in part for e in clip.examples] for part in (data.train, data.val))
        hears = all(encoder.hears for encoder in setup.senses.values())
        tensors, shares = fitted(read, asked, setup.general or built_in("kept"), hears)
        gate.load_state_dict(tensors)
        opens = [gate.opens(read(question)) for question in dict.fromkeys(held_out)]
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
