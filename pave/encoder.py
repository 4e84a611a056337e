"""The interface of a side-channel encoder, and its lookup by name.

In: a Clip. Out: side tokens on the clip's clock, or None when the clip lacks the stream. An encoder is one file in
encoders/, or in a folder listed in PAVE_ENCODERS, with a function `build(**options) -> Encoder`, which `builder` makes
from a class of options; its name is the file name, with dashes for underscores. Knows nothing of key frames or patches.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from errno import ENOMEM
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor, nn

from pave.ambient import neutral
from pave.config import SenseFacts, commercial
from pave.errors import EncoderError, nearest
from pave.files import tensorfile
from pave.files.atomic import replacing
from pave.files.quiet import quiet_imports
from pave.files.validation import Config
from pave.media.arrays import Channel
from pave.sidechannel import Rule, SideTokens
from pave.text.shown import quoted

if TYPE_CHECKING:
    from pave.base import Host
    from pave.media.clip import Clip


CONSENT = "PAVE_NONCOMMERCIAL"  # an environment variable, so that a recipe or patch cannot consent for the user
PLACE = "PAVE_ENCODERS"  # environment variable: folders of your own encoders, separated as in PATH


def _plain(value: Any) -> Any:
    if type(value) is not int:  # excludes bool
        raise ValueError
    return value


def divides(whole: int) -> AfterValidator:
    """For an option: an integer that divides `whole`."""

    def checked(part: int) -> int:
        if whole % part:
            raise ValueError
        return part

    return AfterValidator(checked)


# Types of options. A value is recorded as passed, since hashes depend on it: a Whole even keeps True, which Python
# treats as 1.
# Every type has an upper bound: options come from patch files, too.
MOST = 65_536  # of a whole number, such as channels
LONGEST = 4_096  # characters of a text
Whole = Annotated[InstanceOf[int], Field(ge=1, le=MOST, description="needs a whole number of 1 or more for {key}")]
Count = Annotated[Whole, BeforeValidator(_plain)]
Number = InstanceOf[int] | InstanceOf[float]
Text = Annotated[InstanceOf[str], Field(min_length=1, max_length=LONGEST, description="needs a text for {key}")]
# The location of weights is not recorded: it changes no value.
Weights = Annotated[str, BeforeValidator(lambda value: "" if value is None else str(value)), Field(exclude=True)]


class EncoderOptions(Config):
    """Options of an encoder, each declared once: name, type, limits, default, and as `description` the accepted values,
    for the error about any other value.

    In my_sense.py, `views: Annotated[Count, Field(description="encodes one camera or more")] = 1` rejects views=0 with
    "my-sense encodes one camera or more, got views=0"; `{key}` in a description stands for the option's name. Without a
    description, the message of the validator's ValueError follows the encoder's name."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
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
            accepted, named = field.description.format(key=key), "{key}" in field.description
            return f"{name} {accepted}{_bound(field, error)}, got {'' if named else f'{key}='}{quoted(error['input'])}"
        if error["type"] == "value_error":
            return f"{name} {error['ctx']['error']}"
        return f"{name}: {key}={quoted(error['input'])}: {error['msg']}"


def _bound(field: FieldInfo, error: Any) -> str:
    """The upper bound of an option that a value exceeds."""
    if error["type"] == "less_than_equal":
        bounds = [error["ctx"]["le"], *(getattr(each, "le", None) for each in field.metadata)]
        return f", at most {min(most for most in bounds if most is not None):,}"
    return f", at most {error['ctx']['max_length']:,} characters" if error["type"] == "too_long" else ""


