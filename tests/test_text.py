"""Claims about text from outside: YAML, JSON and questions are refused at once, in our words, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import make_base
from small import make_clip, make_config, write_line
from transformers import PreTrainedTokenizerFast

from pave.data import Example, Source, refuse_texts
from pave.encoder import load_encoder
from pave.errors import DataError, EncoderError, PatchMismatch, RecipeError, UsageError
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.readers.questions import read_data
from pave.readers.records import LONGEST
from pave.recipe import read_recipe
from pave.text.yaml_text import yaml_value

RECIPE = "name: x\nsenses: {audio: {encoder: logmel}}\ndata: {playroom: {clips: 8}}\n"


def aliases(first: str, line: str, times: int = 8) -> str:
    """`times` levels, each of which repeats the one before ten times: `line` names it, and the one before it."""
    return f"a: &a {first}\n" + "".join(line.format(new=chr(98 + i), old=chr(97 + i)) for i in range(times))


TENFOLD = ",".join(["*{old}"] * 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("description: 2024-13-45", "line 4: '2024-13-45' reads as a date; put it in quotes"),
        ("description: 2024-01-01", "line 4: '2024-01-01' reads as a date"),
        (f"frames: {'9' * 5000}", "line 4: '999"),
        (f"frames: 0x{'f' * 5000}", "line 4: '0xfff"),
        ("frames: 18446744073709551616", "line 4: '18446744073709551616' needs over 64 bits"),
        ("frames: 1:30", "line 4: '1:30' reads as a number to the base 60; write it as usual, or in quotes"),
        ("train: {fusion_lr: 1:30.5}", "line 4: '1:30.5' reads as a number to the base 60"),
        (f"frames: 1{':59' * 5000}", "reads as a number to the base 60"),
        ("frames: 010", "line 4: '010' reads as a number to the base 8; write it as usual, or in quotes"),
        ("frames: -0_7", "line 4: '-0_7' reads as a number to the base 8"),
        ("frames: !!int '010'", "line 4: '010' reads as a number to the base 8"),
        (f"description: {'[' * 3000}{']' * 3000}", "line 4: nested over 32 deep"),
        ("description:\n" + "\n".join(f"{' ' * i}-" for i in range(1, 99)), "line 37: nested over 32 deep"),
        (aliases("[x]", f"{{new}}: &{{new}} [{TENFOLD}]\n"), "line 8: aliases make it more than 10,000 values"),
        (aliases("{x: 1}", f"{{new}}: &{{new}} {{{{<<: [{TENFOLD}]}}}}\n"), "more than 10,000 values"),
        (aliases("[x]", "{new}: &{new} [*{old}]\n", 25) + "d2: [[[[[[[[*z]]]]]]]]", "nested over 32 deep"),
        ("description: &a [1, *a]", "line 4: contains itself"),
        ("description: &a {b: *a}", "line 4: contains itself"),
        ("name: y", "line 4: the key 'name' is there twice"),
        ("train: {steps: 1, steps: 2}", "line 4: the key 'steps' is there twice"),
        ("1: 2", "line 4: the key '1' is not text"),
        ("[1, 2]: 2", "line 4: a key is a list or a mapping"),
        ("train: {fusion_lr: .nan}", "line 4: '.nan' is not a finite number"),
        ("train: {fusion_lr: -.inf}", "is not a finite number"),
        ("train: {fusion_lr: 1.0e+999}", "is not a finite number"),
        ("description: !!binary aGVsbG8=", "line 4: not YAML of plain data (the tag 'binary')"),
        ("description: a\x00b", "line 4: not YAML (the character '\\x00')"),
        ("description: " + "x" * 10**6, "line 4: the text is longer than 65,536 characters"),
        (f"description: [{'1,' * 12_000}]", "more than 10,000 values"),
        ("description: *nothing", "line 4: not YAML (found undefined alias 'nothing')"),
    ],
    ids=lambda value: value[:24],
)
def test_yaml_that_is_no_plain_data_or_too_much_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "patch.yaml"
    file.write_text(f"{RECIPE}{text}\n")
    with pytest.raises(RecipeError) as refused:
        read_recipe(file)
    assert str(refused.value).startswith(f"{file}, line ") and message in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_numbers_that_can_mean_one_thing_only_are_read() -> None:
    written = {"0": 0, "1_000": 1000, "0b11": 3, "0x1f": 31, "-0": 0, "010.5": 10.5, "0.5": 0.5, "'010'": "010"}
    assert {text: yaml_value(text) for text in (*written, "'1:30'")} == {**written, "'1:30'": "1:30"}
    assert yaml_value("a: cuda:0") == {"a": "cuda:0"}


def test_aliases_and_merges_within_bounds_are_read(tmp_path: Path) -> None:
    text = "name: x\nsenses:\n  a: &a {encoder: logmel, options: {bands: 8}}\n  b: {<<: *a, align: index}\n"
    (tmp_path / "patch.yaml").write_text(f"{text}data: {{playroom: {{clips: 8}}}}\n")
    senses = read_recipe(tmp_path).senses
    assert senses["b"].options == {"bands": 8} and (senses["a"].align, senses["b"].align) == ("time", "index")


def test_an_override_is_read_as_strictly(tmp_path: Path) -> None:
    (tmp_path / "patch.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"the value is not YAML of a recipe: '2024-13-45' reads as a date"):
        read_recipe(tmp_path, ["description=2024-13-45"])


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (f'"x": {"9" * 5000}', "line 2: an integer of 5,000 digits, at most 64 are read"),
        ('"x": 1' + "0" * 64, "line 2: an integer of 65 digits"),
        (f'"x": {"[" * 3000}{"]" * 3000}', "line 2: nested over 32 deep"),
        (f'"x": {"[" * 40}{"]" * 40}', "line 2: nested over 32 deep"),
        ('"x": NaN', "line 2: NaN is not a finite number"),
        ('"x": 1e999', "line 2: 1e999 is not a finite number"),
        ('"id": "again"', "line 2: the key 'id' is there twice"),
        (f'"x": "{"y" * LONGEST}"', "line 2: has over 4,194,304 bytes"),
        ('"x": }', "line 2: not JSON (Expecting value at column "),
        ('"signals": {"imu": "' + "y" * 300 + '"}', "line 2: signal 'imu' must be a path"),
    ],
    ids=lambda value: value[:24],
)
def test_a_broken_line_is_refused_with_its_number(tmp_path: Path, facts: str, message: str) -> None:
    line = write_line("a.mp4", "what?", "this")
    (tmp_path / "a.jsonl").write_text(line + line.rstrip()[:-1] + f", {facts}}}\n")
    with pytest.raises(DataError) as refused:
        read_data(tmp_path / "a.jsonl")
    assert message in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("w " * 50_000, "the question has 100,000 characters, this base takes at most 512 tokens of it"),
        ("é" * 10_000, "tokens, this base takes at most 512 tokens of it; shorten it"),
        ("", "the question is empty"),
        (" \n", "the question is empty"),
        (None, "got"),
    ],
)
def test_a_question_that_is_empty_or_too_long_is_refused_before_anything_is_read(
    one: PatchedModel, tmp_path: Path, question: str, message: str
) -> None:
    gone, clip = str(tmp_path / "gone.mp4"), make_clip()
    ways = (
        lambda: one.ask(gone, question),
        lambda: one.ask_batch([(gone, "what?"), (gone, question)]),
        lambda: next(one.stream(gone, question)),
        lambda: one.prepare([clip], [question]),
        lambda: one.watch([(None, None, None)]).ask(question),
    )
    for way in ways:
        with pytest.raises(UsageError) as refused:
            way()
        assert message in str(refused.value) or question is None


def test_a_question_of_half_the_context_is_taken_and_a_line_names_its_number(one: PatchedModel) -> None:
    context, base = one.host.context, one.host
    assert context == 1024
    base.refuse_text("x" * (context // 2))
    with pytest.raises(DataError, match=r"data, line 3: the answer has .* shorten it"):
        refuse_texts("data", [Example(Source(Path("a.mp4")), "what?", "é" * 5_000, 3)], base.refuse_text)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<|turn|>{video}{question}", r"its prompt template has <\|turn\|>, which this tokenizer lacks"),
        ("<video>{video}{question}", "must not contain <video>, which marks media"),
    ],
)
def test_a_patch_whose_prompt_the_base_cannot_lay_out_is_refused_when_applied(
    one: PatchedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, message: str
) -> None:
    patch = _patch(tokenizer)
    with pytest.raises(PatchMismatch, match=message):
        one.apply_patch(Patch(patch.config.model_copy(update={"prompt": prompt}), patch.tensors))
    assert not one.patches and one.apply_patch(patch).name == "ears"


@pytest.mark.parametrize("options", [{"bands": 200_000}, {"bands": 16, "rate": 1, "stack": 16_000}, {"weights": "x"}])
def test_a_patch_whose_encoder_asks_for_too_much_is_refused_when_applied(
    one: PatchedModel, tokenizer: PreTrainedTokenizerFast, options: dict
) -> None:
    patch = _patch(tokenizer)
    facts = patch.config.senses["audio"].model_copy(update={"options": options})
    with pytest.raises(PatchMismatch, match="the encoder of its audio cannot be built"):
        one.apply_patch(Patch(patch.config.model_copy(update={"senses": {"audio": facts}}), patch.tensors))


def _patch(tokenizer: PreTrainedTokenizerFast) -> Patch:
    donor = PatchedModel(make_base(tokenizer))
    donor.attach("ears", make_config(donor.host))
    return donor.export("ears")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("logmel", {"bands": 513}, "needs an integer bands ≥ 1, at most 512, got 513"),
        ("logmel", {"bands": 64, "rate": 1, "stack": 16_000}, "1,024,000 channels in a token, at most 65,536"),
        ("array", {"signal": "imu", "dim": 65_537, "rate": 1}, "for dim, at most 65,536, got 65537"),
        ("array", {"signal": "x" * 5_000, "dim": 1, "rate": 1}, "at most 4,096 characters"),
        ("array", {"signal": "imu", "dim": 1, "rate": 1e10}, "above 0, at most 1,000,000,000"),
        ("base-tower", {"sense": "views", "views": 65}, "at most 64"),
        ("rgbd-geometry", {"fps": 1e300}, "at most 1,000,000"),
        ("instructblip-video", {"instruction": "x" * 513}, "at most 512 characters"),
    ],
)
def test_every_option_of_an_encoder_has_an_upper_bound(name: str, options: dict, message: str) -> None:
    with pytest.raises(EncoderError) as refused:
        load_encoder(name, **options)
    assert message in str(refused.value) and len(str(refused.value)) < 1000
