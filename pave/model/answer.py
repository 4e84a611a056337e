"""Answers: the text, the patches that were asked for, what was perceived, and how long each step took.

In: prepared questions. Out: an `Answer` for each. Knows nothing of files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pave.model.inputs import Inputs
from pave.model.steps import Steps


class Answer(str):
    """What the model said, and how it came about."""

    patches: tuple[str, ...]  # names of the patches that were asked for
    signals: Mapping[str, str]  # sense -> what was perceived, or why nothing was
    timings: Mapping[str, float]  # seconds of each step

    def __new__(
        cls, text: str, patches: tuple[str, ...], signals: Mapping[str, str], timings: Mapping[str, float]
    ) -> Answer:
        answer = super().__new__(cls, text)
        answer.patches, answer.signals, answer.timings = patches, dict(signals), dict(timings)
        return answer

    def __getnewargs__(self) -> tuple[Any, ...]:  # copies and worker processes keep all of it
        return str(self), self.patches, self.signals, self.timings


def answers(
    model: Steps,
    inputs: Inputs,
    signals: Sequence[Mapping[str, str]],
    timings: dict[str, float],
    max_new_tokens: int,
) -> list[Answer]:
    """The answers to prepared questions, with what was perceived in each row and how long it took so far."""
    begin = time.perf_counter()
    found = texts(model, inputs, max_new_tokens)
    timings["generate"] = time.perf_counter() - begin
    return [
        Answer(text.strip(), tuple(use.name for use in inputs.uses if use.rows[i]), signals[i], timings)
        for i, text in enumerate(found)
    ]


def texts(model: Steps, inputs: Inputs, max_new_tokens: int) -> list[str]:
    """What the model says to each prepared question, decoded greedily, as it stands: spaces at its ends included."""
    ids = model.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    return model.host.tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
