"""The clip of a request: its media are stored, read and encoded, unless the same bytes have been before.

In: content parts, and the patches of the request. Out: `ClipFeatures`; those of the last clips are kept, so that a
further question of a dialogue, which sends its clip again, costs neither decoding nor encoding.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pave.errors import MediaError, PaveError
from pave.explaining.explanation import Explanation
from pave.media.clip import Clip, sound
from pave.model.call import senses_of
from pave.model.inputs import ClipFeatures, Use
from pave.model.kept import Kept
from pave.model.layout import refuse_questions
from pave.model.patched import PatchedModel
from pave.model.rows import TOY, beyond_playroom, reading, row_of
from pave.serving.media import Given, Intake, Stored
from pave.serving.settings import Limits

UNHEARD = "the sound beside the clip is not read: no patch that answers this question hears"


class Reader:
    """Makes features of media. For several threads."""

    def __init__(self, model: PatchedModel, intake: Intake, limits: Limits) -> None:
        self.model, self.intake, self.limits = model, intake, limits
        self.kept = Kept(limits.kept)

    def features(self, media: Sequence[Given], patches: Sequence[str], question: str) -> tuple[Hashable, ClipFeatures]:
        """The features of a request's clip, with the senses of its patches; and a key of its bytes."""
        refuse_questions(self.model.host, [question])  # before the clip is read
        with self._stored(media) as files:
            return self._encoded(files, patches, question)

    def explained(self, media: Sequence[Given], patches: Sequence[str], question: str, most: int) -> Explanation:
        """Why the answer about a request's clip is what it is. It silences samples, so that the clip is read anew."""
        refuse_questions(self.model.host, [question])
        with self._stored(media) as files:
            clip = self._read(files, patches, question, self._uses(patches, question))
            return self.model.explain(clip, question, patches=patches, max_new_tokens=most)

    @contextmanager
    def _stored(self, media: Sequence[Given]) -> Iterator[dict[Any, Stored]]:
        """The files of a request, within the block."""
        with TemporaryDirectory(prefix="pave-serve-") as folder:  # of this user alone
            try:
                yield {each.kind: self.intake.store(each, Path(folder) / each.kind) for each in media}
            except PaveError as error:
                if folder in str(error):  # a client has no use for names of temporary files
                    raise MediaError(str(error).replace(f"{folder}/", "the ")) from None
                raise

    def _uses(self, patches: Sequence[str], question: str) -> list[Use]:
        calls = self.model.calls
        return calls.open(calls.applied.uses([patches], 1), [question])

    def _encoded(
        self, files: dict[Any, Stored], patches: Sequence[str], question: str
    ) -> tuple[Hashable, ClipFeatures]:
        perception, uses = self.model.perception, self._uses(patches, question)
        needed = perception.encoders(senses_of(uses))
        key = tuple((kind, file.sha256) for kind, file in sorted(files.items()))
        known: ClipFeatures | None = self.kept.get(key)
        lacking = {name: each for name, each in needed.items() if known is None or name not in known.sides}
        if known is None or lacking:
            clip = self._read(files, patches, question, uses)
            if known is None:
                known = perception.features([clip], needed.values())[0]
                if beyond_playroom(self.model.calls, clip):
                    known = replace(known, warnings=(*known.warnings, TOY))
            else:
                known = known.with_senses(perception.sense(clip, lacking.values()))
            self.kept.put(key, known)
        unheard = "audio" in files and not any(each.hears for each in needed.values())
        return key, replace(known, warnings=(*known.warnings, UNHEARD)) if unheard else known

    def _read(self, files: dict[Any, Stored], patches: Sequence[str], question: str, uses: Sequence[Use]) -> Clip:
        film = next((file.path for kind, file in files.items() if kind != "audio"), None)
        options = {} if film is None else reading(self.model.calls, [row_of((film, question, patches))], uses, 0)
        return self._clip(film, files["audio"].path if "audio" in files else None, options)

    def _clip(self, film: Path | None, heard: Path | None, options: dict[str, Any]) -> Clip:
        limits = self.limits
        clip = None
        if film is not None:
            clip = self._within(Clip.read(film, **options, end=limits.clip_seconds, timeout=limits.reading))
        if heard is not None:
            own = Clip.read(heard, frames=0, end=limits.clip_seconds, timeout=limits.reading)
            own = self._within(sound(own))
            clip = own if clip is None else clip.beside({"audio": own})
        assert clip is not None  # every request has media
        return clip

    def _within(self, clip: Clip) -> Clip:
        """The clip; MediaError if its file is longer than was read."""
        report, limits = clip.report, self.limits
        if report.seconds > limits.clip_seconds:
            raise MediaError(f"{report.source}: is {report.seconds:.0f} s long; send at most {limits.clip_seconds:g} s")
        if report.pictures > limits.clip_pictures:
            cause = f"has {report.pictures:,} pictures"
            raise MediaError(f"{report.source}: {cause}; send at most {limits.clip_pictures:,}")
        return clip
