"""Instructions about many clips, by processes that may be killed: the work of `pave curate`.

In: clips, and a `Curation`. Out: a folder with `captions.jsonl` and `replies.jsonl`, which hold all that took time or
money and from which a killed curation goes on; `instructions.jsonl` in our own format, `dropped.jsonl` with the reason
for each entry that is not in it, and `report.json`. The last three are made from the first two alone, at the end, so
nothing is lost or written twice, whatever was killed and when.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from pave.curation.captions import Captioned, caption, key_of, refuse_unknown
from pave.curation.config import Curation
from pave.curation.duplicates import Seen
from pave.curation.instructions import Entry, written
from pave.curation.prompts import Prompt, prompts_of
from pave.curation.writer import Asking, Spent, writer_of
from pave.data import Source
from pave.data_sets import DataSet
from pave.endpoint.kept import Kept
from pave.endpoint.many import done
from pave.errors import DataError, raised_as
from pave.features.cluster import on_ray
from pave.features.extract import Engine
from pave.files.atomic import replacing
from pave.files.locks import held
from pave.readers.questions import Reading
from pave.readers.sample import Broken
from pave.text.progress import Shown, silent
from pave.text.shown import Lines, counted, quoted

CAPTIONS, REPLIES = "captions.jsonl", "replies.jsonl"
INSTRUCTIONS, DROPPED, REPORT = "instructions.jsonl", "dropped.jsonl", "report.json"
Clips = Sequence[tuple[str, Source]]


@dataclass(frozen=True, repr=False)
class Curated(Lines):
    """What became of the clips. An entry is a question with its answer, or a dialogue."""

    folder: str
    options: Mapping[str, Any]
    clips: int
    complete: int  # of which all was asked; the others wait for a larger budget
    described: int  # clips with an entry that is kept
    entries: int  # that were written
    kept: Mapping[str, int]  # entries by channel and kind
    questions: int  # in them
    dropped: Mapping[str, int]  # entries by reason
    lacking: Mapping[str, int]  # requests without a usable reply, and clips without captions, by reason
    requests: int  # paid in this folder, by all runs
    tokens: int
    models: Sequence[str]  # as the endpoint names them

    def lines(self) -> list[str]:
        kept = sum(self.kept.values())
        counts = counted(kept, "entry") if kept == 1 else f"{kept:,} entries"
        lines = [
            f"{self.complete:,} of {counted(self.clips, 'clip')} done, {self.described:,} with instructions",
            f"{counts} kept of {self.entries:,}, with {counted(self.questions, 'question')}{_named(self.kept)}",
        ]
        lines += [f"{sum(self.dropped.values()):,} dropped{_named(self.dropped)}"] if self.dropped else []
        lines += [f"{sum(self.lacking.values()):,} not written{_named(self.lacking)}"] if self.lacking else []
        by = f" by {', '.join(map(quoted, self.models))}" if self.models else ""
        lines += [f"{counted(self.requests, 'request')}{by}, {counted(self.tokens, 'token')}"]
        if self.complete < self.clips:
            lines += ["the limit of tokens is reached; raise --tokens and run the same command again to continue"]
        return [*lines, str(Path(self.folder) / INSTRUCTIONS)]


def curate(
    options: Curation,
    clips: Clips,
    out: Path,
    *,
    workers: int = 1,
    engine: Engine = "local",
    show: Shown | None = None,
) -> Curated:
    """Write instructions about clips into a folder; what is in it is not done again. workers: of captioning."""
    if any(source.start is not None or source.end is not None for _, source in clips):
        raise DataError(
            "these clips are parts of files, which our format of data cannot name; cut them into files first"
        )
    clips = _distinct(clips)
    prompts, writer, show = prompts_of(options), writer_of(options), show or silent()
    seen = Seen(options.similar) if options.similar else None
    with raised_as(DataError), held(out, "pave curate"):
        captions, asking = Kept(out / CAPTIONS), Asking(options, writer, out / REPLIES)
        left = {clip: key for clip in clips if (key := key_of(options, *clip)) not in captions}
        with show.stage("captions", len(clips), len(clips) - len(left)) as stage:
            for clip, value in _described(options, list(left), workers, engine):
                captions.add(left[clip], json.loads(value))
                stage.to(stage.done + 1)

        def write(clip: tuple[str, Source]) -> bool:
            """Have all requests about a clip answered; False if the budget does not allow it."""
            try:
                return bool(list(written(_captions(options, clip, captions), asking, prompts, options)))
            except Spent:
                return False

        with show.stage("clips", len(clips)) as stage:
            for count, _ in enumerate(done(write, clips, options.at_once, "writer", asking.close), 1):
                stage.to(count, note=f"{asking.spent:,} tokens")
        return _assemble(options, clips, out, captions, asking, prompts, seen)


def _distinct(clips: Clips) -> Clips:
    """The clips, with a number behind a name that an earlier one has: of the same file with another sound."""
    seen, found = Counter[str](), []
    for name, source in clips:
        seen[name] += 1
        found.append((name if seen[name] == 1 else f"{name} ({seen[name]})", source))
    return found


def _described(
    options: Curation, clips: Clips, workers: int, engine: Engine
) -> Iterator[tuple[tuple[str, Source], str]]:
    """Each clip with its captions, as JSON."""
    if clips:
        refuse_unknown(options)
    work = partial(caption, options)
    return on_ray(work, clips, workers) if engine == "ray" else done(work, clips, workers, "captions")


def _captions(options: Curation, clip: tuple[str, Source], captions: Kept) -> Captioned:
    value = captions.get(key_of(options, *clip))
    assert value is not None, "it was captioned before"
    return Captioned.kept(value)


def _assemble(
    options: Curation,
    clips: Clips,
    out: Path,
    captions: Kept,
    asking: Asking,
    prompts: Mapping[str, Prompt],
    seen: Seen | None,
) -> Curated:
    """Go through all replies once more, in the order of the clips, and write what is kept and what is not."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("kept", "dropped", "lacking")}
    complete = described = questions = 0
    with replacing(out / INSTRUCTIONS) as good, replacing(out / DROPPED) as bad:
        for clip in clips:
            captioned = _captions(options, clip, captions)
            try:
                entries = list(written(captioned, asking.known, prompts, options))
            except Spent:
                continue
            complete, kept = complete + 1, 0
            for number, entry in enumerate(entries, 1):
                record = _record(clip, entry, captioned.alone, number, out)
                why, detail = entry.why, entry.detail
                if entry.turns and not why:
                    why, detail = _flaw(record, out, seen)
                if why:
                    counts["dropped" if entry.turns else "lacking"][why] += 1
                    _line(bad, {**record, "why": why, "detail": detail})
                    continue
                counts["kept"][f"{entry.channel} {entry.kind}"] += 1
                questions, kept = questions + len(entry.turns), kept + 1
                _line(good, record)
            described += bool(kept)
        figures = {name: dict(sorted(each.items())) for name, each in counts.items()}
        made = sum(counts["kept"].values()) + sum(counts["dropped"].values())
        requests, models = 0, set()
        for value in asking.kept.all():
            requests, models = requests + 1, models | {value["model"]} - {""}
        found = Curated(
            str(out),
            options.facts() | {"writer": asking.writer.shown},
            len(clips),
            complete,
            described,
            made,
            questions=questions,
            requests=requests,
            tokens=asking.spent,
            models=sorted(models),
            **figures,
        )
    with replacing(out / REPORT) as file:
        file.write((json.dumps(asdict(found) | {"folder": "."}, indent=1) + "\n").encode())
    return found


