"""Prompts: a template with one placeholder for the video and one for the question -> token ids.

In: a tokenizer, a template, the user's text. Out: ids before and after the visual rows. Only the template can place
special tokens: user text, including `<video>` and `<|im_end|>`, stays plain text. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pave.errors import BaseModelError

VIDEO, QUESTION = "{video}", "{question}"

# LLaVA-OneVision's ChatML as in its training and evaluation; the chat template of the converted checkpoints differs.
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n{VIDEO}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)


class Prompter:
    """Templates and plain text as token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str = CHATML) -> None:
        self.template = template
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
            raise BaseModelError(f"this tokenizer finds a special token in the plain text {text!r}; change the wording")
        return ids

    def encode_special(self, text: str) -> list[int]:
        """Ids of a text that may contain special tokens: a base's own text, never a user's."""
        return self._ids(self._known(text), "")

    def prompt(self, question: str, template: str = "") -> tuple[list[int], list[int]]:
        """Ids before and after the visual rows; an empty template means the base's own."""
        before, after = self._pieces(template or self.template)
        return self._ids(before, question), self._ids(after, question)

    @cached_property
    def prefix(self) -> list[int]:
        """Ids before the visual rows, in the base's own template; the same for every question."""
        return self.prompt("")[0]

    @cached_property
    def end(self) -> int:
        """The id that ends a turn: the first special token after the question, or the end-of-sequence token."""
        _, after = self._pieces(self.template)
        return next((self.special[piece] for piece in after if piece in self.special), self._eos)

    def _ids(self, pieces: Sequence[str], question: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            special = self.special.get(piece)
            ids += self.encode_text(piece.replace(QUESTION, question)) if special is None else [special]
        return ids

    def _pieces(self, template: str) -> tuple[list[str], list[str]]:
        """A template split at its special tokens, before and after the video."""
        if template.count(VIDEO) != 1 or template.count(QUESTION) != 1:
            raise BaseModelError(f"a prompt template must contain {VIDEO} once and {QUESTION} once, got {template!r}")
        before, after = map(self._known, template.split(VIDEO))
        return before, after

    def _known(self, text: str) -> list[str]:
        """A text split at its special tokens; anything that looks like one must be one."""
        special = "|".join(re.escape(token) for token in sorted(self.special, key=len, reverse=True))
        pieces = [piece for piece in re.split(f"({special})", text) if piece]
        plain = [piece for piece in pieces if piece not in self.special]
        missing = sorted({word for piece in plain for word in re.findall(r"<[^\s<>]+>|\[gMASK\]", piece)})
        if missing:
            cause = f"the tokenizer lacks {', '.join(missing)}, which its prompt template contains"
            raise BaseModelError(f"{cause}; use the tokenizer of this base")
        return pieces


def _without_added_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same tokenizer for plain text only. Hugging Face's `split_special_tokens` is not enough: it still matches
    added tokens that are not marked "special"."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(settings))
