"""Whether picture and signal disagree about a question, from what the model says with each alone.

In: a prepared question and its answer. Out: a score from 0 to 1. Nothing is trained for it.

The question is asked three more times: of the picture alone (no patch runs), of the signal alone (the patches run, and
every visual token is the mean of all), and of neither. With their answers and the one with both as candidates, and p(a)
their likelihoods, normalised, in each way,

    conflict = Σ p_picture(a) p_signal(b) (1 - p_neither(a) - p_neither(b))        over a ≠ b

is the probability that three answers, each drawn from one way, all differ: picture and signal contradict each other,
and each says something that the model would not say without it. An answer that one of them knows nothing about is the
one of neither, and no conflict.

b rows, t key frames, s visual tokens of a key frame, a candidates
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pave.ambient import neutral
from pave.model.answer import Prepared, texts
from pave.model.call import Calls
from pave.model.inputs import ClipFeatures
from pave.model.layout import History
from pave.packing.rows import IGNORE, Turn, collate, pack


@neutral()
@torch.no_grad()
def conflict_of(calls: Calls, asked: Prepared, question: str, history: History, answer: str) -> float | None:
    """The score of a single prepared question; None if no patch has a signal, or if there are no pictures."""
    (features,), uses = asked.features, asked.inputs.uses
    if features.blind or not any(use.sensing[0] for use in uses):
        return None
    names, blurred = [use.name for use in uses if use.acting[0]], _blurred(features)
    clips, patches = [features, blurred, blurred], [[], names, []]  # picture alone, signal alone, neither
    alone = calls.prepare(clips, [question] * 3, patches, [history] * 3)
    said = texts(calls, alone, asked.options["max_new_tokens"])
    candidates = {_plain(text): text.strip() for text in (*said, answer)}
    likely = likelihoods(calls, clips, question, patches, list(candidates.values()), history)
    picture, signal, neither = likely.softmax(-1)
    pairs = picture[:, None] * signal * (1 - neither[:, None] - neither)
    return float((pairs.sum() - pairs.diagonal().sum()).clamp(0, 1))


def likelihoods(
    calls: Calls,
    clips: Sequence[ClipFeatures],
    question: str,
    patches: Sequence[list[str]],
    answers: Sequence[str],
    history: History = (),
) -> Tensor:
    """Log-likelihoods of answers in each row (b a), all after one prefix."""
    host, layout = calls.host, calls.lay_out(clips, patches)
    rows = []
    for visual, template in zip(layout.visual, layout.templates, strict=True):
        before, after = host.prompt(question, template, history)
        rows.append(pack([*before, *visual], [Turn(after, [*host.encode_text(text), host.end]) for text in answers]))
    batch, most = collate(rows, host.pad), max(int((row.turns > 0).sum()) for row in rows)  # tokens behind a prefix
    inputs = layout.inputs(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
    logits = calls.forward(inputs, None, most + 1).logits[:, :-1].cpu().float()
    labels = batch["labels"][:, -most:]
    each = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORE)
    found = torch.zeros(len(rows), len(answers))
    for i, row in enumerate(rows):
        found[i].index_add_(0, (row.turns[-most:] - 1).clamp(min=0), each[i])
    return found


def _blurred(clip: ClipFeatures) -> ClipFeatures:
    """The clip with the mean of all its visual tokens in place of each."""

    def mean(x: Tensor) -> Tensor:
        return x.mean((0, 1), keepdim=True).expand_as(x).contiguous()

    deep = None if clip.deep is None else mean(clip.deep)
    return replace(clip, vision=mean(clip.vision), tokens=mean(clip.tokens), deep=deep)


def _plain(text: str) -> str:
    """A text without case and punctuation: answers that differ in these alone are one."""
    return " ".join(re.findall(r"\w+", text.casefold()))
