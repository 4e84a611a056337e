"""One step as it would be: how long it takes and what memory, on the longest rows of the data.

In: a recipe with its models loaded, and clips with their questions. Out: a `Trial`, with an estimate of the whole run.
A few clips are read for it and stand for all others. Nothing is written; the model is of no use afterwards.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pave.data import Example, Source
from pave.errors import TrainingError
from pave.features.cache import FeatureCache
from pave.text.progress import clock
from pave.text.shown import Lines, counted
from pave.training.dataset import Dataset, rows
from pave.training.loss import score
from pave.training.plan import stretches
from pave.training.run import Run
from pave.training.setup import Setup

CLIPS = 4  # that are read, after one that warms up
ENDS = 3  # scores of all held-out clips at the end: of the base, of the patch, and with the signals of others
GB = 1e9

Asked = Mapping[Source, Mapping[float, Sequence[Example]]]  # questions about each clip, by weight


@dataclass(frozen=True, repr=False)
class Trial(Lines):
    """Seconds and bytes."""

    clips: int  # of the step
    longest: int  # tokens of its longest row
    step: float  # seconds of the step
    clip: float  # of reading and encoding a clip
    score: float  # of scoring the questions of a clip
    memory: Sequence[tuple[str, int, int]]  # where; bytes used at most, and bytes that there are
    work: tuple[int, int, int]  # clips to encode, steps, clips scored in all looks

    def lines(self) -> Iterator[str]:
        used = ", ".join(f"{most / GB:.1f} of {there / GB:.0f} GB of {where}" for where, most, there in self.memory)
        yield f"a step of {counted(self.clips, 'clip')}, the longest rows (up to {self.longest:,} tokens):"
        yield f"  {self.step:.2g} s; memory {used}"
        times = [count * each for count, each in zip(self.work, (self.clip, self.step, self.score), strict=True)]
        names = f"{counted(self.work[0], 'clip')} to encode", counted(self.work[1], "step"), "held-out questions"
        parts = ", ".join(f"{name} {clock(seconds)}" for name, seconds in zip(names, times, strict=True))
        yield f"  so the run takes about {clock(sum(times))}: {parts}"


def tried(setup: Setup, asked: Asked, held_out: int) -> Trial:
    """Try a step on training clips. TrainingError if it cannot be run. `held_out`: clips that a look scores."""
    data, options, host = setup.recipe.data, setup.recipe.train, setup.model.host
    store, sources = FeatureCache(setup.model, setup.encoders, None, data.features, data.timeout), list(asked)
    chosen = dict.fromkeys(sources[place * len(sources) // (CLIPS + 1)] for place in range(CLIPS + 1))
    warm = store.read(list(chosen)[:1]).stored
    begin = time.perf_counter()
    more = store.read(list(chosen)[1:]).stored
    seconds = (time.perf_counter() - begin) / max(1, len(chosen) - 1)
    read = [*warm.values(), *more.values()]
    if not read:
        cause = next(iter(store.refused.values()))
        raise TrainingError(f"none of {counted(len(chosen), 'clip')} that were tried can be read; the first: {cause}")
    questions = [each for weights in asked.values() for each in weights.values()]
    every = [row for place, each in enumerate(questions) for row in rows(host, read[place % len(read)], each)]
    longest = sorted(every, key=lambda row: -row.length)[: max(part.batch for part in options.parts)]
    dataset = Dataset(longest, [], dict(setup.senses), {}, [], {})
    if not options.keep_lora_when_absent and not dataset.sensing():
        tried = counted(len(read), "clip")
        raise TrainingError(f"none of {tried} that were tried has {' or '.join(setup.senses)}; give clips that have it")
    for device in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(device)
    try:
        run = Run.of(setup, dataset)
        run.step(0)  # warms up
        begin = time.perf_counter()
        run.step(1)
        step, begin = time.perf_counter() - begin, time.perf_counter()
        score(setup.model, longest, setup.names, options.batch)
        scoring = (time.perf_counter() - begin) / len(longest)
    except torch.OutOfMemoryError as error:
        cause = str(error).partition(". ")[0]
        remedy = "lower train.batch, or set train.gradient_checkpointing"
        raise TrainingError(f"a step of {counted(len(longest), 'clip')} does not fit ({cause}); {remedy}") from None
    steps = stretches(options, len(every))[-1].end
    looks = 2 * ((steps - 1) // options.eval_every) + ENDS
    work = (setup.store.missing, steps, held_out * looks)
    return Trial(len(longest), longest[0].length, step, seconds, scoring, list(_memory()), work)


def _memory() -> Iterator[tuple[str, int, int]]:
    """The most that this process has used so far, of this machine and of its GPUs."""
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        yield "this machine", most, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for device in range(torch.cuda.device_count()):
        if most := torch.cuda.max_memory_allocated(device):
            yield f"GPU {device}", most, torch.cuda.get_device_properties(device).total_memory
