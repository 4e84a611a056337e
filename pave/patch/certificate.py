"""The certificate of a patch: how much better it answers with each clip's own signal than with controls in its place.

In: a patch, whose file may come from anyone. Out: its `Standing`; or the patch with a certificate. A certificate is
bound to the sha256 of config and tensors, so any other weights void it. It is a claim, not a signature: whoever has the
labelled set can run it again (`pave patch certify --check`). It never changes what a patch computes. Knows nothing of
how a certificate is measured (pave/evaluation/certify.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pave.config import Frames, Hash, Short, Text
from pave.errors import PaveError
from pave.files.validation import Config, parse
from pave.text.shown import counted, quoted, shown

if TYPE_CHECKING:
    from pave.patch.file import Patch

KEY = "listening"  # in the measured figures of a file
FEWEST = 20  # clips, below which an interval means little
MOST_TYPES = 64  # of questions, in one certificate
TINY = 1e-9  # rounding of a mean
Control = Literal["shuffled", "silent", "envelope", "shifted", "capacity"]
CONTROLS: Mapping[Control, str] = {
    "shuffled": "the signal of another clip, with another answer to this type of question, about as long and as loud",
    "silent": "digital silence; zeros of a sensor",
    "envelope": "sounds of other clips, at each moment as loud as this clip's own",
    "shifted": "its second half before its first",
    "capacity": "its own, read by a patch of the same size that never had the right signal in training",
}
ALWAYS: tuple[Control, ...] = (
    "shuffled",
    "silent",
)  # without which nothing is certified; and "envelope", if the patch hears
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Title = Annotated[str, Field(max_length=200)]


class Gain(Config):
    """How much a metric is higher with the own signal than with a control, with its interval over clips."""

    questions: Count
    clips: Count
    value: Number
    low: Number | None = None
    high: Number | None = None

    def __str__(self) -> str:
        return f"{self.value:+.3f}" + ("" if self.low is None else f" [{self.low:+.3f} {self.high:+.3f}]")


class TypeOfQuestion(Config):
    """The figures of one type of question."""

    name: Title
    questions: Count
    own: Number
    gains: Annotated[dict[Control, Gain], Field(max_length=len(CONTROLS))]


class PlayroomSet(Config):
    """Clips of the Playroom that no training saw, by what makes them."""

    clips: Annotated[int, Field(ge=1, le=1_000_000)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    channels: Annotated[tuple[Title, ...], Field(min_length=1, max_length=64)]


class LabelledSet(Config):
    """The questions and the clips; `sha256` is of their content, wherever the files are."""

    name: Title = ""
    sha256: Hash
    playroom: PlayroomSet | None = None
    questions: Count  # that were asked
    clips: Count
    types: Title = ""  # the key of a line that says its type of question; empty: all are of one


class Certificate(Config):
    """What was measured, and how; `passes` follows from it."""

    version: Literal[1] = 1
    sha256: Hash  # of the patch
    data: LabelledSet
    metric: Title
    own: Number
    gains: Annotated[dict[Control, Gain], Field(max_length=len(CONTROLS))]
    types: Annotated[tuple[TypeOfQuestion, ...], Field(max_length=MOST_TYPES)] = ()
    hears: bool  # whether a sense of the patch is sound
    any_time: bool = False  # the questions do not ask when: `shifted` is measured, but need not matter
    capacity: Hash = ""  # sha256 of the patch that is the control `capacity`
    not_run: Annotated[dict[Control, Short], Field(max_length=len(CONTROLS))]  # and why
    left_out: Annotated[dict[Title, Count], Field(max_length=16)]  # questions, by reason
    level: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100, le=10**7)]
    seed: Annotated[int, Field(ge=0, le=2**32)]
    base: Title
    fingerprint: Hash
    frames: Frames
    dtype: Title
    prompt: Text
    max_new_tokens: Count
    versions: Annotated[dict[Title, Title], Field(max_length=16)]

    @model_validator(mode="after")
    def _whole(self) -> Certificate:
        if lacking := [name for name in self.needed if name not in self.gains]:
            raise ValueError(f"gains has no {' and no '.join(lacking)}, which every certificate needs")
        if ("capacity" in self.gains) != bool(self.capacity):
            raise ValueError("capacity names the patch of that control, and is there if its gain is")
        return self

    @property
    def needed(self) -> tuple[Control, ...]:
        """The controls that no certificate can do without."""
        return (*ALWAYS, "envelope") if self.hears else ALWAYS

    @property
    def counting(self) -> dict[Control, Gain]:
        """The gains that decide."""
        return {name: gain for name, gain in self.gains.items() if not (name == "shifted" and self.any_time)}

    @property
    def lacking(self) -> list[Control]:
        """Controls over which no gain was found: the lower bound is not above 0."""
        few = {name for name, gain in self.counting.items() if gain.clips < FEWEST}
        return [name for name, gain in self.counting.items() if name in few or gain.low is None or gain.low <= 0]

    @property
    def passes(self) -> bool:
        """Whether the patch is certified: its gain over every control is above 0."""
        return not self.lacking

    def apart(self, recorded: Certificate) -> list[str]:
        """In what this certificate, measured again, contradicts a recorded one. Other versions and machines may answer
        a few questions otherwise, so a gain must be within the recorded interval."""
        found = []
        for what in ("sha256", "metric", "fingerprint", "frames", "prompt", "capacity", "any_time"):
            one, other = getattr(self, what), getattr(recorded, what)
            if one != other:
                found.append(f"{what} is {quoted(one)}, recorded {quoted(other)}")
        played = self.data.playroom is not None and self.data.playroom == recorded.data.playroom  # films vary by codec
        if not played and self.data.sha256 != recorded.data.sha256:
            found.append(f"the labelled set has sha256 {self.data.sha256[:16]}, recorded {recorded.data.sha256[:16]}")
        if self.passes != recorded.passes:
            found.append("it passes, recorded as failing" if self.passes else "it fails, recorded as passing")
        for name in CONTROLS:
            one, other = self.gains.get(name), recorded.gains.get(name)
            if one is None and other is None:
                continue
            if one is None or other is None:
                found.append(f"{name} is {one or 'not run'}, recorded {other or 'not run'}")
            elif (
                not (other.value if other.low is None else other.low) - TINY
                <= one.value
                <= ((other.value if other.high is None else other.high) + TINY)
            ):
                found.append(f"{name} is {one}, recorded {other}")
        return found

    def __str__(self) -> str:
        return "\n".join(map(shown, self.lines()))

    def lines(self) -> Iterator[str]:
        """As text; print with `str`, which escapes what acts on a terminal."""
        data = self.data
        yield "certified" if self.passes else f"not certified: no gain over {', '.join(self.lacking)}"
        made = data.name or "examples"
        if played := data.playroom:
            made = f"Playroom, {played.clips} clips, seed {played.seed}, {' '.join(played.channels)}"
        asked = f"{counted(data.questions, 'question')} about {counted(data.clips, 'clip')}"
        yield f"  set      {made}: {asked}, sha256 {data.sha256[:16]}"
        own = f"{self.own:.3f} with its own signal"
        yield f"  {self.metric:8} {own}; its gain over each control, {self.level:.0%} interval:"
        for name, gain in self.gains.items():
            aside = "" if name in self.counting else "; does not count: the questions do not ask when"
            fewer = "" if gain.questions == data.questions else f"; of {counted(gain.questions, 'question')}"
            yield f"    {name:9} {gain}{fewer}{aside}"
        for name, why in self.not_run.items():
            yield f"    {name:9} not run: {why}"
        for each in self.types if len(self.types) > 1 else ():
            gains = ", ".join(f"{name} {gain}" for name, gain in each.gains.items())
            yield f"  type     {each.name}: {counted(each.questions, 'question')}, {each.own:.3f}; {gains}"
        for reason, count in self.left_out.items():
            yield f"  left out {counted(count, 'question')}: {reason}"


@dataclass(frozen=True)
class Standing:
    """What a patch can show: nothing, a certificate that is void, one that found no gain, or one that holds."""

    kind: Literal["none", "void", "refused", "certified"]
    why: str
    certificate: Certificate | None = None


def standing(patch: Patch) -> Standing:
    """What a patch can show. What is wrong with a certificate makes it void, but does not harm the patch."""
    given = (patch.certificate or {}).get(KEY)
    if given is None:
        return Standing("none", "it has no certificate")
    try:
        certificate = parse(Certificate, given if isinstance(given, Mapping) else {}, "certificate")
    except PaveError as error:
        return Standing("void", str(error))
    if certificate.sha256 != patch.content:
        cause = f"is of the patch {certificate.sha256[:16]}, and this one is {patch.content[:16]}"
        return Standing("void", f"its certificate {cause}", certificate)
    if not certificate.passes:
        found = "; ".join(f"{name} {certificate.gains[name]}" for name in certificate.lacking)
        return Standing("refused", f"it was measured, and no gain was found ({found})", certificate)
    return Standing("certified", "", certificate)


def certified(patch: Patch, certificate: Certificate) -> Patch:
    """The patch with a certificate in place of an earlier one; its tensors and its sha256 are the same."""
    return replace(patch, certificate={**(patch.certificate or {}), KEY: certificate.model_dump(mode="json")})


def rebound(patch: Patch, config: Any) -> Patch:
    """The patch with a config that computes the same (another licence), and with its certificate, if that holds."""
    changed, found = replace(patch, config=config), standing(patch)
    if found.kind in ("none", "void") or found.certificate is None:
        return changed
    return certified(changed, found.certificate.model_copy(update={"sha256": changed.sha256}))
