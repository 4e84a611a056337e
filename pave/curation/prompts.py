"""What a writer is asked, in the blocks ROLE, REQUIREMENT, EXAMPLE and CONTEXT, and how its replies are read.

In: captions, questions and answers. Out: the messages of a request; values of a reply, or a ValueError that says why it
cannot be read. The order of steps and blocks is that of Audio-Visual LLM (Shu et al., arXiv 2312.06720); the words are
ours, in prompts.yaml. Knows nothing of endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pave.curation.config import Channel, Curation
from pave.endpoint.client import Messages
from pave.errors import RecipeError, raised_as
from pave.files.atomic import read_bytes
from pave.files.validation import Config, parse
from pave.text.shown import quoted
from pave.text.values import json_first
from pave.text.yaml_text import yaml_value

OWN = Path(__file__).with_name("prompts.yaml")
ABOUT: Mapping[Channel, str] = {
    "video": "what can be seen in a video, and not about its sound",
    "audio": "what can be heard in a clip, and not about anything that could only be seen",
    "audio+video": "what can be seen and heard in a video; one needs both, its pictures and its sound, to answer",
}
SCORES = ("relevance", "completeness", "soundness", "fluency")
WORST, BEST = 1, 5
LISTS = 100  # brackets of a reply that are looked at

Pair = tuple[str, str]  # a question and its answer
Block = Annotated[str, Field(min_length=1, max_length=20_000)]


class Prompt(Config):
    """Three blocks of a request; the fourth is the context."""

    role: Block
    requirement: Block
    example: Block

    def messages(self, context: str, **slots: str) -> Messages:
        """The two turns of a request."""
        blocks = [f"# {name}\n{getattr(self, name.lower()).strip()}" for name in ("ROLE", "REQUIREMENT", "EXAMPLE")]
        system = "\n\n".join(blocks)
        for name, value in slots.items():
            system = system.replace(f"{{{name}}}", value)
        return [{"role": "system", "content": system}, {"role": "user", "content": f"# CONTEXT\n{context}"}]


def prompts_of(options: Curation) -> dict[str, Prompt]:
    """All prompts by name: ours, or those of a file in their place."""
    own = _read(OWN)
    given = {} if options.prompts is None else _read(options.prompts)
    if unknown := given.keys() - own.keys():
        raise RecipeError(f"{options.prompts}: no prompt {quoted(min(unknown))}; there are {', '.join(own)}")
    return own | given


def _read(file: Path) -> dict[str, Prompt]:
    with raised_as(RecipeError):
        text = read_bytes(file)
    try:
        value = yaml_value(text.decode())
    except ValueError as error:
        raise RecipeError(f"{file}: {error}; fix the file") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{file}: is no mapping of prompts; write role, requirement and example below their names")
    return {str(name): parse(Prompt, each, f"{file}: {name}") for name, each in value.items()}


def pairs(text: str) -> list[Pair]:
    """The questions and answers in a reply."""
    found = _objects(text)
    if flaw := next(
        (each for each in found if not all(_spoken(each.get(key)) for key in ("question", "answer"))), None
    ):
        raise ValueError(f"an object lacks a text under question or answer: {quoted(flaw)}")
    return [(each["question"].strip(), each["answer"].strip()) for each in found]


def scores(text: str, count: int) -> list[dict[str, float]]:
    """The scores of so many entries in a reply."""
    found = _objects(text)
    if len(found) != count:
        raise ValueError(f"it scores {len(found)} of {count} entries")
    for each in found:
        for name in SCORES:
            value = each.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not WORST <= value <= BEST:
                raise ValueError(f"{name!r} must be a number from {WORST} to {BEST}, got {quoted(value)}")
    return [{name: float(each[name]) for name in SCORES} for each in found]


def _objects(text: str) -> list[dict[str, Any]]:
    """The first JSON list of objects in a text, which may have words around it."""
    flaw = "it holds no JSON list of objects"
    for found in list(re.finditer(r"\[", text))[:LISTS]:
        try:
            value, _ = json_first(text, found.start())
        except ValueError as error:
            flaw = f"its list is {error}"
            continue
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            return value
    raise ValueError(flaw)


def _spoken(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def entries(found: Sequence[Sequence[Pair]]) -> str:
    """Questions and answers, numbered, to be checked."""
    parts = []
    for number, turns in enumerate(found, 1):
        parts += [f"{number}.", *(line for asked, answer in turns for line in (f"Q: {asked}", f"A: {answer}"))]
    return "\n".join(parts)
