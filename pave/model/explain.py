"""Explanations: which side tokens each key frame read, and which seconds an answer depends on.

In: one question, prepared. Out: an `Explanation`. Attention shows what was read, not that it mattered; a second is
cited only if the answer changes, or is much less likely, without it, and not without another second drawn by lot.

b rows, t key frames, s visual tokens of a key frame, τ time steps, w windows, l tokens of an answer
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pave.ambient import neutral
from pave.config import RESAMPLED
from pave.encoder import Encoder
from pave.errors import UsageError
from pave.explaining.explanation import CLEARLY, Explanation
from pave.explaining.found import Cited, Deletions, Reading
from pave.explaining.silencing import silenced, windows
from pave.media.clip import Clip
from pave.media.decoding import Timeout
from pave.model.answer import answered, generated, texts
from pave.model.call import Calls
from pave.model.inputs import ClipFeatures, Inputs, Use
from pave.model.rows import UNASKED, prepared
from pave.sidechannel import SideTokens

BATCH = 8  # rows at once
MOST = 4  # windows looked at in detail, of one sense
HEIGHT = 96  # pixels of a key frame that is kept, at most
NO_TIMES = "its tokens have no times, so no second of it can be deleted"
NO_SAMPLES = "the features hold no samples to silence; pass the file, or a Clip"


@dataclass(frozen=True)
class _Case:
    """One question about one clip, with the answer to be explained."""

    calls: Calls
    features: ClipFeatures
    question: str
    names: list[str]  # of the patches that act
    ids: Tensor  # (l,) of the answer
    most: int

    def inputs(self, sides: Sequence[Mapping[str, SideTokens | None]]) -> Inputs:
        """The same question about the clip with each of these side channels in place of its own."""
        clips = [replace(self.features, sides={**self.features.sides, **changed}) for changed in sides]
        return self.calls.prepare(clips, [self.question] * len(clips), [self.names] * len(clips))

    def likelihoods(self, sides: Sequence[Mapping[str, SideTokens | None]]) -> Tensor:
        """Log-likelihood of the answer with each of these side channels (b,)."""
        found = []
        for first in range(0, len(sides), BATCH):
            inputs = self.inputs(sides[first : first + BATCH])
            ids = self.ids.expand(len(inputs.input_ids), -1)
            said = replace(
                inputs,
                input_ids=torch.cat([inputs.input_ids, ids], 1),
                attention_mask=torch.cat([inputs.attention_mask, torch.ones_like(ids)], 1),
            )
            logits = self.calls.forward(said, None, ids.shape[1] + 1).logits[:, :-1]
            each = logits.float().log_softmax(-1).cpu().gather(-1, ids[..., None])[..., 0]
            found.append(each.sum(-1))
        return torch.cat(found)

    def says(self, sides: Sequence[Mapping[str, SideTokens | None]]) -> list[str]:
        return [text.strip() for text in texts(self.calls, self.inputs(sides), self.most)]


@neutral()
@torch.no_grad()
def explain(calls: Calls, row: Mapping[str, Any], timeout: Timeout, options: Mapping[str, Any]) -> Explanation:
    """One question, as `ask` takes it. UsageError if no patch with a sense acts on it."""
    asked = prepared(calls, [row], timeout, options)
    clip, features, uses = asked.clips[0], asked.features[0], [use for use in asked.inputs.uses if use.sensing[0]]
    if not uses:
        signals = "; ".join(f"{sense} {state}" for sense, state in asked.signals[0].items())
        why = f"no patch has a signal here ({signals})" if signals else "no patch with a sense is used"
        left = UNASKED in asked.signals[0].values()
        remedy = "apply it with gate=False" if left else "apply a patch, or pass the signal it reads"
        raise UsageError(f"{why}: the answer is the base's own; {remedy}")
    begin = time.perf_counter()
    output = generated(calls, asked)
    [answer] = answered(calls, asked, output, time.perf_counter() - begin)
    ids, most = output.sequences[0, asked.inputs.input_ids.shape[1] :].cpu(), options["max_new_tokens"]
    names = [use.name for use in asked.inputs.uses if use.acting[0]]
    case = _Case(calls, features, row["question"], names, ids, most)
    base = texts(calls, calls.prepare([features], [case.question], []), most)[0].strip()
    readings, missing = _readings(calls, asked.inputs, uses)
    deletions, cited = [], []
    for key, (sense, encoder) in _encoders(calls, uses).items():
        side, _ = features.side(key, "time")
        if side is None or not side.present:
            continue
        if side.kind == "set" or (encoder.hears and not isinstance(clip, Clip)):
            missing[sense] = NO_TIMES if side.kind == "set" else NO_SAMPLES
            continue
        spans, whole = windows(side), clip if isinstance(clip, Clip) else Clip()
        without = [{key: silenced(encoder, whole, side, start, end)} for start, end in spans.tolist()]
        likely = case.likelihoods([{}, *without])
        deletions.append(Deletions(sense, spans, likely[0] - likely[1:]))
        cited += _cited(case, str(answer), deletions[-1], without)
    cited.sort(key=lambda each: -each.lost)
    times = features.times.double().cpu()
    parts = tuple(readings), tuple(deletions), tuple(cited), missing
    return Explanation(
        case.question, answer, base, times, *parts, **_shown(clip, times) if isinstance(clip, Clip) else {}
    )


def _readings(calls: Calls, inputs: Inputs, uses: Sequence[Use]) -> tuple[list[Reading], dict[str, str]]:
    """What the key frames of the only row read, and why they read nothing of some patches."""
    found, missing = [], {}
    row = inputs.visual.to(calls.host.device, calls.host.dtype).rows()[0]
    for use in uses:
        patch = use.attached
        if not patch.adds:
            cause = f"its tokens stand in the prompt (combine: {patch.config.fusion.combine})"
            missing[use.name] = f"{cause}: the language model reads them, the key frames do not"
            continue
        vision, tokens = patch.carrying(*row.tokens.shape[1:3]) if use.carries(0) else (row.vision, row.tokens)
        tokens = tokens.to(patch.precision)
        for name, (side,) in patch.reading(use.sides).items():
            if side is None:
                continue
            side, times = side.to(tokens.device), None if side.sets is not None else side.times[0]
            fusion: Any = patch.fusion[name]
            weights = fusion.weights(vision, tokens, side).cpu()
            strength = patch.fusing(name)(vision, tokens, side).norm(dim=-1) / tokens.norm(dim=-1)
            if patch.resampler is not None:
                steps, times = patch.resampler.weights(
                    {sense: one for sense, (one,) in use.sides.items()}, weights.flatten(2)
                )
                weights = steps[..., None, None]
            senses = (name,) if name != RESAMPLED else tuple(use.sides)
            resampled = patch.resampler is not None
            found.append(Reading(use.name, senses, resampled, times, weights, use.weight * strength[0].float().cpu()))
    return found, missing


def _encoders(calls: Calls, uses: Sequence[Use]) -> dict[str, tuple[str, Encoder]]:
    """Senses and their encoders by `spec.preprocessing`: tokens that several patches read are deleted for all."""
    senses = [pair for use in uses for pair in use.attached.config.senses.items()]
    built = [(sense, calls.perception.encoder(config)) for sense, config in senses]
    return {encoder.spec.preprocessing: (sense, encoder) for sense, encoder in built}


def _cited(case: _Case, answer: str, found: Deletions, without: Sequence[Mapping[str, Any]]) -> Iterator[Cited]:
    """Windows without which the answer is clearly less likely, and that do not overlap."""
    spans, lost = found.windows.tolist(), found.lost.tolist()
    taken: list[int] = []
    for i in sorted(range(len(lost)), key=lambda i: -lost[i]):
        if lost[i] < CLEARLY or len(taken) == MOST:
            return
        apart = [j for j, (start, end) in enumerate(spans) if start >= spans[i][1] or end <= spans[i][0]]
        if not apart or not all(j in apart for j in taken):
            continue
        taken.append(i)
        other = Random(f"{case.question} {i}").choice(apart)
        mine, others = case.says([without[i], without[other]])
        if others == answer and lost[other] < lost[i] / 2:
            (start, end), (begin, until) = spans[i], spans[other]
            yield Cited(found.sense, start, end, lost[i], mine, (begin, until), lost[other], others)


def _shown(clip: Clip, times: Tensor) -> dict[str, Any]:
    """Small key frames at these seconds, and the sound."""
    found: dict[str, Any] = {}
    if clip.frames is not None and clip.times is not None:
        nearest = (clip.times[:, None] - times).abs().argmin(0)
        height, width = clip.frames.shape[2:]
        scale = min(1.0, HEIGHT / height)
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        found["frames"] = F.interpolate(clip.frames[nearest].float(), small, mode="area").round().to(torch.uint8)
    if clip.audio is not None and clip.rate:
        found |= {"sound": clip.audio.mean(0), "rate": clip.rate, "sound_start": clip.audio_start}
    return found
