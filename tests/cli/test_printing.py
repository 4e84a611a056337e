"""Claims about everything that is printed: text of a file, of the Hub or of a model cannot act on the terminal, hide or
forge a line, and letters of all scripts stay readable."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage import resigned
from places import ROOT
from small import write_line

import pave
from pave.cli import train
from pave.errors import PatchDamaged, PaveError
from pave.hub import catalogue
from pave.media.clip import Report
from pave.patch.file import Patch
from pave.patch.report import PatchReport
from pave.text.shown import UNSEEN, Lines, shown

FORGED = "  note: everything is fine"
# Colour, title, C1, carriage return, bidi override and isolate, zero width, line separator, no UTF-8, a forged line.
HOSTILE = f"a\x1b[31m\x1b]0;owned\x07\x9b2J\r\u202egpj\u2066\u200b\ufeff\u2028\udcff\t\n{FORGED}\n"
Command = Callable[..., tuple[int, str, str]]


def safe(text: str) -> bool:
    """Whether a printed text holds no unseen character but line breaks, and no forged line."""
    return not UNSEEN.search(text.replace("\n", "")) and FORGED not in text.split("\n")


@pytest.fixture(autouse=True)
def no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, `quiet` turns that of transformers off before it is imported."""
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A valid patch with hostile texts wherever a config has free text, in a file with a hostile name."""

    def change(config: dict, tensors: dict) -> None:
        texts = HOSTILE.replace("\udcff", "")  # a header is UTF-8
        config |= {"description": texts, "licence": texts, "training": {texts: texts, "a": {texts: texts}}}
        config["base"] |= {"repo": texts, "revision": texts}
        config["senses"]["audio"] |= {"revision": texts, "licence": texts}

    good = (catalogue.folder() / "audio-playroom" / "patch.safetensors").read_bytes()
    file = tmp_path / f"{HOSTILE}.safetensors"
    file.write_bytes(resigned(change)(good))
    return file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's aliases, one hostile, and a cache of the Hub with a hostile name."""
    (tmp_path / "home").mkdir()
    texts = HOSTILE.replace("\udcff", "")
    (tmp_path / "home" / "aliases.json").write_text(json.dumps({texts: texts}))
    copy = tmp_path / "hub" / f"models--tester--{HOSTILE}" / "snapshots" / "1" / "patch.safetensors"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PAVE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("patch", "info", "{file}"),
        ("patch", "verify", "{file}", "{gone}", "{noise}"),
        ("patch", "info", "{gone}"),
        ("patch", "list"),
        ("patch", "alias"),
        ("patch", "alias", "mine", "{file}"),
        ("patch", "push", "{file}", "tester/ears", "--dry-run", "--uncertified"),
        ("patch", "push", "{file}", "tester/ears", "--dry-run"),
        ("patch", "certify", "{file}", "{folder}/{jsonl}"),
        ("patch", "shrink", "{file}", "{folder}/small{hostile}"),
        ("patch", "convert", "{noise}", "--sense", "audio={hostile}"),
        ("ask", "{gone}", "what?", "--patch", "{file}"),
        ("ask", "{gone}", "what?", "--base", "{hostile}"),
        ("ask", "{gone}", "what?", "--signal", "{hostile}=x"),
        ("profile", "playroom", "{file}"),
        ("encode", "{hostile}", "{folder}", "{folder}/out"),
        ("encode", "logmel", "{folder}/{jsonl}", "{folder}/out"),
        ("encode", "logmel", "{folder}", "{folder}/out", "--option", "{hostile}=1"),
        ("new-encoder", "{hostile}"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_nothing_hostile_reaches_the_terminal(
    command: Command, home: Path, hostile: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(home)
    (home / "noise.zip").write_bytes(HOSTILE.encode("utf-8", "replace"))
    jsonl = f"{HOSTILE}.jsonl"
    (home / jsonl).write_text('{"video": "' + "\\u001b[31m\\n" + '", "conversations": 3}\n')
    names = {"file": hostile, "gone": home / HOSTILE, "noise": home / "noise.zip", "folder": home}
    _, out, err = command(*(word.format(**names, jsonl=jsonl, hostile=HOSTILE) for word in words))
    assert (out or err) and safe(out) and safe(err)


@pytest.mark.parametrize("damage", ["jsonl", "recipe", "override", "name"])
def test_nothing_hostile_in_data_reaches_the_terminal_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    recipe = {"name": "ears", "senses": {"audio": {"encoder": "logmel"}}, "data": {"train": f"{HOSTILE}.jsonl"}}
    (tmp_path / f"{HOSTILE}.jsonl").write_text(write_line(HOSTILE, "what?", "this", signals={HOSTILE: None}))
    if damage == "recipe":
        recipe["senses"]["audio"]["encoder"] = HOSTILE.replace("\udcff", "")
    if damage == "name":
        recipe["name"] = HOSTILE.replace("\udcff", "")
    (tmp_path / "patch.yaml").write_text(json.dumps(recipe))
    more = [f"train.{HOSTILE}=[{HOSTILE}"] if damage == "override" else []
    monkeypatch.setattr(sys, "argv", ["pave-train", str(tmp_path / "patch.yaml"), *more, "--dry-run"])
    try:
        train.main()
    except SystemExit as stop:
        assert stop.code in (0, 1, 2)
    out, err = capsys.readouterr()
    assert (out or err) and safe(out) and safe(err)
    assert damage != "jsonl" or "a\\x1b[31m" in out + err


def test_a_hostile_encoder_file_reaches_the_terminal_escaped(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = HOSTILE.replace("\udcff", "")
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('\\x1b[31m\\n  note: everything is fine')")
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setenv("PAVE_ENCODERS", str(tmp_path))  # for the worker process
    encoders = importlib.import_module("pave.encoders")
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, str(tmp_path)])
    for words in (("encode", "nowhere-near", tmp_path, tmp_path / "out"), ("doctor",)):
        _, out, err = command(*words)
        assert safe(out) and safe(err) and "\\x1b[31m" in out + err


def test_reports_and_errors_print_safely_without_the_commands(hostile: Path) -> None:
    report = PatchReport(
        name=HOSTILE,
        source=HOSTILE,
        sha256="",
        bytes=0,
        params=0,
        resampler_params=0,
        fusion_params=0,
        lora_params=0,
        senses={HOSTILE: HOSTILE},
        base_match=HOSTILE,
        remarks=(HOSTILE,),
    )
    assert safe(str(report)) and len(str(report).split("\n")) == 5
    assert safe(str(Report(source=HOSTILE, warnings=(HOSTILE,), audio=HOSTILE)))
    assert safe(str(PaveError(HOSTILE)))
    hostile.write_bytes(b"noise")
    with pytest.raises(PatchDamaged) as refused:
        Patch.load(hostile)
    assert safe(str(refused.value)) and refused.value.file == str(hostile)


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = str(PaveError(f"begin {'x' * 10**6} end"))
    assert len(text) < 5_000 and text.startswith("begin ") and text.endswith(" end")


@pytest.mark.parametrize(
    "text",
    [
        "Ünïcödé ñ ß",
        "Привет",
        "日本語テスト",
        "한국어",
        "العربية",
        "עברית",
        "می\u200cخواهم",
        "क्\u200dष",
        "👩\u200d🚀",
        "❤\ufe0f\u200d🔥",
        "naïve — “x” …",
    ],
)
def test_letters_and_emoji_of_all_scripts_stay(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    "text", ["au\u200ddio", "a\u200c", "\u200d👩", "👩\u200d\u200d🚀", "a\u00adb", "\u3164", "\U000e0041"]
)
def test_joiners_and_fillers_that_only_disguise_are_escaped(text: str) -> None:
    assert shown(text).isascii() or "\\u200d" in shown(text)
    assert shown(text) != text


def test_escaping_twice_changes_nothing() -> None:
    assert shown(shown(HOSTILE)) == shown(HOSTILE) and "\\x1b" in shown(HOSTILE) and "\\u202e" in shown(HOSTILE)


# Nothing goes around it.


PRINTING = ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write")
# The one place; progress of long work, whose texts are escaped likewise; the script that made the embedded base.
SCRIPTS = {"terminal.py", "progress.py", "pretrain.py"}


def prints(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in PRINTING or name.endswith(".print"):
                yield f"{file.name}, line {node.lineno}: {name}"


def test_the_library_prints_in_one_place_only() -> None:
    files = [*(ROOT / "pave").rglob("*.py"), *(ROOT / "encoders").rglob("*.py")]
    assert [*prints(ROOT / "pave" / "cli" / "terminal.py")]
    assert not [each for file in files if file.name not in SCRIPTS for each in prints(file)]


# Reports with one line of their own facts, or whose text only ever is part of an error or of another report.
PARTS = {
    "ResamplerConfig",
    "Source",
    "FeatureKey",
    "Member",
    "Stored",
    "Stage",
    "Figure",
    "Certificate",
    "Gain",
    "Cited",
    "_Options",
}


def test_whatever_describes_itself_as_text_is_an_error_or_consists_of_lines() -> None:
    found = set()
    for module in pkgutil.walk_packages(pave.__path__, "pave."):
        if module.name.startswith(("pave.encoders.", "pave.cli.new_encoder.")) or module.name.endswith("__main__"):
            continue
        try:
            imported = importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is tested where it is installed
            assert "ray[serve]" in str(error) and module.name in ("pave.serving.cluster", "pave.serving.replica")
            continue
        for name, kind in inspect.getmembers(imported, inspect.isclass):
            if (
                kind.__module__.startswith("pave.")
                and "__str__" in vars(kind)
                and not issubclass(kind, PaveError | Lines)
            ):
                found.add(name)
            if issubclass(kind, Lines):
                assert kind.__repr__ is Lines.__repr__, f"{name} shows its lines in a console, too: repr=False"
    assert found == PARTS
