"""Encoders are found by file name, and a wrong name or option is answered with the nearest right one."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import numpy as np
import pytest
from places import ROOT
from pydantic import Field, model_validator

from pave.base import Host
from pave.encoder import Count, Encoder, EncoderOptions, Text, known_encoders, load_encoder, module_of
from pave.errors import EncoderError


def test_every_file_in_encoders_is_an_encoder_that_describes_itself():
    folder = ROOT / "encoders"
    files = {file.stem.replace("_", "-") for file in folder.glob("*.py")} - {"--init--"}
    assert set(known_encoders()) == files


def test_logmel_needs_no_weights_and_says_what_it_is():
    encoder = load_encoder("logmel", bands=32, rate=10)
    assert isinstance(encoder, Encoder)
    assert (encoder.spec.name, encoder.spec.sense, encoder.spec.dim, encoder.spec.rate) == ("logmel", "audio", 32, 10)
    assert encoder.spec.options["fmax"] == 8000  # resolved: the defaults are written down


def test_a_wrong_name_or_option_names_the_nearest():
    with pytest.raises(EncoderError, match="no encoder 'log-mel'; did you mean 'logmel'"):
        load_encoder("log-mel")
    with pytest.raises(EncoderError, match="has no option 'band'; did you mean 'bands'"):
        load_encoder("logmel", band=3)
    with pytest.raises(EncoderError, match=r"no encoder '\.\./x'"):
        load_encoder("../x")


def test_preprocessing_hash_follows_the_resolved_options():
    plain = load_encoder("logmel").spec.preprocessing
    assert load_encoder("logmel", bands=64).spec.preprocessing == plain
    assert load_encoder("logmel", bands=32).spec.preprocessing != plain


# Options


class Options(EncoderOptions):
    name: Text
    views: Annotated[Count, Field(description="encodes one camera or more")] = 1
    rows: Count = 2

    @model_validator(mode="after")
    def _fits(self) -> Options:
        if self.rows < self.views:
            raise ValueError(f"needs a row for each of {self.views} views, got rows={self.rows}")
        return self


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": ""}, "test-encoder needs a text for name, got ''"),
        ({"name": "x", "views": 0}, "test-encoder encodes one camera or more, got views=0"),
        ({"name": "x", "rows": "2"}, "test-encoder needs a whole number of 1 or more for rows, got '2'"),
        ({"name": "x", "views": 3}, "test-encoder needs a row for each of 3 views, got rows=2"),
        ({"name": "x", "view": 3}, "test-encoder: view=3: .*not permitted"),
    ],
)
def test_a_refused_option_names_encoder_value_and_what_would_do(given: dict[str, Any], message: str):
    with pytest.raises(EncoderError, match=f"^{message}$"):
        Options(**given)


def test_what_an_encoder_takes_are_the_fields_of_its_options():
    for name in known_encoders():
        module = module_of(name)
        taken = inspect.signature(module.build).parameters
        assert {key: each.default is each.empty for key, each in taken.items()} == {
            key: field.is_required() for key, field in module.Options.model_fields.items()
        }


@pytest.mark.parametrize(
    ("name", "options", "recorded"),
    [
        ("array", {"rate": 100}, 100),
        ("array", {"rate": 100.0}, 100.0),
        ("logmel", {"fmin": 20}, 20.0),
        ("vjepa2-video", {"rate": 8}, 8.0),
        ("vjepa2-video", {"grid": [4, 4]}, (4, 4)),
        ("rgbd-geometry", {"preset": "llava3d", "fps": 30}, 30.0),
    ],
)
def test_an_option_is_recorded_with_its_type(name: str, options: dict[str, Any], recorded: object):
    needed = {"signal": "imu", "dim": 6, "rate": 50} if name == "array" else {}
    told = load_encoder(name, **needed | options).spec.options[list(options)[-1]]
    assert (told, type(told)) == (recorded, type(recorded))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("array", {"dim": 2.0}),
        ("array", {"rate": True}),
        ("array", {"stack": True}),
        ("logmel", {"bands": True}),
        ("languagebind-audio", {"rows": True}),
        ("array", {"rate": np.float32(2)}),
        ("logmel", {"bands": np.int64(16)}),
        ("logmel", {"rate": "20"}),
        ("base-tower", {"views": True}),
        ("pe-audio", {"rate": 5.0}),
        ("whisper-speech", {"rate": np.int64(25)}),
        ("vjepa2-video", {"rate": "4"}),
        ("vjepa2-video", {"revision": b"main"}),
        ("rgbd-geometry", {"mask_holes": 1}),
        ("rgbd-geometry", {"grid": 2}),
    ],
)
def test_an_option_of_another_type_is_refused_and_not_converted(name: str, options: dict[str, Any]):
    needed = {"signal": "imu", "dim": 6, "rate": 50} if name == "array" else {}
    with pytest.raises(EncoderError, match=f"{name} .*{next(iter(options))}"):
        load_encoder(name, **needed | options)


def test_where_weights_lie_is_an_option_and_not_recorded(playroom_host: Host):
    for name in known_encoders():
        if "weights" in module_of(name).Options.model_fields:
            elsewhere = load_encoder(name, weights=ROOT).on(playroom_host)
            assert (
                elsewhere.spec == load_encoder(name).on(playroom_host).spec and "weights" not in elsewhere.spec.options
            )
