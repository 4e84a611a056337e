"""The contract of a side-channel encoder, and finding one by name.

In: a Clip. Out: side tokens on the clip's clock, or None when the clip lacks the stream. An encoder is one file in
encoders/, or in a folder that PAVE_ENCODERS names, with a function `build(**options) -> Encoder`, which `builder` makes
of a class of options; its file name, with dashes for underscores, is its name. Knows nothing of key frames or patches.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from errno import ENOMEM
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, ValidationError
from torch import Tensor, nn

from pave.config import Config, SenseFacts
from pave.errors import EncoderError, nearest
from pave.files import tensorfile
from pave.sidechannel import Rule, SideTokens

if TYPE_CHECKING:
    from pave.base import Host
    from pave.media.clip import Clip


CONSENT = "PAVE_NONCOMMERCIAL"  # in the environment: a recipe or patch cannot say it for you
PLACE = "PAVE_ENCODERS"  # environment: folders of encoders of your own, separated as in PATH


def _plain(given: Any) -> Any:
    if type(given) is not int:
        raise ValueError
    return given


def divides(whole: int) -> AfterValidator:
    """For an option: a number that divides a whole one."""

    def checked(part: int) -> int:
        if whole % part:
            raise ValueError
        return part

    return AfterValidator(checked)


# Kinds of options. A value is recorded as it is given, since hashes depend on it: in a Whole even true, which Python
# counts as 1.
Whole = Annotated[InstanceOf[int], Field(ge=1, description="needs a whole number of 1 or more for {key}")]
Count = Annotated[Whole, BeforeValidator(_plain)]
Number = InstanceOf[int] | InstanceOf[float]
Text = Annotated[InstanceOf[str], Field(min_length=1, description="needs a text for {key}")]
# Where weights lie is not recorded: it changes no value.
Weights = Annotated[str, BeforeValidator(lambda given: "" if given is None else str(given)), Field(exclude=True)]


class EncoderOptions(Config):
    """What a recipe may say to an encoder, each option declared once: name, kind, limits, default, and as `description`
    what the encoder takes, for the error about another value.

    `views: Annotated[Count, Field(description="looks at one camera or more")] = 1` of my_sense.py answers views=0 with
    "my-sense looks at one camera or more, got views=0"; `{key}` in a description stands for the option's name. Where
    there is none, the message of a ValueError that a validator raises follows the encoder's name."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise EncoderError(self._refusal(error.errors()[0])) from None

    @property
    def resolved(self) -> dict[str, Any]:
        """All options that change the values of tokens, defaults included."""
        return {key: getattr(self, key) for key, field in type(self).model_fields.items() if not field.exclude}

    @classmethod
    def _refusal(cls, error: Any) -> str:
        name, key = name_of(cls), str(next(iter(error["loc"]), ""))
        if (field := cls.model_fields.get(key)) and field.description:
            words, said = field.description.format(key=key), "{key}" in field.description
            return f"{name} {words}, got {'' if said else f'{key}='}{error['input']!r}"
        if error["type"] == "value_error":
            return f"{name} {error['ctx']['error']}"
        return f"{name}: {key}={error['input']!r}: {error['msg']}"


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder says of itself; readable before any weights are loaded."""

    name: str
    sense: str  # the stream of a Clip that it reads: "audio", "video" or the name of a signal
    dim: int  # channels of one side token
    rate: float  # side tokens' time steps per second; 0: one for each key frame
    grid: tuple[int, int] = (1, 1)  # h w of one time step
    revision: str = ""  # of the weights; of the maths where there are none
    licence: str = ""  # SPDX, of the weights
    options: Mapping[str, Any] = field(default_factory=dict)  # resolved: defaults included
    points: bool = False  # the last three channels of a token are a point in metres, for the fusion to place it by

    @property
    def commercial(self) -> bool:
        """Whether the licence of the weights allows such use."""
        return "NC" not in self.licence.upper().split("-")

    @property
    def preprocessing(self) -> str:
        """sha256 of name, revision and resolved options: features with equal values may share a cache."""
        facts = {"name": self.name, "revision": self.revision, "options": dict(self.options)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def facts(self, align: Rule) -> SenseFacts:
        """A sense that this encoder reads, as a patch file records it."""
        return SenseFacts(
            encoder=self.name,
            options=dict(self.options),
            align=align,
            dim=self.dim,
            grid=self.grid,
            revision=self.revision,
            licence=self.licence,
            preprocessing=self.preprocessing,
            points=self.points,
        )


class Pieces(NamedTuple):
    """How a sound can be heard piece by piece: given a piece and some seconds around it, an encoder makes the tokens
    that the whole sound has there."""

    seconds: float  # of a piece; the first begins with the sound
    rate: int  # Hz at which it is cut, that of the encoder: a border between two of its samples would be heard
    before: float = 0
    after: float = 0


class Groups(NamedTuple):
    """How pictures can be looked at as they come: in groups that know nothing of each other."""

    rate: float  # pictures per second
    size: int


class Pass(NamedTuple):
    """One run of a network that lies on the meta device, for `pave profile` to count."""

    run: Any  # the network, or what a base looks with
    inputs: tuple[Tensor, ...]
    steps: float  # time steps that come of it


class Encoder(ABC):
    """Frozen reader of one stream of a clip."""

    spec: EncoderSpec
    pieces: Pieces | None = None  # None: it reads a clip as a whole

    @abstractmethod
    def encode(self, clip: Clip) -> SideTokens | None:
        """The stream as side tokens. None: the clip lacks the stream. Digital silence is a stream."""

    @property
    def groups(self) -> Groups | None:
        """None: it does not look at pictures, or at those of a clip as a whole."""
        return None

    def outline(self) -> Pass | None:
        """One run of its network, without weights. None: what it costs is not counted."""
        return None

    @cached_property
    def network(self) -> nn.Module | None:
        """The frozen network with its weights, opened when it is first asked for. None: this encoder has none."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the network's weights; empty without one."""
        return "" if self.network is None else tensorfile.digest({}, self.network.state_dict())

    def lacks(self, clip: Clip) -> str:
        """Why `encode` found nothing to read in a clip."""
        sense = self.spec.sense
        return f"absent: {clip.report.audio}" if sense == "audio" else f"absent: the clip has no {sense}"

    def on(self, base: Host) -> Encoder:
        """This encoder beside a base: one that looks with the base's own eyes gets them here."""
        return self


