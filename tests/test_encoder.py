"""Encoders are found by file name, and a wrong name or option is answered with the nearest right one."""

from __future__ import annotations

import pytest
from places import ROOT

from pave.encoder import Encoder, known_encoders, load_encoder
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
