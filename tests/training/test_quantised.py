"""Claims about recipes with a quantised base: the patch says so and fits the full base; what cannot be is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pave.errors import BaseModelError, RecipeError
from pave.model.patched import load
from pave.patch.file import Patch
from pave.recipe import Recipe, read_recipe
from pave.training.run import Result, train

Make = Callable[..., Recipe]
LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}


FEW = ("train.steps=2", "train.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The same training on the base as it is."""
    return train(read_recipe(workshop, [f"train.output={tmp_path_factory.mktemp('whole')}", *FEW]))


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_patch_that_was_trained_on_a_quantised_base_fits_the_full_one(recipe: Make, whole: Result, kind: str) -> None:
    pytest.importorskip(LIBRARIES[kind])
    light = train(recipe(*FEW, f"train.quantize={kind}", output="light"))
    losses = [result.metrics["loss"] for result in (whole, light)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.1)
    patch = Patch.load(light.patch)
    assert patch.config.training["quantize"] == kind and "quantize" not in Patch.load(whole.patch).config.training
    assert load(recipe().base).apply_patch(patch).base_match == "exact"
    again = train(recipe(*FEW, f"train.quantize={kind}", output="again"))
    assert again.patch.read_bytes() == light.patch.read_bytes()


@pytest.mark.parametrize("kind", LIBRARIES)
def test_without_its_library_it_is_refused_with_the_remedy(
    recipe: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*filter(lambda name: name.startswith(LIBRARIES[kind]), [*sys.modules]), LIBRARIES[kind]):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BaseModelError, match=rf"quantize='{kind}' needs {LIBRARIES[kind]} .*; pip install"):
        train(recipe(f"train.quantize={kind}"))


def test_a_quantised_base_is_not_divided(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="quantize and shard exclude each other"):
        recipe("train.quantize=nf4", "train.shard=true")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"quantised weights \(train\.quantize=nf4\) are not divided"):
        train(recipe("train.quantize=nf4"))
