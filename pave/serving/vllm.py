"""Answers of a patched model whose language model runs in a vLLM server.

    model = pave.load("playroom")
    model.apply_patch("audio-playroom")
    front = Front(model, "http://127.0.0.1:8000/v1")  # served as `pave export vllm` says
    front.ask("clip.mp4", "What do you hear?")

In: media and questions, as for `model.ask`. Out: answers. Vision tower, encoders, gate and fusion run here; the server
gets a prompt as embeddings, and the name of the LoRA that acts on it, or of the base. Requests are those of vLLM
0.33.0: `prompt_embeds` of `CompletionRequest` (vllm/entrypoints/openai/completion/protocol.py).

l tokens of the prompt, d channels
"""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from pave.errors import PatchMismatch, ServerError, UsageError
from pave.media.clip import limit_of
from pave.media.decoding import Timeout
from pave.model.answer import Answer, Prepared
from pave.model.layout import History
from pave.model.options import MOST, SAMPLING, answering
from pave.model.patched import PatchedModel
from pave.model.rows import parted, prepared
from pave.patch.vllm import served_name, text_model

URL = "http://127.0.0.1:8000/v1"
# Options of `ask`, and the fields of a request that mean the same.
FIELDS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "repetition_penalty": "repetition_penalty",
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p")},
}
USUAL = {"temperature": 1.0, "top_k": 50}  # of generate(), where neither the caller nor the base says otherwise


