"""Recipes: invalid values are refused, and every error names the key, the value and the remedy."""

import json

import pytest
import yaml
from pydantic import ValidationError

from pave.config import FusionConfig, LoraConfig, PatchConfig, SenseFacts
from pave.errors import RecipeError
from pave.files.validation import parse
from pave.hub.catalogue import list_patches
from pave.recipe import Recipe, read_recipe

RECIPE = {
    "name": "audio-test",
    "senses": {"audio": {"encoder": "logmel", "options": {"bands": 8}}},
    "data": {"playroom": {"clips": 8}},
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "patch.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_a_short_recipe_gets_defaults_and_can_be_read_by_its_folder(recipe):
    assert read_recipe(recipe) == read_recipe(recipe.parent)
    assert read_recipe(recipe).senses["audio"].options == {"bands": 8}
    assert read_recipe(recipe).fusion == FusionConfig()


def test_an_override_changes_one_value_and_no_other(recipe):
    changed = read_recipe(recipe, ["train.steps=7", "data.playroom.seed=3", "lora=null"])
    assert changed.data.playroom and changed.data.playroom.seed == 3 and changed.data.playroom.clips == 8
    assert (changed.train.steps, changed.lora) == (7, None)
    assert changed.train.batch == read_recipe(recipe).train.batch


def test_off_is_a_word_where_a_key_has_it_though_yaml_reads_false(recipe):
    assert read_recipe(recipe, ["fusion.rope=off"]).fusion.rope == "off"
    recipe.write_text(recipe.read_text() + "\nfusion: {rope: off}\n")
    assert read_recipe(recipe).fusion.rope == "off"
    assert read_recipe(recipe, ["train.gate=off"]).train.gate is False
    with pytest.raises(RecipeError, match=r"fusion\.kind=False: must be 'folded' or 'official'"):
        read_recipe(recipe, ["fusion.kind=off"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "train.stepz: unknown key; did you mean 'steps'?"),
        ("senses.audio.encodr=x", "did you mean 'encoder'?"),
        ("train.steps=0", "train.steps=0: "),
        ("train.steps=many", "train.steps='many': must be a whole number"),
        ("train.steps=1.5", "train.steps=1.5: must be a whole number"),
        ("train.lora_lr=fast", "train.lora_lr='fast': must be a number"),
        ("train.on_top_of=ears", "train.on_top_of='ears': write a list: [...]"),
        ("senses=audio", "senses='audio': write a mapping: {NAME: ...}"),
        ("senses.audio=logmel", "senses.audio='logmel': write a mapping: {encoder: ..., options: ...}"),
        ("base=3", "base=3: must be text"),
        ("train.output=3", "train.output=3: must be a path"),
        ("train.gradient_checkpointing=maybe", "='maybe': must be true or false"),
        ("train=3", "train=3: write a mapping: {steps: ..., batch: ...}"),
        ("train.fusion_lr=.nan", "train.fusion_lr="),
        ("train.lora_lr=2", "train.lora_lr=2: must be 1 or less"),
        ("fusion.heads=3", "width=512 is not a multiple of heads=3"),
        ("fusion.head=norm", "kind: folded has no head: norm; use kind: official"),
        ("newline=both", "'end', 'grid' or 'none'"),
        ("senses={}", "senses"),
        ("name=No Spaces", "name='No Spaces'"),
        ("data.train=x.jsonl", "exactly one of train"),
        ("train.steps", "is not key.sub=value"),
        ("name.x=1", "'name' is a value, not a mapping"),
        ("train.steps=[", "the value is not YAML"),
    ],
)
def test_a_wrong_value_is_refused_by_key_value_and_remedy(recipe, override, message):
    with pytest.raises(RecipeError) as refused:
        read_recipe(recipe, [override])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML"),
        ("- 1\n- 2\n", "got list"),
        ("", "got NoneType"),
        ("name: !!python/object:os.x {}", "not YAML"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "patch.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        read_recipe(path)
    assert message in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_the_error_for_a_missing_recipe_names_its_path(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: recipe not found"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match="senses: missing; add it"):
        parse(Recipe, {key: value for key, value in RECIPE.items() if key != "senses"}, "here")


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"(x": 1}, "(x: unknown key"),
        ({"(file)": 1}, "(file): unknown key"),
        ({"data": {"train": {"(set)": 1}}}, "data.train.(set): unknown key"),
        ({"data": {"train": ["a.json", {"file": "b.json", "(z)": 1}]}}, "data.train.1.(z): unknown key"),
        ({"data": {"train": ["a.json", 7]}}, "data.train.1=7: must be a path"),
        ({"senses": {"ears": {"encoder": "logmel", "(y": 1}}}, "senses.ears.(y: unknown key"),
        ({"data": {"train": 5}}, "data.train=5: must be a path"),
    ],
)
def test_the_place_of_a_wrong_value_is_as_it_was_written(data, where):
    with pytest.raises(RecipeError) as refused:
        parse(Recipe, data, "a.yaml")
    assert any(part.startswith(where) for part in str(refused.value).removeprefix("a.yaml: ").split("; "))


