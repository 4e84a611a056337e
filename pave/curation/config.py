"""What a curation is made with, as validated, frozen values.

In: options of the command line. Out: a `Curation`, or a RecipeError that names the key, the value and the remedy. Knows
nothing of models and of files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pave.config import Facts, Frames, Short, Text
from pave.files.validation import Config
from pave.recipe import Count

Channel = Literal["video", "audio", "audio+video"]
Kind = Literal["description", "dialogue", "reasoning"]
ADDRESS = ("http://", "https://")  # how that of an endpoint begins
REQUEST = {"temperature": 0, "max_tokens": 1024}  # of a request, besides model and messages


class Curation(Config):
    """How captions are made, who writes instructions from them, and which of these are kept."""

    writer: Annotated[Short, Field(min_length=1)]  # address of an endpoint, or a transformers model
    model: Short = ""  # of the endpoint
    pictures: tuple[Short, ...] = ()  # captioners of pictures: transformers models
    sounds: tuple[Short, ...] = ()  # of sounds
    frames: Frames = 8  # of a clip that are captioned, evenly in time
    segments: Annotated[int, Field(ge=1, le=1_000)] = 4  # of the sound, of equal length
    asked: Text = "Describe this picture in one sentence."  # of captioners that take a question
    longest: Count = 64  # tokens of a caption of a picture
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("description", "dialogue", "reasoning")
    each: Annotated[int, Field(ge=1, le=20)] = 3  # questions of one kind about one channel of a clip
    least: Annotated[float, Field(ge=1, le=5)] = 4.0  # score of each criterion
    similar: Annotated[float, Field(gt=0, le=1)] | None = 0.9  # of two texts that are near-duplicates; null: none is
    tokens: Count | None = None  # that are paid for, in all runs together
    per_minute: Annotated[float, Field(gt=0)] | None = None  # requests
    at_once: Annotated[int, Field(ge=1, le=1_000)] = 8  # clips that wait for a reply
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one reply
    tries: Count = 6  # of one request, until the curation stops
    request: Facts = Field(default={})  # further keys of each request; null takes one of ours out
    prompts: Path | None = None  # YAML with prompts of your own, in place of those of the same name

    @property
    def remote(self) -> bool:
        """Whether the writer is an endpoint."""
        return self.writer.startswith(ADDRESS)

    @property
    def sent(self) -> dict[str, Any]:
        """The further keys of each request."""
        return {key: value for key, value in (REQUEST | self.request).items() if value is not None}

    @property
    def most(self) -> int:
        """Tokens of a reply, for the budget."""
        limits = [self.sent.get(key) for key in ("max_tokens", "max_completion_tokens")]
        return next((each for each in limits if type(each) is int), REQUEST["max_tokens"])

    @model_validator(mode="after")
    def _captioned(self) -> Curation:
        if not self.pictures and not self.sounds:
            raise ValueError("there is no captioner; name one of pictures with --pictures, or of sounds with --sounds")
        if self.remote != bool(self.model):
            raise ValueError("an endpoint needs the name of its model (--writer-model), a transformers model has none")
        return self

    def facts(self) -> dict[str, Any]:
        """For the report."""
        return self.model_dump(mode="json", exclude={"tokens", "per_minute", "at_once", "timeout", "tries"})
