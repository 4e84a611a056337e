"""Users' files stay valid: hashes of preprocessing, of the embedded base, of recipes and of patch files.

A changed value here invalidates every cached feature or makes existing patches mismatch their base. If it must change,
announce it in the changelog.
"""

from __future__ import annotations

import hashlib
import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from pave.base import Host
from pave.encoder import OnBase, load_encoder
from pave.hub.catalogue import list_patches
from pave.patch.file import Patch

FINGERPRINT = "b06a67f5f4932da6c569abe6f50f2c75ef237f5b195580b189045f5da7120f4b"  # of the embedded base
# sha256 of the shipped patches, and of recipes resolved with all defaults.
PATCHES = {
    "audio-playroom": "cd0e2156908eeeefe1bc17ab5a4ba13db85cdf8de20a745a75ad9037e2431e8b",
    "depth-playroom": "6d63d9ac7cae00777651a26dc7a41e51cae8c047440f58287183abd619e6cd0c",
    "fast-on-audio-playroom": "4e801430b9c0f81390a3861cb20b8bec1d2e0775fce0c1192619571db5cc1d34",
    "fast-playroom": "a031f60c00bd2f9e4dd81bf7463bba010fc7f909f8e926b36019135b5a8aec14",
    "favor-playroom": "e5653fac72c4d983b67878a025c56c9b1d3a022224627d474bbb27ad170e7e11",
    "imu-playroom": "e31552f85d2156c742c191c06cd6608bac5702baadf7b543bf5576a68b250fb4",
    "mat-playroom": "d251ebac096d6d3404dd2ac1beaa6d8b3c32c2c1787b8db8e8c8867ef3908437",
    "views-playroom": "59557783c771934223ca4838d4213bd81b229418717d506df4de41e41562e916",
}
RECIPES = {
    "3d-scanqa": "fd5e3726e5aaa05e2c42ca7a9134d58cec489cf8c7795f69a45faf4a0e27dce5",
    "3d-sqa3d": "2776a3b47647f0d269f4237014eb27c6579214d82034a89ee92ce61f80fcabbb",
    "audio-avqa": "4a1923b91955d2547730d21436247aa4019f9aa2836688377f8aef8f235102cb",
    "audio-avsd": "a9b1b7040c06c21ae2032eb3bdaa6df4acc724c2d5099f37ba3b9a217be5e4ca",
    "audio-music-avqa": "20511406294dcd53d49b223e6715a0514b67850b3ae2ec0374a4956cc20168cf",
    "audio-playroom": "8d3b7433327b9ea43c083a4e1edf27c4a0efb423b36c2a3b78cb5c414cb99c9d",
    "avllm-mat": "410fbd7f0bab43fa5282863e41a31fecc13f623dbb41d438b20c70719e66c53f",
    "depth-playroom": "fcb8ffab223b9cdc83f5d987d6ebf60f2f5f67f7868ccf71765039d863473517",
    "fast-on-audio-playroom": "dc4826ef097d6966ce7ca08bcb3637909de8e1b231491b0729a98a2f9a8f7aca",
    "fast-playroom": "f8fad7ba54f8941b0205bf504e5fb05af1ff0b4da49ee34cad9820da6d7a1e35",
    "favor-av": "2d9773e4d1c3cd69cdf287cab2d0bf65558ac8e5406f922fc84b1c539ee259dd",
    "favor-av-prefix": "37947903e8aa251344b3119eef60262b6ec8b3d9a6ec0a1d7089034a28975f91",
    "favor-playroom": "08ddcb71c7bb0bd074cae11b6b9781757e5faa91de1c34d1601dbbb478f3baeb",
    "highfps-video": "2eadaac7d16f81009729d55851c65135da73c0fdb3099d76ab56660ba668266c",
    "imu-playroom": "df2336ace56f90cb9252d090e14e33e680ece5412a6970ae0f95b379f6e14743",
    "mat-playroom": "5d2f68714eedc53c6015340d651918ba5afe20bac3df440bf4689ee2dd70b9ae",
    "multiview-egoexo": "fa58dc972bf1aabbd16d2ba4ce55df6d71fcae61dc1389845f1898dec3cca69f",
    "views-playroom": "8b033b66afa726810fa7be2a6323c67b70312ad0c548a6528c8b96d0f8d6918a",
}
# name, options -> sha256 of name, revision and resolved options; two sets of options for encoders that have any.
PREPROCESSING: list[tuple[str, dict[str, Any], str]] = [
    (
        "array",
        {"signal": "imu", "dim": 6, "rate": 100},
        "21fa4717b6de9e6da4b934d3abf00dad8fca04d7d5756bd2970d787119f57a13",
    ),
    (
        "array",
        {"signal": "ecg", "dim": 1, "rate": 250.0, "stack": 5},
        "c214bac524a59def212e5760eead4c38d252f884c110537a4470540950a16617",
    ),
    ("base-tower", {}, "ffd91583b95c493eb899fe93f6dc495b0514116ee8842e606b71f732ceca05b5"),
    (
        "base-tower",
        {"sense": "views", "grid": [1, 1], "views": 2, "rate": 1},
        "cd1ef5f03f8a28a2171cd6be516c16fd4e4f9c9155f86caf328c9a1f36493298",
    ),
    ("beats-audio", {}, "a6dba091c74d0efd2e1837f253f94bb4f17c965c7c0a962b5dd9eec7debbc910"),
    ("beats-audio", {"release": "BEATs_iter3"}, "56afef1346af96eb1a83a8f91ee510693bdb64a061f33e9ac6bbbc7ad8bc914d"),
    ("clap-audio", {}, "2c1ce8db24fa89f3b208ba97cac12a2cd148de9c5825bf52d6d5cb75720560da"),
    ("imagebind-audio", {}, "d4d0f401dacb76c485b4391a1269bd6f3573671ce23efb5166338bbd45741010"),
    (
        "imagebind-audio",
        {"weights": "/somewhere/else.pth"},
        "d4d0f401dacb76c485b4391a1269bd6f3573671ce23efb5166338bbd45741010",
    ),
    ("instructblip-video", {}, "fa36b7405f60e55429856c6b51c3abf89e34b8126120943fd19138abbc2b5b4d"),
    (
        "instructblip-video",
        {"rate": 1, "instruction": "What moves?"},
        "765ca2e0a74b3061153bd60eb0c05e1f5b7dbf091531b065b04f8b38cfae9b50",
    ),
    ("languagebind-audio", {}, "7099d9a7365689edbbe1829e241f5a508e716981d2211e1c8e818a5394564160"),
    (
        "languagebind-audio",
        {"dtype": "bfloat16", "rows": 4},
        "dd5bfa1fe885f77b1d93223d29c62061488c32bcdfd4397aebff58bbdbf92ca1",
    ),
    ("languagebind-video", {}, "d6a4edb48851442989454804ba7994c497e2640f886d0e1dbe35b82fa43bf22b"),
    (
        "languagebind-video",
        {"release": "LanguageBind/LanguageBind_Video_FT", "dtype": "float16"},
        "498c349d5261cf58c9745616537dec827b9700645ba3caa2218777321d865c7c",
    ),
    ("logmel", {}, "380f9ba0508d5d4e62c754571f1d6f6b94f598e8ab367abad847b17a359cad42"),
    ("logmel", {"bands": 16, "rate": 5}, "d27708128eda169efde3f40ac1540d1bf5de11042e9f587332202c344fee6b1a"),
    (
        "logmel",
        {"bands": 16, "rate": 50, "stack": 2, "fmin": 20},
        "25827e07176d82e846768102434588310ad5b66081edcb53775e77496489790e",
    ),
    ("pe-audio", {}, "3828ea5fbaa0adb299b3f169a524cab161b91a1ba24e5e501af2894331f21ca4"),
    (
        "pe-audio",
        {"release": "facebook/pe-av-small", "rate": 5},
        "f28ff554e85e6778eacd50fd08cc4d297caa0f62378e0da151509afd5ef70b00",
    ),
    ("rgbd-geometry", {}, "505810aecadc6cce5305c58a1ad37a0292d599933bd7a11ce1cb4fec511a53be"),
    (
        "rgbd-geometry",
        {"frames": 8, "grid": [2, 2]},
        "90a64c557f1eb2b01e1de1e1c3b4274436c7bd0cbf6ffdfc51217f353bab123d",
    ),
    ("rgbd-geometry", {"preset": "llava3d"}, "721beb390b7a6c176ee237c61ad882fdffa46a7cc29a3d12297067762b1b8b71"),
    ("vjepa2-video", {}, "c3b52cd33aa5fb4fad6ca5db94fc21cd3872310785ad72d7b509c8d5bb91581a"),
    (
        "vjepa2-video",
        {"rate": 8, "frames": 32, "grid": [4, 4]},
        "3164a35e19b371d5defc45ac7ceea186c8c8f84b34c6429984420255fac46912",
    ),
    ("whisper-speech", {}, "937906667445c84db0a954d0bc68096db48b9b0f561c0852c92c7f58eb7cc9f6"),
    (
        "whisper-speech",
        {"release": "openai/whisper-tiny.en", "rate": 10},
        "cea8c66e7656bbba4ea9fcd84d22e6d65cfe7bba54803103b988cef483a136f9",
    ),
]