class OnBase(Encoder):
    """An encoder without weights of its own, which looks with the eyes of a base. Until it is `on` one, it cannot say
    what it is."""

    options: Any  # its own, with a `grid`: None for that of the base
    host: Host | None

    @property
    def base(self) -> Host:
        """Whose eyes these are."""
        name = name_of(type(self))
        if self.host is None:
            raise EncoderError(f"{name} looks with the eyes of a base and has none yet; give it one by on(base)")
        if not self.host.vision_dim:
            cause = (
                f"{name} gives what lies before the projector of a base, and {self.host.model_type} shows nothing there"
            )
            raise EncoderError(f"{cause}; take an encoder with eyes of its own, as vjepa2-video")
        return self.host

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one picture."""
        h, w = self.options.grid or self.base.grid
        return h, w

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the base's eyes."""
        return self.base.vision_fingerprint()


Told = TypeVar("Told", bound=EncoderOptions)
Made = TypeVar("Made", bound=Encoder)


def builder(options: type[Told], make: Callable[[Told], Made]) -> Callable[..., Made]:
    """The function `build(**options)` of an encoder's file: its parameters are the fields of `options`."""

    def build(**given: Any) -> Made:
        return make(options(**given))

    build.__signature__ = inspect.signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    return build


def name_of(kind: type) -> str:
    """The encoder whose file defines a class."""
    return kind.__module__.rpartition(".")[-1].replace("_", "-")


def load_encoder(name: str, **options: Any) -> Encoder:
    """Build the encoder called `name`, as `load_encoder("logmel", bands=32)`."""
    if lacking := missing(name):
        raise EncoderError(lacking)
    build = module_of(name).build
    allowed = inspect.signature(build).parameters
    for key in options:
        if key not in allowed:
            raise EncoderError(f"encoder {name!r} has no option {key!r}; {nearest(key, allowed)}")
    if lacking := [key for key, each in allowed.items() if each.default is each.empty and key not in options]:
        raise EncoderError(
            f"encoder {name!r} needs the options {', '.join(lacking)}; give them, as options of the sense"
        )
    return build(**options)


def consent(name: str, licence: str) -> None:
    """EncoderError unless the user has said that the use is not commercial."""
    if os.environ.get(CONSENT) != "1":
        raise EncoderError(
            f"the weights of {name} are under {licence}, for research only; if that is what you do, also with patches "
            f"that you train on them, set {CONSENT}=1 in the environment"
        )


def module_of(name: str) -> ModuleType:
    """The file of an encoder, imported."""
    try:
        module = import_module(f"pave.encoders.{name.replace('-', '_')}")
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # somebody's own code fails as it likes
        cause = f"{type(error).__name__}: {error}"
        raise EncoderError(f"encoder {name!r} cannot be imported ({cause}); mend its file") from error
    if not hasattr(module, "build"):
        raise EncoderError(f"{module.__file__}: an encoder has a function build(**options), this file has none; add it")
    return module


def missing(name: str) -> str:
    """That there is no encoder of this name, in words; empty when there is one."""
    known = known_encoders()
    return "" if name in known else f"no encoder {name!r}; {nearest(name, known)}"


def known_encoders() -> list[str]:
    """Names of all encoders, by their files; none of them is imported. A file called test_... is the test of one."""
    homes: dict[str, Path] = {}
    for folder in folders():
        try:
            os.listdir(folder)  # pkgutil takes a folder that cannot be listed for an empty one
        except OSError as error:
            if error.errno == ENOMEM:
                raise MemoryError from None
            cause = f"{PLACE} names {folder}, where no folder is that can be listed ({error.strerror})"
            raise EncoderError(f"{cause}; make it, or mend the environment") from None
        for module in pkgutil.iter_modules([str(folder)]):
            name = module.name.replace("_", "-")
            if name in homes:
                raise EncoderError(f"{homes[name]} and {folder} both have an encoder {name!r}; rename one of them")
            if not name.startswith("test-"):
                homes[name] = folder
    return sorted(homes)


def folders() -> list[Path]:
    """Where encoders lie: PAVE's own, then those that the environment names."""
    return list(dict.fromkeys(Path(each).resolve() for each in import_module("pave.encoders").__path__))
