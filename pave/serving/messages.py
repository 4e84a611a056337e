"""What a request of `/v1/chat/completions` asks: a clip, a question, earlier turns, patches, and how to generate.

In: its JSON. Out: an `Asked`, or an error that names the field. Nothing is ignored: a field that would change an answer
elsewhere and cannot here is refused, unless its value says what is the case anyway. Knows nothing of HTTP and models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from pave.errors import nearest
from pave.model.options import COLDEST, MOST
from pave.serving.failures import Refused
from pave.serving.media import Given, Kind
from pave.text.shown import quoted

# Fields of OpenAI's API that say nothing new with these values.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
}
LABELS = {"user", "metadata", "safety_identifier"}  # of the client's own, which no answer depends on
AROUND = {"type", "uuid", "cache_control"}  # of a part of a message, beside its content
STOPS = 16
FIELD = re.compile(r"(?!str\b)\w+")  # in the place of an error; pydantic also names the types that it has tried


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StreamOptions(_Strict):
    include_usage: bool = False


class Message(BaseModel):
    role: str
    content: str | list[dict[str, Any]] | None = None
    model_config = ConfigDict(extra="ignore", frozen=True)  # answers come back with fields of their own


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Request(_Strict):
    """The body of a request."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | list[Stop] | None = Field(None)
    n: Literal[1] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, body: Any) -> Any:
        """Without the fields that say nothing here."""
        if not isinstance(body, dict):
            raise Refused("", "the body is no JSON object; send one with model and messages")
        kept = {}
        for name, value in body.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name not in LABELS and value is not None and value not in NEUTRAL.get(name, ()):
                if name in NEUTRAL:
                    raise Refused(name, f"{quoted(value)} is not supported; leave it out")
                raise Refused(name, f"is not supported; {nearest(name, cls.model_fields)}")
        return kept

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > STOPS:
            raise ValueError(f"has {len(stop)} texts; give at most {STOPS}")
        return stop

    @model_validator(mode="after")
    def _together(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise Refused("stream_options", "has no effect without stream: true")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs", "has no effect without logprobs: true")
        both = self.max_tokens, self.max_completion_tokens
        if None not in both and both[0] != both[1]:
            raise Refused("max_tokens", f"is {both[0]}, and max_completion_tokens {both[1]}; give one of them")
        return self


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one row are chosen. Greedy, unless an option of sampling is given, as in `PatchedModel.ask`."""

    most: int = MOST  # tokens
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # of so many candidates beside the chosen one; None: of none

    @property
    def greedy(self) -> bool:
        given = (self.temperature, self.top_p, self.top_k, self.min_p)
        cold = self.temperature is not None and self.temperature < COLDEST
        return cold or all(each is None for each in given)


@dataclass(frozen=True)
class Asked:
    """One request."""

    model: str
    question: str
    history: tuple[tuple[str, str], ...]
    media: tuple[Given, ...]  # of the clip: at most one film or picture, and one sound
    sampling: Sampling
    stream: bool
    usage: bool  # at the end of a stream


def asked(body: Any, most: int) -> Asked:
    """The request in a JSON body; `Refused` with the first field that is wrong. most: tokens of an answer."""
    try:
        request = Request.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, Refused):
            raise cause from None
        where = ".".join(str(each) for each in first["loc"] if isinstance(each, int) or FIELD.fullmatch(each))
        raise Refused(where, f"{first['msg']}, got {quoted(first['input'])}" if where else first["msg"]) from None
    tokens = request.max_completion_tokens or request.max_tokens or min(MOST, most)
    if tokens > most:
        raise Refused("max_tokens", f"{tokens:,} tokens are more than this server gives; ask for at most {most:,}")
    question, history, media = _dialogue(request.messages)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or ()
    sampling = Sampling(
        tokens,
        *(request.temperature, request.top_p, request.top_k, request.min_p, request.seed),
        tuple(stop),
        (request.top_logprobs or 0) if request.logprobs else None,
    )
    usage = request.stream_options is not None and request.stream_options.include_usage
    return Asked(request.model, question, history, media, sampling, bool(request.stream), usage)


def _dialogue(messages: Sequence[Message]) -> tuple[str, tuple[tuple[str, str], ...], tuple[Given, ...]]:
    """The question, the turns before it, and the media of all turns: a dialogue is about one clip."""
    media: list[Given] = []
    texts: list[str] = []
    turns = [
        (f"messages.{place}", message)
        for place, message in enumerate(messages)
        if message.content or message.role not in ("system", "developer")
    ]
    for (where, message), role in zip(turns, cycle(("user", "assistant")), strict=False):
        if message.role in ("system", "developer"):
            raise Refused(where, "the prompts of video LLMs have no place for instructions; put them into the question")
        if message.role != role:
            raise Refused(where, f"is of {quoted(message.role)}, but user and assistant take turns, the user first")
        text, given = _content(message, where)
        if given and role == "assistant":
            raise Refused(where, "an answer has no media; put them into the user's message")
        texts.append(text)
        media += [each for each in given if each not in media]
    if len(turns) % 2 == 0:
        raise Refused("messages", "end with the question of the user")
    films, sounds = ([each for each in media if (each.kind == "audio") == heard] for heard in (False, True))
    for what, some in (("films or pictures", films), ("sounds", sounds)):
        if len(some) > 1:
            raise Refused(
                "messages", f"hold {len(some)} {what}; a dialogue is about one clip: send one, or a film of all"
            )
    if not media:
        raise Refused("messages", "hold no clip; send a video_url, an image_url or an input_audio with the question")
    return texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True)), tuple(media)


def _content(message: Message, where: str) -> tuple[str, list[Given]]:
    """The text and the media of a message; several texts are lines of one, as in vLLM."""
    if message.content is None or isinstance(message.content, str):
        return message.content or "", []
    texts, media = [], []
    for number, part in enumerate(message.content):
        place, kind = f"{where}.content.{number}", part.get("type")
        value = part.get(kind) if isinstance(kind, str) else None
        if kind == "text":
            texts.append(_str(part, "text", place))
        elif kind in ("image_url", "video_url", "audio_url"):
            uri = _str(value, "url", f"{place}.{kind}") if isinstance(value, dict) else _str(part, kind, place)
            media.append(Given(_kind(kind), uri))
        elif kind == "input_audio":
            data = _str(value if isinstance(value, dict) else {}, "data", f"{place}.input_audio")
            media.append(Given("audio", f"data:audio;base64,{data}"))
        else:
            remedy = "text, image_url, video_url, audio_url or input_audio"
            raise Refused(f"{place}.type", f"{quoted(kind)} is no kind of content; send {remedy}")
        _refuse_more(part, {kind, *AROUND}, place)
        _refuse_more(value if isinstance(value, dict) else {}, {"url", "data", "format"}, f"{place}.{kind}")
    return "\n".join(texts), media


def _refuse_more(part: Mapping[str, Any], known: set[str], where: str) -> None:
    """Refuse a field that would change what is read, such as `fps` of a video. A sound's format is in its bytes."""
    for name, value in part.items():
        if name not in known and value is not None and (name, value) != ("detail", "auto"):
            raise Refused(f"{where}.{name}", "is not supported; leave it out")


def _kind(name: str) -> Kind:
    return next(kind for kind in ("image", "video", "audio") if name.startswith(kind))


def _str(part: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(part.get(name), str):
        raise Refused(f"{where}.{name}", "is missing, or no text")
    return part[name]
