"""What a training would meet, before it begins: all data, every clip, one step as it would be.

In: a recipe with its models loaded. Out: a `Scan`, which has its details and a verdict. Clips are looked at in worker
processes: at their headers, or read to their end. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import median

from pave.data import Source
from pave.errors import MediaError, PaveError, SignalError
from pave.features.cache import MAX_WORKERS
from pave.media.headers import announced_by_each
from pave.readers.parts import Part, places_of, read_parts
from pave.text.progress import Shown, clock
from pave.text.shown import Lines, counted
from pave.training.dataset import by_clip, turns_of, unread
from pave.training.setup import Setup
from pave.training.trial import Trial, tried

FEW, MANY = 10, 100  # findings of a kind that are named with their cause, and further ones without it
BINS, BAR = 8, 32  # bars of the histogram, and characters of the longest one
NO_PICTURES = "has no pictures; give a video, or a folder of pictures"
MISSING, UNREADABLE, SILENT, DAMAGED = "missing", "unreadable", "without sound", "damaged, but read"


@dataclass(repr=False)
class Scan(Lines):
    """All findings."""

    parts: Sequence[Sequence[Part]]  # for training, and held out
    places: Mapping[Source, Sequence[str]]  # where in the data each clip is asked about
    decoded: bool
    strict: bool
    found: dict[str, dict[Source, str]] = field(
        default_factory=lambda: {kind: {} for kind in (MISSING, UNREADABLE, SILENT, DAMAGED)}
    )
    seconds: list[float] = field(default_factory=list)  # of clips that announce them
    tokens: list[int] = field(default_factory=list)  # of every question with its clip and answer
    long: dict[str, str] = field(default_factory=dict)  # questions for which the base has no room, by place
    remarks: list[str] = field(default_factory=list)
    trial: Trial | None = None
    obstacle: str = ""  # what keeps the training from running; empty: nothing

    @property
    def bad(self) -> set[Source]:
        """Clips that cannot be used."""
        return {*self.found[MISSING], *self.found[UNREADABLE]}

    @property
    def broken(self) -> dict[str, str]:
        """Records that cannot be used, by their place."""
        return {part.named(place): flaw for part in chain(*self.parts) for place, flaw in part.broken}

    def lines(self) -> Iterator[str]:
        for part in chain(*self.parts):
            clips = counted(len({example.source for example in part.examples}), "clip")
            asked = counted(len(part.examples), "question")
            yield f"{part.file}: {counted(part.records, 'record')}, {asked} about {clips}"
        yield from _listed("broken", self.broken)
        length = f", {clock(sum(self.seconds))} in all, the longest {clock(max(self.seconds))}" if self.seconds else ""
        how = "read to their end" if self.decoded else "only headers were read; --decode reads all"
        yield f"{counted(len(self.places), 'clip')}{length}; {how}"
        for kind, clips in self.found.items():
            yield from _listed(kind, {"; ".join(self.places[clip][:3]): why for clip, why in clips.items()})
        yield from _histogram(self.tokens)
        yield from _listed("too long for the base", self.long)
        yield from self.remarks
        if self.trial:
            yield from self.trial.lines()

    @property
    def verdict(self) -> str:
        """Whether the training can run, and without what."""
        if self.obstacle:
            return f"not ready: {self.obstacle}"
        good = counted(len(self.places) - len(self.bad), "clip")
        return f"ready: {good} can be used" + (f"; left out: {self.unusable}" if self.unusable else "")

    @property
    def unusable(self) -> str:
        """How much of the data cannot be used; empty: all can."""
        counts = (len(self.bad), "clip"), (len(self.broken), "broken record")
        return " and ".join(counted(count, name) for count, name in counts if count)

    def judge(self, hears: bool) -> None:
        """See what keeps the training from running, as far as the data tell. `hears`: it reads nothing but sound."""
        for part, kind in zip(self.parts, ("clip", "held-out clip"), strict=False):
            clips = {example.source for each in part for example in each.examples} - self.bad
            if not clips:
                self.obstacle = f"no {kind} can be read"
            elif hears and kind == "clip" and clips <= self.found[SILENT].keys():
                self.obstacle = "no clip has sound, so there is nothing to learn from"
        if self.strict and self.unusable:
            self.obstacle = f"{self.unusable} cannot be used, and data.strict leaves none out"


def scan(setup: Setup, decode: bool, shown: Shown) -> Scan:
    """Look at all data of a recipe, and try a step; `decode`: read all clips to their end."""
    data, host, senses = setup.recipe.data, setup.model.host, setup.senses.values()
    packed: set[Path] = set()
    with shown.stage("data"):
        parts = [read_parts(each, host.refuse_text, packed) for each in (data.train, data.val) if each]
        places = places_of(list(chain(*parts)))
    found = Scan(parts, places, decode, data.strict)
    for source in places:
        if gone := [file for file in source.files if file not in packed and not os.path.exists(file)]:
            found.found[MISSING][source] = f"{gone[0]}: no such file"
    there = [source for source in places if source not in found.bad and source.video not in packed]
    with shown.stage("clips", len(there)) as stage:
        (_decode if decode else _announced)(setup, there, found, stage.to)
    examples = [[example for part in each for example in part.examples] for each in parts]
    asked = [by_clip(each) for each in examples]
    with shown.stage("tokens", len(places)) as stage:
        _count(setup, list(chain(*parts)), found, stage.to)
    found.remarks += [*unread(chain(*examples), setup.streams), *setup.store.plan(list(places))]
    always = setup.recipe.train.keep_lora_when_absent
    found.judge(hears=not always and all(encoder.hears for encoder in senses))
    usable = {s: each for s, each in asked[0].items() if s not in found.bad and s.video not in packed}
    if not found.obstacle and usable:
        with shown.stage("one step"):
            try:
                found.trial = tried(setup, usable, len(asked[1]) if len(asked) > 1 else 0)
            except PaveError as error:
                found.obstacle = str(error)
    return found


def _announced(setup: Setup, sources: Sequence[Source], found: Scan, on_clip: Callable[[int], object]) -> None:
    """Look at the headers of clips, and of sounds that replace theirs."""
    paths = [[str(source.video), *_sound(source)] for source in sources]
    headers = announced_by_each(chain(*paths), _workers())
    for done, (source, each) in enumerate(zip(sources, paths, strict=True), 1):
        heads = list(islice(headers, len(each)))
        flaws = [f"{path}: {head.flaw}" for path, head in zip(each, heads, strict=True) if head.flaw]
        if not flaws and not heads[0].pictures:
            flaws = [f"{source}: {NO_PICTURES}"]
        muted = "audio" in dict(source.signals) and len(each) == 1
        if flaws:
            found.found[UNREADABLE][source] = flaws[0]
        elif setup.store.hears and (muted or not heads[-1].sound):
            found.found[SILENT][source] = f"{each[-1]}: {'its sound is left out by the data' if muted else 'no sound'}"
        found.seconds += [heads[0].seconds] if heads[0].seconds and not flaws else []
        on_clip(done)


def _sound(source: Source) -> list[str]:
    """The file that replaces the sound of a clip, if there is one."""
    file = dict(source.signals).get("audio")
    return [file] if isinstance(file, str) else []


def _decode(setup: Setup, sources: Sequence[Source], found: Scan, on_clip: Callable[[int], object]) -> None:
    """Read clips to their end, as the training does."""
    store = setup.store
    for done, (source, clip) in enumerate(zip(sources, store.decoded(sources), strict=True), 1):
        try:
            if isinstance(clip, MediaError):
                raise clip
            clip = clip.beside(source.beside(store.hears), timeout=store.timeout)
            if clip.frames is None:
                raise MediaError(f"{source}: {NO_PICTURES}")
        except (MediaError, SignalError) as error:
            found.found[UNREADABLE][source] = str(error)
        else:
            if store.hears and clip.audio is None:
                found.found[SILENT][source] = f"{source}: {clip.report.audio}"
            if clip.report.warnings:
                found.found[DAMAGED][source] = f"{source}: {'; '.join(clip.report.warnings)}"
            found.seconds.append(clip.report.seconds)
        on_clip(done)


def _count(setup: Setup, parts: Sequence[Part], found: Scan, on_clip: Callable[[int], object]) -> None:
    """Count tokens as the loss sees them."""
    host, done = setup.model.host, 0
    visual = len(host.visual_ids(range(0, host.frames, host.pair), setup.recipe.newline or host.newlines[0]))
    before = len(host.prompter.prefix) + visual
    for part in parts:
        for weights in by_clip(part.examples).values():
            for examples in weights.values():
                length = before
                for example, turn in zip(examples, turns_of(host, examples), strict=True):
                    length = (length if turn.follows else before) + len(turn.prompt) + len(turn.answer)
                    found.tokens.append(length)
                    if host.context and length > host.context:
                        cause = f"{length:,} tokens with its clip, and the base reads {host.context:,}"
                        found.long[part.named(example.place)] = f"{cause}; shorten it, or lower frames"
            on_clip(done := done + 1)


def _workers() -> int:
    return min(MAX_WORKERS, os.cpu_count() or 1)


def _listed(kind: str, found: Mapping[str, str]) -> Iterator[str]:
    """Findings of one kind: the first ones with their cause, of more the places."""
    if found:
        yield f"  {len(found):,} {kind}:"
    yield from (f"    {place}: {why}" for place, why in islice(found.items(), FEW))
    if further := list(islice(found, FEW, FEW + MANY)):
        more = "" if len(found) <= FEW + MANY else f"; and {len(found) - FEW - MANY:,} more"
        yield f"    also {', '.join(further)}{more}"


def _histogram(values: Sequence[int]) -> Iterator[str]:
    """How many values there are of each size."""
    if not values:
        return
    low, high = min(values), max(values)
    yield f"tokens of a question with its clip and answer: {low:,} to {high:,}, median {median(values):,.0f}"
    width = (high - low) // BINS + 1
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    for number, count in enumerate(counts if high > low else ()):
        begin = low + number * width
        bar = "█" * -(-count * BAR // max(counts))
        yield f"  {begin:>7,} to {begin + width - 1:>7,}  {bar:{BAR}} {count:>9,}"
