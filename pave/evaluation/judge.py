"""A language model as the judge of answers: right or not, and from 0 to 5 how well an answer agrees with the right one.

In: questions, answers, and an endpoint that speaks OpenAI's chat completions (https://api.openai.com/v1, or any server
of one's own). Out: `Measured`s, and remarks on replies that could not be read: these count nowhere. Every verdict is
kept in the evaluation's folder, so that nothing is asked twice. The prompts are those of Video-ChatGPT, which the field
uses: scores of other judges, or of later versions of one, cannot be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pave.data import Example
from pave.endpoint.client import Chat, Messages
from pave.endpoint.kept import Kept
from pave.endpoint.many import done
from pave.errors import UsageError, nearest
from pave.evaluation.aspects import ASPECTS, ONE, Aspect
from pave.evaluation.metrics.measured import Measured
from pave.text.shown import quoted

VERDICTS = "judged.jsonl"
ASKED = 8  # requests at a time
OnVerdicts = Callable[[int, int], None]  # called with the number of verdicts, and of all
YES = re.compile(r"[\"']?pred[\"']?\s*[:=]\s*[\"']?(yes|no)\b", re.IGNORECASE)
SCORE = re.compile(r"[\"']?score[\"']?\s*[:=]\s*[\"']?(\d+(?:\.\d+)?)(?!\.?\d)", re.IGNORECASE)
BEST = 5.0  # of scores


@dataclass(frozen=True)
class Verdict:
    """What a reply says; None: it cannot be read."""

    yes: bool | None
    score: float | None
    model: str = ""  # as the endpoint names it

    @classmethod
    def read(cls, reply: str, aspect: Aspect, model: str) -> Verdict:
        """The verdict in a reply. A score beyond 0 to 5 cannot be read."""
        yes, score = YES.search(reply), SCORE.search(reply)
        value = float(score[1]) if score and float(score[1]) <= BEST else None
        if value is None or (aspect.yes and yes is None):
            return cls(None, None, model)
        return cls(yes[1].lower() == "yes" if yes and aspect.yes else None, value, model)

    @classmethod
    def kept(cls, value: Mapping[str, Any] | None) -> Verdict:
        """The verdict as it was written."""
        yes, score = (value or {}).get("yes"), (value or {}).get("score")
        known = yes if isinstance(yes, bool) else None, float(score) if isinstance(score, int | float) else None
        return cls(*known, str((value or {}).get("model", "")))


@dataclass(frozen=True)
class Judge:
    """A judge: where it is, which model, and what it looks at."""

    url: str  # such as https://api.openai.com/v1; the key is in PAVE_JUDGE_KEY or OPENAI_API_KEY
    model: str
    aspects: tuple[str, ...] = ("match",)
    timeout: float = 60.0  # seconds for one reply
    tries: int = 6  # of one request, until the evaluation stops
    chat: Chat = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in self.aspects:
            if name not in ASPECTS:
                raise UsageError(f"a judge has no aspect {name!r}; {nearest(name, ASPECTS)}")
        if not self.model.strip() or not self.aspects:
            raise UsageError("a judge needs a model and an aspect; name the model with --judge-model")
        object.__setattr__(self, "chat", Chat(self.url, self.model, self.timeout, self.tries))

    def as_json(self) -> dict[str, Any]:
        """What identifies it: the endpoint, the model, and the prompts with their slots."""
        slots = ["{question}"] * 2, "{right}", ["{answer}"] * 2
        prompts = {name: ASPECTS[name].messages(*slots) for name in self.aspects}
        return {"url": self.chat.shown, "model": self.model, "temperature": 0, "prompts": prompts}

    def verdicts(
        self,
        examples: Sequence[Example],
        runs: Mapping[str, Sequence[str]],
        folder: Path | None = None,
        tell: OnVerdicts | None = None,
    ) -> tuple[dict[str, dict[str, Measured]], list[str]]:
        """Metrics of the answers, by run, and remarks. Equal answers to equal questions are judged once."""
        kept, asked = Kept(folder and folder / VERDICTS), dict[str, tuple[str, Messages]]()
        keys: dict[tuple[str, str], list[str | None]] = {}  # of verdicts, by aspect and run
        for name in self.aspects:
            for run, answers in runs.items():
                requests = list(_requests(ASPECTS[name], examples, answers))
                keys[name, run] = [None if each is None else self._key(each) for each in requests]
                pairs = zip(keys[name, run], requests, strict=True)
                asked |= {key: (name, each) for key, each in pairs if key is not None and each is not None}
        if unpaired := [
            name for name in self.aspects if not any(keys[name, run] != [None] * len(examples) for run in runs)
        ]:
            raise UsageError(
                f"a judge's {unpaired[0]!r} compares two questions with the same answer, and there are none"
            )
        self._ask({key: each for key, each in asked.items() if key not in kept}, len(asked), kept, tell)
        known = {key: Verdict.kept(kept.get(key)) for key in asked}
        found: dict[str, dict[str, Measured]] = {}
        for (name, run), own in keys.items():
            verdicts = [None if key is None else known[key] for key in own]
            label = "judge" if name == "match" else f"judge {name}"
            if ASPECTS[name].yes:
                shares = [each and each.yes for each in verdicts]
                found.setdefault(label, {})[run] = Measured.mean_of([None if s is None else float(s) for s in shares])
                label = f"{label} score"
            found.setdefault(label, {})[run] = Measured.mean_of([each and each.score for each in verdicts])
        return found, _remarks([known[key] for key in asked])

    def _ask(self, fresh: Mapping[str, tuple[str, Messages]], total: int, kept: Kept, tell: OnVerdicts | None) -> None:
        """Keep fresh verdicts beside those that are known."""
        count = total - len(fresh)
        for (key, _), verdict in done(lambda each: self._judged(*each[1]), fresh.items(), ASKED, "judge"):
            kept.add(key, verdict)
            count += 1
            if tell:
                tell(count, total)

    def _key(self, messages: Messages) -> str:
        """Of a verdict: everything that it depends on."""
        return sha256(json.dumps([self.chat.shown, self.model, messages]).encode()).hexdigest()

    def _judged(self, name: str, messages: Messages) -> dict[str, Any]:
        reply = self.chat.reply(messages)
        return {**asdict(Verdict.read(reply.text, ASPECTS[name], reply.model)), "reply": reply.text}


def _requests(aspect: Aspect, examples: Sequence[Example], answers: Sequence[str]) -> Iterator[Messages | None]:
    """What a judge is asked about each answer; None: nothing. Of two questions in one record that have the same right
    answer, the first stands for both where an aspect compares two."""
    if aspect.asked is ONE:
        for each, answer in zip(examples, answers, strict=True):
            yield aspect.messages([each.question], each.answer, [answer.strip()])
        return
    pairs: dict[Any, list[int]] = {}
    for place, each in enumerate(examples):
        pairs.setdefault((each.source, each.line, each.answer), []).append(place)
    for place, each in enumerate(examples):
        own = pairs[each.source, each.line, each.answer]
        two = [examples[i].question for i in own], each.answer, [answers[i].strip() for i in own]
        yield aspect.messages(*two) if len(own) == 2 and own[0] == place else None


def _remarks(verdicts: Sequence[Verdict]) -> list[str]:
    """How many replies could not be read, and which models answered."""
    unread = sum(each.score is None for each in verdicts)
    models = sorted({each.model for each in verdicts if each.model})
    remarks = [f"of {len(verdicts):,} replies of the judge {unread:,} cannot be read and do not count"]
    return [*(remarks if unread else []), *([f"judged by {', '.join(map(quoted, models))}"] if models else [])]