@dataclass(frozen=True)
class EncoderSpec:
    """Metadata of an encoder; readable before any weights are loaded."""

    name: str
    sense: str  # the stream of a Clip that it reads: "audio", "video" or the name of a signal
    dim: int  # channels of one side token
    rate: float  # time steps per second; 0: one for each key frame
    grid: tuple[int, int] = (1, 1)  # h w of one time step
    revision: str = ""  # of the weights; of the maths where there are none
    licence: str = ""  # SPDX, of the weights
    options: Mapping[str, Any] = field(default_factory=dict)  # resolved: defaults included
    points: bool = False  # the last three channels of a token are a point in metres, for the fusion to place it by

    def __post_init__(self) -> None:
        if self.dim > MOST:
            cause = f"{self.name} has {self.dim:,} channels in a token, at most {MOST:,} are supported"
            raise EncoderError(f"{cause}; use smaller options")

    @property
    def commercial(self) -> bool:
        """Whether the licence of the weights allows commercial use."""
        return commercial(self.licence)

    @cached_property
    def preprocessing(self) -> str:
        """sha256 of name, revision and resolved options: encoders with the same hash can share cached features."""
        facts = {"name": self.name, "revision": self.revision, "options": dict(self.options)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def facts(self, align: Rule) -> SenseFacts:
        """Metadata of a sense with this encoder, as a patch file records it."""
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
    """How to encode sound piece by piece: from a piece and some context around it, an encoder computes the tokens
    that it computes there from the whole sound."""

    seconds: float  # of a piece; the first starts at the first sample
    rate: int  # Hz, the encoder's own: cutting between two of its samples would change the tokens
    before: float = 0
    after: float = 0


class Groups(NamedTuple):
    """How to encode pictures incrementally: in groups that are independent of each other."""

    rate: float  # pictures per second
    size: int


class Pass(NamedTuple):
    """One forward pass of a network on the meta device, for `pave profile` to count."""

    run: Any  # the network, or the vision tower of a base
    inputs: tuple[Tensor, ...]
    steps: float  # time steps of the output


class Encoder(ABC):
    """Frozen encoder of one stream of a clip."""

    spec: EncoderSpec
    channel: Channel = "mean"  # what it hears of a sound with several channels
    pieces: Pieces | None = None  # None: it needs the whole clip

    def __init_subclass__(cls, **options: Any) -> None:
        """Tokens depend on no state of the process, however and wherever a subclass is defined."""
        super().__init_subclass__(**options)
        for name, part in vars(cls).copy().items():
            if name in ("encode", "outline"):
                setattr(cls, name, neutral()(part))
            elif isinstance(part, cached_property):
                part.func = neutral()(part.func)

    @abstractmethod
    def encode(self, clip: Clip) -> SideTokens | None:
        """Side tokens of the stream. None: the clip lacks the stream. Digital silence is a stream."""

    @property
    def hears(self) -> bool:
        """Whether it reads the sound of a clip: a file's sound is decoded only for encoders that do."""
        return self.spec.sense == "audio"

    @property
    def groups(self) -> Groups | None:
        """None: it encodes no pictures, or needs all pictures of a clip."""
        return None

    def outline(self) -> Pass | None:
        """One forward pass of its network, without weights. None: its cost is not counted."""
        return None

    @property
    def releases(self) -> tuple[Any, ...]:
        """The published weights that `network` loads, each a `pave.senses.weights.Release`. Empty: none, or only those
        that come from the Hub by themselves."""
        return ()

    def lacking(self) -> tuple[str, ...]:
        """The published weights that are not on this machine: what, licence, size and the command that gets them."""
        return tuple(filter(None, (release.lacking for release in self.releases)))

    @cached_property
    def network(self) -> nn.Module | None:
        """The frozen network with its weights, loaded on first access. None: this encoder has no network."""
        return None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the network's weights; empty without a network."""
        return "" if self.network is None else tensorfile.digest({}, self.network.state_dict())

    def lacks(self, clip: Clip) -> str:
        """Why `encode` returned None for a clip."""
        sense = self.spec.sense
        return f"absent: {clip.report.audio}" if sense == "audio" else f"absent: the clip has no {sense}"

    def on(self, base: Host) -> Encoder:
        """This encoder for a given base; one that encodes with the base's vision tower gets it here."""
        return self


class OnBase(Encoder):
    """An encoder without weights of its own, which encodes with the base's vision tower. Its `spec` needs a base: call
    `on` first."""

    options: Any  # its own, with a `grid`: None for that of the base
    host: Host | None

    @property
    def eyes(self) -> Host | None:
        """`host` under its earlier name, for encoders of users."""
        return self.host

    @eyes.setter
    def eyes(self, host: Host | None) -> None:
        self.host = host

    @property
    def base(self) -> Host:
        """The base whose vision tower this encoder uses."""
        name = name_of(type(self))
        if self.host is None:
            raise EncoderError(f"{name} encodes with the base's vision tower and has no base yet; call on(base) first")
        if not self.host.vision_dim:
            cause = f"{name} needs features before the projector of a base, and {self.host.model_type} has none"
            raise EncoderError(f"{cause}; use an encoder with its own network, such as vjepa2-video")
        return self.host

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one picture."""
        h, w = self.options.grid or self.base.grid
        return h, w

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the base's vision tower."""
        return self.base.vision_fingerprint()


def mixed(encoders: Iterable[Encoder]) -> Literal[True, "stereo"]:
    """How `Clip.read` must mix the channels of a sound for these encoders: to one, or to two if one of them hears the
    first only. (The mean of the two is the mix to one.)"""
    return True if all(encoder.channel == "mean" for encoder in encoders) else "stereo"


OptionsT = TypeVar("OptionsT", bound=EncoderOptions)
EncoderT = TypeVar("EncoderT", bound=Encoder)


def builder(options: type[OptionsT], make: Callable[[OptionsT], EncoderT]) -> Callable[..., EncoderT]:
    """The function `build(**options)` of an encoder's file: its parameters are the fields of `options`, in order."""
    fields = list(options.model_fields)

    def build(*first: Any, **values: Any) -> EncoderT:
        if len(first) > len(fields) or not values.keys().isdisjoint(fields[: len(first)]):
            raise TypeError(f"build() takes each of {', '.join(fields)} once")
        return make(options(**dict(zip(fields, first, strict=False)), **values))

    build.__signature__ = inspect.signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    return build


def name_of(kind: type) -> str:
    """Name of the encoder whose file defines a class."""
    return kind.__module__.rpartition(".")[-1].replace("_", "-")


@neutral()
@quiet_imports()
def load_encoder(name: str, /, **options: Any) -> Encoder:
    """Build the encoder called `name`, for example `load_encoder("logmel", bands=32)`."""
    if problem := missing(name):
        raise EncoderError(problem)
    build = module_of(name).build
    allowed = inspect.signature(build).parameters
    for key in options:
        if key not in allowed:
            raise EncoderError(f"encoder {name!r} has no option {key!r}; {nearest(key, allowed)}")
    if required := [key for key, each in allowed.items() if each.default is each.empty and key not in options]:
        raise EncoderError(f"encoder {name!r} needs the options {', '.join(required)}; set them in the sense's options")
    return build(**options)


def consent(name: str, licence: str) -> None:
    """EncoderError unless the user has declared that the use is not commercial: in the environment, or to
    `pave weights get`."""
    if not agreed(name.split(" ")[0], licence):
        raise EncoderError(
            f"the weights of {name} are under {licence}, for research only; if your use of them and of patches trained "
            f"on them is research, set {CONSENT}=1 in the environment"
        )


def agreed(name: str, licence: str) -> bool:
    """Whether the user has agreed to the licence of an encoder's weights. A value of the environment variable other
    than 1 says no."""
    said = os.environ.get(CONSENT, "")
    return said == "1" if said else licence in _consents().get(name, ())


def remember(name: str, licence: str) -> None:
    """Remember that the user agrees to the licence of an encoder's weights."""
    with replacing(_consent_file()) as file:
        known = _consents()
        licences = sorted({*known.get(name, ()), licence})
        file.write(json.dumps({**known, name: licences}, indent=1, sort_keys=True).encode())


def _consents() -> dict[str, list[str]]:
    try:
        found = json.loads(_consent_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, list)} if isinstance(found, dict) else {}