@pytest.mark.parametrize(("name", "options", "digest"), PREPROCESSING)
def test_preprocessing_hash_of_an_encoder_is_unchanged(
    name: str, options: dict[str, Any], digest: str, playroom_host: Host
):
    assert load_encoder(name, **options).on(playroom_host).spec.preprocessing == digest


def test_fingerprint_of_the_embedded_base_is_unchanged(playroom_host: Host):
    assert playroom_host.fingerprint() == FINGERPRINT


def test_shipped_patches_are_unchanged():
    assert {each.name: Patch.load(each.file).sha256 for each in list_patches() if each.file} == PATCHES


def test_recipes_of_the_catalogue_resolve_as_before():
    later = {"keep", "gate", "mean_over"}  # younger keys, with which these recipes say what they did before them
    excluded = {"description": True, "data": {"train", "val"}, "train": {"output", *later}}  # text and local paths, too
    older = [each.recipe.train for each in list_patches() if each.name != "favor-av"]
    assert {(each.keep, each.gate, each.mean_over) for each in older} == {(0, False, "tokens")}
    resolved = {each.name: each.recipe.model_dump(mode="json", exclude=excluded) for each in list_patches()}
    digests = {name: hashlib.sha256(json.dumps(facts, sort_keys=True).encode()) for name, facts in resolved.items()}
    assert {name: digest.hexdigest() for name, digest in digests.items()} == RECIPES


