"""Prompts: a template with one placeholder for the video and one for the question -> token ids.

In: a tokenizer, a template, the user's text. Out: ids before and after the visual rows. Only the template can place
special tokens: user text, including `<video>` and `<|im_end|>`, stays plain text. How long a question may be is decided
here. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pave.config import QUESTION, VIDEO
from pave.errors import BaseModelError, UsageError
from pave.text.shown import quoted

# LLaVA-OneVision's ChatML as in its training and evaluation; the chat template of the converted checkpoints differs.
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{VIDEO}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)

OPENING = "<|im_start|>user\n"  # of a user's turn in ChatML
LONGEST = 4_096  # tokens of a question, on any base
WORDY = 16  # characters of a token, at most, in a text that is worth counting
SHARE = 2  # a question takes at most this part of a base's context: one in two tokens


class Prompter:
    """Templates and plain text as token ids."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, template: str = CHATML, again: str = "", closing: str = ""
    ) -> None:
        self.template, self.again, self.closing = template, again, closing
        self.special: dict[str, int] = tokenizer.get_added_vocab()
        self._reserved = set(self.special.values())
        self._eos: Any = tokenizer.eos_token_id
        self._plain = _without_added_tokens(tokenizer)
        self._pieces(template)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text."""
        # A lone surrogate, which JSON can contain, has no UTF-8 encoding.
        ids = self._plain.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False).ids
        if not self._reserved.isdisjoint(ids):
            raise BaseModelError(
                f"this tokenizer finds a special token in the plain text {quoted(text)}; change the wording"
            )
        return ids

    def refuse_text(self, text: object, context: int | None = None, what: str = "question") -> None:
        """UsageError for a question that is no text, is empty, or is too long: over LONGEST tokens, or over half of
        `context`, the positions that the base supports. what: the name of the text in the error."""
        if not isinstance(text, str):
            raise UsageError(f"the {what} is a {type(text).__name__}; pass text (a str)")
        if not text.strip():
            raise UsageError(f"the {what} is empty; write one")
        most = min(LONGEST, context // SHARE if context else LONGEST)
        if len(text) > LONGEST * WORDY:  # not worth tokenising, which would take seconds
            length = f"{len(text):,} characters"
        elif len(text.encode("utf-8", "replace")) > most and (tokens := len(self.encode_text(text))) > most:
            length = f"{tokens:,} tokens"
        else:  # a token has a byte or more
            return
        raise UsageError(f"the {what} has {length}, this base takes at most {most:,} tokens of it; shorten it")

    def refuse_template(self, template: str, placeholders: Collection[int]) -> None:
        """BaseModelError for a template that this tokenizer cannot lay out around the video. placeholders: the ids that
        mark rows of media, which belong to the video alone."""
        if lacking := [token for part in template.split(VIDEO) for token in self._lacking(part)]:
            raise BaseModelError(f"its prompt template has {', '.join(lacking)}, which this tokenizer lacks")
        if found := [id for ids in self.prompt("", template) for id in ids if id in placeholders]:
            (name,) = [token for token, id in self.special.items() if id == found[0]] or [found[0]]
            raise BaseModelError(f"a prompt template must not contain {name}, which marks media; use {VIDEO} for it")

    def encode_special(self, text: str) -> list[int]:
        """Ids of a text that may contain special tokens: a base's own text, never a user's."""
        return self._ids(self._fixed(self._known(text)), "")

    def prompt(
        self, question: str, template: str = "", history: Sequence[tuple[str, str]] = ()
    ) -> tuple[list[int], list[int]]:
        """Ids before and after the visual rows; an empty template means the base's own. `history`: earlier questions
        with their answers, the first of which is asked where the template has the question."""
        first, *later = [*(asked for asked, _ in history), question]
        own = template in ("", self.template)
        before, after = self._own if own else map(self._fixed, self._pieces(template))
        ids = self._ids(after, first)
        for (_, answer), asked in zip(history, later, strict=True):
            ids += [*self.encode_text(answer), self.end, *self.following(asked, template)]
        return self._ids(before, first), ids

    def following(self, question: str, template: str = "") -> list[int]:
        """Ids of a further question, behind the end of an answer. BaseModelError if it is not known how this base
        writes one."""
        before, after = (template or self.template).split(VIDEO)
        again = self.again or (f"\n{OPENING}" if OPENING in before else "")
        if not again:
            cause = "this base has no known form of a prompt with a second question"
            raise BaseModelError(f"{cause}; ask one at a time (in training: turns: separate)")
        return self._ids(self._fixed(self._known(f"{again}{QUESTION}{after.partition(QUESTION)[2]}")), question)

    @cached_property
    def prefix(self) -> list[int]:
        """Ids before the visual rows, in the base's own template; the same for every question."""
        return self.prompt("")[0]

    @cached_property
    def end(self) -> int:
        """The id that ends a turn: the first special token after the question, or the end-of-sequence token."""
        after = self._known(self.closing or self.template.partition(QUESTION)[2])
        return next((self.special[piece] for piece in after if piece in self.special), self._eos)

    @cached_property
    def _own(self) -> tuple[list[str | list[int]], list[str | list[int]]]:
        """The base's own template; a training asks for it with every question."""
        before, after = self._pieces(self.template)
        return self._fixed(before), self._fixed(after)

    def _fixed(self, pieces: Iterable[str]) -> list[str | list[int]]:
        """Pieces of a template: ids, or a text that holds the question."""
        ids = ((piece, [self.special[piece]] if piece in self.special else None) for piece in pieces)
        return [own or (piece if QUESTION in piece else self.encode_text(piece)) for piece, own in ids]

    def _ids(self, pieces: Iterable[str | list[int]], question: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += self.encode_text(piece.replace(QUESTION, question)) if isinstance(piece, str) else piece
        return ids

    def _pieces(self, template: str) -> tuple[list[str], list[str]]:
        """A template split at its special tokens, before and after the video."""
        if template.count(VIDEO) != 1 or template.count(QUESTION) != 1:
            raise BaseModelError(
                f"a prompt template must contain {VIDEO} once and {QUESTION} once, got {quoted(template)}"
            )
        before, after = map(self._known, template.split(VIDEO))
        return before, after

    def _known(self, text: str) -> list[str]:
        """A text split at its special tokens; anything that looks like one must be one."""
        if lacking := self._lacking(text):
            cause = f"the tokenizer lacks {', '.join(lacking)}, which its prompt template contains"
            raise BaseModelError(f"{cause}; use the tokenizer of this base")
        return self._split(text)

    def _split(self, text: str) -> list[str]:
        special = "|".join(re.escape(token) for token in sorted(self.special, key=len, reverse=True))
        return [piece for piece in re.split(f"({special})", text) if piece]

    def _lacking(self, text: str) -> list[str]:
        """What looks like a special token in a text, and is none."""
        plain = [piece for piece in self._split(text) if piece not in self.special]
        return sorted({word for piece in plain for word in re.findall(r"<[^\s<>]+>|\[gMASK\]", piece)})


def _without_added_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same tokenizer for plain text only. Hugging Face's `split_special_tokens` is not enough: it still matches
    added tokens that are not marked "special"."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(settings))
