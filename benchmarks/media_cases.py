"""Media files of four kinds, each with what a player would show: clocks, lengths, damage, formats.

In: the name of a case. Out: its file, and what it expects of whoever reads it. Knows nothing of PAVE.

kind 1: stamps that repeat, run backward, jump or drift, and tracks to choose from. 2: long files. 3: cut or damaged
files. 4: unusual rates, channels and formats.

What is expected: the design of the file. `heard` lists (flashes, tones) in seconds after the first picture; with
several pairs, each is a legitimate reading (a gap of an hour may stay or close up). `as_ffmpeg` accepts the clock of
the ffmpeg command too: where parts are joined it lays the second one after the longer track of the first.
"""

from __future__ import annotations

from media_case import Case
from media_clocks import clean, drifts, holes, matroska, streams
from media_containers import others
from media_formats import damaged, formats, layouts, long, rates
from media_starts import starts, tracks


def cases() -> list[Case]:
    made = [*clean(), *streams(), *matroska(), *drifts(), *holes(), *starts(), *others(), *tracks()]
    made += [*long(), *damaged(), *rates(), *layouts(), *formats()]
    assert len({case.name for case in made}) == len(made)
    return made
