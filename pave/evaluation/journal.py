"""The answers of an evaluation in a folder, from which it goes on after a kill.

In: what identifies the evaluation, and answers in batches. Out: `settings.json`, and `samples.jsonl` with a line per
question. A batch whose answers are all there is not asked again; any other is asked as a whole, so that an answer does
not depend on where a run was stopped. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pave.errors import FileDamaged, UsageError
from pave.files import json_text
from pave.files.atomic import append, read_bytes, write_text

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"
Answers = Mapping[str, str]  # of one question, by side; and the likeliest letters


def likeliest(side: str) -> str:
    """The name of the letters of a run."""
    return f"{side}, likeliest"


class Journal:
    """The answers so far, by the place of the question."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder, self.known = folder, dict[int, dict[str, str]]()
        if folder is None:
            return
        if (folder / SETTINGS).exists():
            self._refuse_other(json_text.read_json(folder / SETTINGS), settings)
            self.known = self._read()
            write_text(folder / SAMPLES, _lines(_samples(self.known)))  # without a last line that is cut
        else:
            write_text(folder / SAMPLES, "")
            write_text(folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

    def of(self, places: Sequence[int], sides: Sequence[str]) -> list[dict[str, str]] | None:
        """The answers of a batch; None unless they are all known."""
        found = [self.known.get(place, {}) for place in places]
        return found if all(set(sides) <= each.keys() for each in found) else None

    def add(self, places: Sequence[int], answers: Sequence[dict[str, str]]) -> None:
        """The answers of a batch."""
        fresh = dict(zip(places, answers, strict=True))
        self.known |= fresh
        if self.folder is not None:
            append(self.folder / SAMPLES, _lines(_samples(fresh)).encode())

    def finish(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """All answers in the order of their questions, each with the question and its scores."""
        if self.folder is not None:
            write_text(self.folder / SAMPLES, _lines({"place": i, **sample} for i, sample in enumerate(samples)))

    def _read(self) -> dict[int, dict[str, str]]:
        assert self.folder is not None
        file, found = self.folder / SAMPLES, {}
        for line in read_bytes(file).split(b"\n")[:-1] if file.exists() else []:  # the last one is cut, or empty
            value = json_text.parse_json(file, line, "line")
            place, answers = value.get("place"), value.get("answers")
            if not isinstance(place, int) or not isinstance(answers, dict):
                raise FileDamaged(file, "a line has no place or answers", "delete the folder and start again")
            found[place] = {str(side): str(answer) for side, answer in answers.items()}
        return found

    def _refuse_other(self, there: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """UsageError for a folder of another evaluation: it names what differs."""
        plain = json.loads(json.dumps(settings))
        other = [key for key in {**there, **plain} if there.get(key) != plain.get(key)]
        if other:
            raise UsageError(
                f"{self.folder}: holds another evaluation, with other {', '.join(other)}; choose another folder, or "
                "delete it"
            )


def _samples(answers: Mapping[int, Answers]) -> Iterable[dict[str, Any]]:
    return ({"place": place, "answers": each} for place, each in answers.items())


def _lines(samples: Iterable[Mapping[str, Any]]) -> str:
    """A line each; a lone surrogate, which JSON can contain, has no UTF-8 encoding."""
    texts = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    return "".join(texts).encode("utf-8", "replace").decode()