def _consent_file() -> Path:
    return Path(os.environ.get("PAVE_HOME") or Path.home() / ".config" / "pave") / "consents.json"


def module_of(name: str) -> ModuleType:
    """The module of an encoder."""
    try:
        module = import_module(f"pave.encoders.{name.replace('-', '_')}")
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # user code can raise anything
        cause = f"{type(error).__name__}: {error}"
        raise EncoderError(f"encoder {name!r} cannot be imported ({cause}); fix its file") from error
    if not hasattr(module, "build"):
        raise EncoderError(f"{module.__file__}: an encoder needs a function build(**options), and has none; add it")
    return module


def missing(name: str) -> str:
    """Error message when no encoder has this name; else empty."""
    known = known_encoders()
    return "" if name in known else f"no encoder {name!r}; {nearest(name, known)}"


def known_encoders() -> list[str]:
    """Names of all encoders, from their files; none of them is imported. Files called test_... are skipped."""
    places: dict[str, Path] = {}
    for folder in folders():
        try:
            os.listdir(folder)  # pkgutil treats a folder that cannot be listed as empty
        except OSError as error:
            if error.errno == ENOMEM:
                raise MemoryError from None
            cause = f"{PLACE} lists {folder}, which is not a readable folder ({error.strerror})"
            raise EncoderError(f"{cause}; create it, or change {PLACE}") from None
        for module in pkgutil.iter_modules([str(folder)]):
            name = module.name.replace("_", "-")
            if name in places:
                raise EncoderError(f"{places[name]} and {folder} both have an encoder {name!r}; rename one of them")
            if not name.startswith("test-"):
                places[name] = folder
    return sorted(places)


def folders() -> list[Path]:
    """Folders of encoders: PAVE's own, then those listed in the environment."""
    return list(dict.fromkeys(Path(each).resolve() for each in import_module("pave.encoders").__path__))