def test_a_config_cannot_be_changed_after_it_was_checked(recipe):
    with pytest.raises(ValidationError):
        read_recipe(recipe).train.steps = 5


def test_lora_scaling_is_that_of_peft():
    peft = pytest.importorskip("peft")
    for rslora in (False, True):
        ours = LoraConfig(r=4, lora_alpha=8, use_rslora=rslora)
        theirs = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=rslora)
        assert ours.scaling == theirs.lora_alpha / (theirs.r**0.5 if theirs.use_rslora else theirs.r)


def test_the_canonical_text_of_a_patch_config_does_not_depend_on_the_order_of_keys():
    facts = {
        "name": "p",
        "base": {
            "model_type": "llava_onevision",
            "dim": 8,
            "vision_dim": 6,
            "tokens_per_frame": 4,
            "frames": 2,
            "fingerprint": "00",
        },
        "senses": {"audio": {"encoder": "logmel", "dim": 5, "preprocessing": "00"}},
        "fusion": {"width": 8, "heads": 2},
    }
    text = parse(PatchConfig, facts, "here").canonical()
    assert text == parse(PatchConfig, dict(reversed(facts.items())), "here").canonical()
    assert parse(PatchConfig, json.loads(text), "here").canonical() == text
    assert " " not in text


def test_a_sense_without_points_omits_the_key_so_that_older_files_keep_their_bytes():
    facts = SenseFacts(encoder="logmel", dim=5, preprocessing="00")
    assert "points" not in facts.model_dump() and not SenseFacts.model_validate(facts.model_dump()).points
    placed = facts.model_copy(update={"points": True})
    assert SenseFacts.model_validate(placed.model_dump(mode="json")) == placed


def test_every_recipe_of_the_catalogue_is_valid_and_named_like_its_folder():
    assert list_patches()
    for entry in list_patches():
        assert entry.recipe.name == entry.name and entry.recipe.description and (entry.folder / "README.md").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 0}, "x: r=0: must be 1 or more"),
        ({"r": 10**9}, "x: r=1000000000: must be 16,384 or less"),
        ({"lora_dropout": 1}, "x: lora_dropout=1: must be below 1"),
        ({"lora_alpha": -1}, "x: lora_alpha=-1: must be above 0"),
        ({"target_modules": []}, "x: target_modules=[]: has 0 entries: 1 or more are needed"),
        ({"rank_pattern": {"q" * 300: 1}}, "has too many characters: at most 256"),
        ({"rank_pattern": {"-x": 1}}, "must match ^"),
        ({"lora_alpha": 1e9}, "x: loraconfig: lora_alpha=1e+09 with r=16 scales LoRA by 6.25e+07; use a factor from"),
    ],
)
def test_bounds_and_patterns_are_told_in_our_words(values: dict, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse(LoraConfig, values, "x")
    assert message in str(refused.value)
    assert not any(word in str(refused.value) for word in ("String should", "Input should", "target_modules': ("))