class Reply(Iterator[str]):
    """The text of one answer in pieces; `answer` is all of it, after the last piece. `close` ends the request."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._answer = end.value or self._answer
            raise

    @property
    def answer(self) -> Answer:
        """The answer, with how it ended. UsageError before the last piece."""
        if self._answer is None:
            raise UsageError("this reply has not come to its end, so there is no answer; read all its pieces")
        return self._answer

    def close(self) -> None:
        self._pieces.close()


class Front:
    """A patched model in front of a vLLM server. Several threads may ask at once; vLLM batches what they send."""

    def __init__(
        self,
        model: PatchedModel,
        url: str = URL,
        *,
        base: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        """base: what the server calls the base (--served-model-name). api_key: default: VLLM_API_KEY of the
        environment. timeout: seconds without a byte from the server."""
        try:
            from openai import OpenAI
        except ModuleNotFoundError as error:
            raise UsageError(f"a front of vLLM needs {error.name}: pip install 'pave[vllm]'") from None
        text_model(model.host)
        self.model, self.url, self.base = model, url, base or served_name(model.host)
        key = api_key or os.environ.get("VLLM_API_KEY") or "none"
        self._client = OpenAI(base_url=url, api_key=key, timeout=timeout)

    def ask(self, clip: Any = None, question: str = "", **how: Any) -> Answer:
        """The answer to one question; the arguments are those of `stream`."""
        reply = self.stream(clip, question, **how)
        for _ in reply:
            pass
        return reply.answer

    def stream(
        self,
        clip: Any = None,
        question: str = "",
        *,
        patches: Sequence[str] | None = None,
        history: History = (),
        max_new_tokens: int = MOST,
        timeout: Timeout = "auto",
        **signals_and_options: Any,
    ) -> Reply:
        """As `model.stream`: one question about a clip, with the options of generation that vLLM has, too.

        PatchMismatch if several LoRAs act on the question: vLLM runs one per prompt. UsageError for one that has
        another weight than 1. ServerError for what the server says."""
        calls = self.model.calls
        signals, options = parted(calls, signals_and_options)
        row = {"clip": clip, "question": question, "patches": patches, "history": history, **signals}
        options = answering(max_new_tokens, options)
        fields = fields_of(options, self.model.base.generation_config)
        asked = prepared(calls, [row], limit_of(timeout), options)
        return Reply(self._pieces(asked, {**fields, "model": self._adapter(asked) or self.base}))

    def _adapter(self, asked: Prepared) -> str | None:
        """The LoRA that acts on a question."""
        uses = [use for use in asked.inputs.uses if use.acting[0] and use.attached.lora is not None]
        if len(uses) > 1:
            cause = "each have a LoRA that acts on this question, and vLLM runs one per prompt"
            raise PatchMismatch(" and ".join(use.name for use in uses), cause, "name one in patches=")
        for use in uses:
            if use.weight != 1:
                cause = f"{use.name} has weight {use.weight:g}, and vLLM runs a LoRA as it was trained"
                raise UsageError(f"{cause}; set its weight to 1 or 0")
        return uses[0].attached.config.name if uses else None

    def _pieces(self, asked: Prepared, fields: Mapping[str, Any]) -> Generator[str, None, Answer]:
        begin = time.perf_counter()
        [embeddings] = self.model.calls.embedded(asked.inputs)
        body = request(embeddings, self.model.host.stops, fields)
        sent, texts, end, usage = time.perf_counter(), [], None, None
        for chunk in self._chunks(body):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                end = choice if choice.finish_reason else end
                texts.append(choice.text)
                if choice.text:
                    yield choice.text
        if end is None or end.finish_reason not in ("stop", "length"):
            how = f"said {end.finish_reason!r}" if end else "stopped"
            raise ServerError(f"vLLM at {self.url} {how} before the end of the answer; see the log of the server")
        counted = usage.completion_tokens if usage else 0
        by_token = end.finish_reason == "stop" and not isinstance(getattr(end, "stop_reason", None), str)
        return Answer(
            "".join(texts).strip(),
            patches=tuple(use.name for use in asked.inputs.uses),
            signals=dict(asked.signals[0]),
            timings={**asked.timings, "embed": sent - begin, "generate": time.perf_counter() - sent},
            warnings=tuple(asked.warnings[0]),
            finish_reason=end.finish_reason,
            tokens=counted - by_token,  # vLLM counts the one that ends an answer
            prompt_tokens=len(embeddings),
            cached_tokens=0,
        )

    def _chunks(self, body: Mapping[str, Any]) -> Iterator[Any]:
        """What the server sends; ServerError for what goes wrong."""
        import openai

        known = {name: body[name] for name in ("model", "stream", "stream_options")}
        others = {name: value for name, value in body.items() if name not in known}
        try:
            with self._client.completions.create(prompt=None, **known, extra_body=others) as stream:
                yield from stream
        except openai.NotFoundError as error:
            cause = f"has no model {body['model']!r} ({error.message})"
            remedy = "pass base=, or serve it as README.md of `pave export vllm` says"
            raise ServerError(f"vLLM at {self.url} {cause}; {remedy}") from None
        except openai.AuthenticationError:
            raise ServerError(f"vLLM at {self.url} wants another key; set it in VLLM_API_KEY") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise ServerError(f"vLLM at {self.url} does not answer ({cause}); start it, or see its log") from None
        except openai.APIError as error:
            raise ServerError(f"vLLM at {self.url}: {error.message}; see the log of the server") from None


def fields_of(options: Mapping[str, Any], own: GenerationConfig | None) -> dict[str, Any]:
    """Options of an answer as fields of a request; UsageError for one that vLLM does not have. own: the base's, which
    hold where the caller names none."""
    others = options.keys() - FIELDS.keys() - {"do_sample", "num_beams"}
    if others or options["num_beams"] != 1:
        name = min(others, default="num_beams")
        raise UsageError(f"{name}={options[name]!r}: vLLM has no such option; leave it out, or call model.ask")
    found = {name: options.get(name, getattr(own, name, None)) for name in FIELDS}
    if options["do_sample"]:
        found |= {name: value for name, value in USUAL.items() if found[name] is None}
    else:
        found = {**found, **dict.fromkeys(SAMPLING & FIELDS.keys()), "temperature": 0.0}
    return {FIELDS[name]: value for name, value in found.items() if value is not None}


def request(embeddings: Tensor, stops: Sequence[int], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a streamed request for `/v1/completions` with a prompt of embeddings (l d)."""
    file = io.BytesIO()
    torch.save(embeddings.cpu(), file)
    return {
        "prompt_embeds": base64.b64encode(file.getvalue()).decode(),
        "stop_token_ids": list(stops),
        "include_stop_str_in_output": True,  # as generate() has it
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
