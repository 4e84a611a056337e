"""Progress of long work on stderr: a bar on a terminal or in a notebook, and elsewhere a line every few seconds.

In: the stages of some work, and how many things of one are done. Out: how many, how fast, what is left, and a note.
What is told in between stands above the bar. Knows nothing of the work.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pave.text.shown import shown

EVERY = 10.0  # seconds between two lines where nothing can be drawn
BAR = 10  # columns of a bar on a terminal, of which some have 80
REDRAWN = 0.2  # seconds between two drawings in a notebook


@dataclass
class Stage:
    """One kind of things to do. `total`: how many; None: not known."""

    name: str
    total: int | None = None
    done: int = 0
    note: str = ""
    first: int = 0  # done before, by an earlier process or from a cache
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None
    draw: Callable[[Stage], None] = lambda stage: None
    handle: Any = None  # of what draws it
    drawn: float = 0.0  # when that was

    def __str__(self) -> str:
        return "  ".join([self.name, *self.facts()])

    def to(self, done: int, total: int | None = None, note: str = "") -> None:
        """So many are done."""
        if self.total is None and total is not None:  # those before were found, not made
            self.first, self.total = done - 1, total
        self.done, self.note = done, note
        self.draw(self)

    def facts(self) -> list[str]:
        """How many are done, how fast, how long the others will take; and the note."""
        now, fresh = self.ended or time.monotonic(), self.done - self.first
        seconds = now - self.begun
        if self.total is None:
            return [*([f"{self.done:,}"] if self.done else []), clock(seconds), *filter(None, [self.note])]
        facts = [f"{self.done:,}/{self.total:,}"]
        if fresh > 0 and seconds > 0:
            speed, left = fresh / seconds, (self.total - self.done) * seconds / fresh
            facts += [f"{_short(speed)}/s" if speed >= 1 else f"{_short(1 / speed)} s each"]
            facts += [f"{clock(left)} left" if self.done < self.total else f"in {clock(seconds)}"]
        return [*facts, *filter(None, [self.note])]


class Shown:
    """What a person sees of some work. `bars`: whether stages are shown; `lines`: whether lines that are told are."""

    def __init__(self, bars: bool = True, lines: bool = True) -> None:
        self.bars, self.lines = bars, lines
        self._stages: list[Stage] = []  # the current one, behind those that it is a part of
        self._screen: _Screen = _Screen()

    def __enter__(self) -> Shown:
        if self.bars:
            self._screen = _Notebook() if _in_notebook() else _Bars() if sys.stderr.isatty() else _Log(self._stages)
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.close()
        self._screen = _Screen()

    def tell(self, *lines: object) -> None:
        """Print lines, above the bars."""
        for line in lines if self.lines else ():
            sys.stderr.write(f"{shown(line)}\n")
        sys.stderr.flush()

    @contextmanager
    def stage(self, name: str, total: int | None = None, done: int = 0) -> Iterator[Stage]:
        """A stage of the work, for the block; it may have parts, which are stages, too. `done`: from before."""
        screen = self._screen
        stage = Stage(name, total, done, first=done, draw=screen.draw)
        self._stages.append(stage)
        screen.draw(stage)
        try:
            yield stage
        finally:
            self._stages.remove(stage)
            stage.ended = time.monotonic()
            screen.end(stage, part=bool(self._stages))


def silent() -> Shown:
    """Nothing is seen."""
    return Shown(bars=False, lines=False)


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:,.0f}"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")


class _Screen:
    """Draws nothing."""

    def draw(self, stage: Stage) -> None: ...

    def end(self, stage: Stage, part: bool) -> None: ...

    def close(self) -> None: ...


class _Bars(_Screen):
    """A bar for each stage on a terminal; those of parts go when they end."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.text import Text

        class Facts(ProgressColumn):  # made anew at every drawing, so that clocks go on
            def render(self, task: Task) -> Text:
                facts = "  ".join(map(shown, task.fields["stage"].facts()))
                return Text(facts, no_wrap=True, overflow="ellipsis")

        columns = TextColumn("{task.description}", markup=False), BarColumn(BAR), Facts()
        self.bars = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self.bars.start()

    def draw(self, stage: Stage) -> None:
        if stage.handle is None:
            stage.handle = self.bars.add_task(shown(stage.name), total=None, stage=stage)
        self.bars.update(stage.handle, completed=stage.done, total=stage.total)

    def end(self, stage: Stage, part: bool) -> None:
        if part or stage.total is None:
            self.bars.remove_task(stage.handle)

    def close(self) -> None:
        self.bars.stop()


class _Notebook(_Screen):
    """A bar below the cell for each stage; those of parts go when they end."""

    def draw(self, stage: Stage) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        now, text = time.monotonic(), shown(stage)
        if stage.handle is not None and now - stage.drawn < REDRAWN:
            return
        stage.drawn = now
        bar = "" if stage.total is None else f'<progress value="{stage.done}" max="{max(1, stage.total)}"></progress> '
        content = {"text/plain": text, "text/html": f"{bar}<code>{html.escape(text)}</code>"}
        if stage.handle is None:
            stage.handle = display(content, raw=True, display_id=True)
        else:
            stage.handle.update(content, raw=True)

    def end(self, stage: Stage, part: bool) -> None:
        if part or stage.total is None:
            stage.handle.update({"text/plain": "", "text/html": ""}, raw=True)
        else:
            stage.drawn = 0.0
            self.draw(stage)


class _Log(_Screen):
    """A line every few seconds about the current stage, and at the end of each; a thread writes them, so that there is
    one even while nothing gets done."""

    def __init__(self, stages: list[Stage]) -> None:
        self.stages, self.over = stages, threading.Event()
        self.thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self.thread.start()

    def _write(self) -> None:
        while not self.over.wait(EVERY):
            if stages := self.stages[:]:
                self._line(" › ".join(map(str, stages)))

    def end(self, stage: Stage, part: bool) -> None:
        if stage.done > stage.first and not part:
            self._line(str(stage))

    def close(self) -> None:
        self.over.set()
        self.thread.join()

    def _line(self, text: str) -> None:
        sys.stderr.write(f"{shown(text)}\n")  # in one call: another thread may write, too
        sys.stderr.flush()