# Module -> what users' own encoders, families and scripts import from it.
PUBLIC = {
    "pave.base": "Base Host Seen Visual PASS Newline last_again",
    "pave.encoder": "Encoder EncoderSpec Groups OnBase Pass Pieces consent known_encoders load_encoder missing"
    " module_of",
    "pave.media": "Clip Report Signal decode_many LOUDEST MAX_KERNEL SINC_ROLLOFF SINC_WIDTH TIMEOUT Resampling"
    " pictures_of preprocess resample scaled signals_of sinc_kernel size_of sound_of tensor_of times_of",
    "pave.sidechannel": "PARTS Rule SideBatch SideTokens align segments_by_index segments_by_time segments_of",
    "pave.errors": "PaveError MediaError EncoderError SignalError PatchError FileError UsageError nearest",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_names_that_users_import_stay(module: str):
    found = import_module(module)
    assert all(getattr(found, name) is not None for name in PUBLIC[module].split())


def test_an_encoder_of_a_user_that_keeps_its_base_as_eyes_works(playroom_host: Host):
    class Mine(OnBase):
        def __init__(self, eyes: Host | None = None) -> None:
            self.options, self.eyes = SimpleNamespace(grid=None), eyes

        def on(self, base: Host) -> OnBase:
            return Mine(base)

        def encode(self, clip: Any) -> None:
            return None

    mine = Mine().on(playroom_host)
    assert mine.grid == playroom_host.grid and mine.fingerprint == playroom_host.eyes()


def test_options_of_an_encoder_may_be_positional():
    build = import_module("pave.encoders.logmel").build
    assert build(32, rate=10).spec == load_encoder("logmel", bands=32, rate=10).spec
    with pytest.raises(TypeError, match="once"):
        build(32, bands=16)
