"""Who writes captions and instructions: any OpenAI-compatible endpoint, or a transformers model; within a budget.

In: messages. Out: the reply, which is kept, so that it is paid once. Knows nothing of what is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from threading import Condition, Lock
from typing import Any, Protocol

from pave.curation.config import REQUEST, Curation
from pave.endpoint.client import Chat, Messages, Pace, Reply
from pave.endpoint.kept import Kept
from pave.errors import UsageError, WriterError

BYTES = 3  # of a token, roughly: where an endpoint does not count, and before it does


class Spent(Exception):
    """The budget does not hold another request."""


class Writer(Protocol):
    """A language model."""

    @property
    def shown(self) -> str:
        """Where it is, without what may be secret."""
        ...

    def reply(self, messages: Messages) -> Reply:
        """What it says; WriterError if that cannot be had."""
        ...


def writer_of(options: Curation) -> Writer:
    """The writer that is named."""
    if not options.remote:
        if options.per_minute is not None:
            raise UsageError("--per-minute is for an endpoint; a transformers model has no limit of requests")
        return LocalModel(options.writer, options.sent)
    chat = (options.writer, options.model, options.timeout, options.tries, "writer", options.sent)
    return Chat(*chat, Pace(options.per_minute))


class LocalModel:
    """A transformers model that takes messages, in this process."""

    def __init__(self, name: str, request: Mapping[str, Any]) -> None:
        from transformers import pipeline

        if unknown := request.keys() - {"max_tokens", "temperature"}:
            raise UsageError(f"request.{min(unknown)} is for an endpoint; a transformers model takes max_tokens")
        self.shown, self.most, self.one = name, int(request.get("max_tokens", REQUEST["max_tokens"])), Lock()
        heat = float(request.get("temperature", 0))
        self.options = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
        model, _, revision = name.partition("@")
        safe: dict[str, Any] = {"model_kwargs": {"use_safetensors": True}, "trust_remote_code": False}
        try:
            self.pipe: Any = pipeline("text-generation", model, revision=revision or None, **safe)
        except (OSError, ValueError, KeyError, ImportError) as error:
            cause = f"cannot be loaded ({' '.join(str(error).split())})"
            raise WriterError(f"writer {name!r}: {cause}; name an endpoint, a folder or a model of the Hub") from None
        if not self.pipe.tokenizer.chat_template:
            raise WriterError(
                f"writer {name!r}: its tokenizer has no chat template; name a model that was made to chat"
            )

    def reply(self, messages: Messages) -> Reply:
        with self.one:
            told = self.pipe(messages, max_new_tokens=self.most, return_full_text=False, **self.options)
        text = told[0]["generated_text"]
        asked = self.pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        count = len(self.pipe.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Reply(text, self.shown, len(asked) + count, "cut" if count >= self.most else "stop")


class Asking:
    """A writer, all that it said in a file, and what is left of the budget."""

    def __init__(self, options: Curation, writer: Writer, file: Path) -> None:
        self.writer, self.options = writer, options
        self.kept = Kept(file)
        self.changed, self.pending = Condition(), dict[str, int]()  # tokens that requests may need, by key
        self.spent = sum(_tokens(value) for value in self.kept.all())
        self.closed = False

    def __call__(self, messages: Messages) -> Reply:
        """The reply; Spent if it would have to be paid beyond the budget, or after `close`. Equal requests are paid
        once."""
        key = self._key(messages)
        with self.changed:
            self.changed.wait_for(lambda: key not in self.pending)
            if (value := self.kept.get(key)) is not None:
                return _reply(value)
            need = _size(messages) + self.options.most
            self.changed.wait_for(lambda: self._fits(need) or not self.pending)
            if not self._fits(need):
                raise Spent
            self.pending[key] = need
        try:
            reply = self.writer.reply(messages)
            value = {**asdict(reply), "asked": _size(messages)}
            self.kept.add(key, value)
            with self.changed:
                self.spent += _tokens(value)
            return reply
        finally:
            with self.changed:
                del self.pending[key]
                self.changed.notify_all()

    def close(self) -> None:
        """Pay for nothing more, whatever is left of the budget."""
        self.closed = True

    def known(self, messages: Messages) -> Reply:
        """The reply that was paid already; Spent if there is none."""
        if (value := self.kept.get(self._key(messages))) is None:
            raise Spent
        return _reply(value)

    def _fits(self, need: int) -> bool:
        limit = self.options.tokens
        return not self.closed and (limit is None or self.spent + sum(self.pending.values()) + need <= limit)

    def _key(self, messages: Messages) -> str:
        facts = [self.writer.shown, self.options.model, self.options.sent, messages]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _reply(value: Mapping[str, Any]) -> Reply:
    return Reply(*(value[name] for name in ("text", "model", "tokens", "ended")))


def _size(messages: Messages) -> int:
    """About how many tokens messages have."""
    return sum(len(each["content"].encode()) for each in messages) // BYTES


def _tokens(value: Mapping[str, Any]) -> int:
    """What a kept reply took: as its endpoint says, or about."""
    told = value.get("tokens")
    return told if isinstance(told, int) else value["asked"] + len(value["text"].encode()) // BYTES