def _record(clip: tuple[str, Source], entry: Entry, alone: bool, number: int, out: Path) -> dict[str, Any]:
    """An entry in our own format; media are named relative to the folder."""
    name, source = clip
    media = "audio" if alone else "video"
    turns = [each for asked, answer in entry.turns for each in _turns(asked, answer)]
    if turns:
        turns[0]["value"] = f"<{media}>\n{turns[0]['value']}"
    signals = {key: _beside(files, out) for key, files in source.signals}
    tracks = {key: value for key, value in source.tracks.items() if value is not None}
    return {
        "id": f"{name}#{number}",
        media: _beside(str(source.video), out),
        **({"signals": signals} if signals else {}),
        **tracks,
        "conversations": turns,
        "channel": entry.channel,
        "kind": entry.kind,
        "scores": dict(entry.scores),
    }


def _turns(asked: str, answer: str) -> Iterable[dict[str, str]]:
    return {"from": "human", "value": asked}, {"from": "gpt", "value": answer}


def _beside(files: Any, out: Path) -> Any:
    """Paths, relative to the folder."""
    if isinstance(files, str):
        return os.path.relpath(files, out)
    return files and [_beside(each, out) for each in files]


def _flaw(record: Mapping[str, Any], out: Path, seen: Seen | None) -> tuple[str, str]:
    """Why a verified entry is dropped nevertheless, and more about that; empty if it is not."""
    reading = Reading(DataSet(file=out / INSTRUCTIONS, format="llava", media=out), rows=[record])
    _, found = next(reading.parsed())
    if isinstance(found, Broken):
        return "invalid", str(found)
    text = "\n".join(line for each in found for line in (each.question, each.answer))
    twin = seen and seen.twin(record["id"], text)
    return ("diversity", f"near-duplicate of {twin}") if twin else ("", "")


def _named(counts: Mapping[str, int]) -> str:
    return f": {', '.join(f'{count:,} {name}' for name, count in counts.items())}" if counts else ""


def _line(file: IO[bytes], value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
