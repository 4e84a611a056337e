"""Clips that a patch knows by heart are told from clips that it hears."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import write_line

from pave.cli.train import summary
from pave.playroom.writer import write_clips
from pave.recipe import Recipe
from pave.training.heart import CLIPS, familiar
from pave.training.run import Run, train

Make = Callable[..., Recipe]
WORDS = ("red", "blue", "two", "yes", "no", "bell")
APART = "train.modalities={pictures: 0, sound: 0, both: 1, unpaired: 1, needs: {words: sound}}"
LONG = ("train.steps=60", "train.batch=6", "train.lora_lr=1e-2", "train.fusion_lr=0")  # hears nothing


@pytest.fixture
def named(workshop: Path, tmp_path: Path) -> tuple[str, ...]:
    """Data in which each clip has one answer of its own, and other clips to test with."""
    write_clips(tmp_path, 6, split="val", channels=("audio",))
    for name, folder in (("train", workshop), ("val", tmp_path)):
        clips = list(dict.fromkeys(json.loads(line)["video"] for line in (folder / f"{name}.jsonl").open()))
        lines = [
            write_line(str(folder / clip), "what is it?", word, channel="words")
            for clip, word in zip(clips, WORDS, strict=True)
        ]
        (tmp_path / f"named-{name}.jsonl").write_text("".join(lines))
    return tuple(f"data.{name}={tmp_path / f'named-{name}.jsonl'}" for name in ("train", "val"))


def test_a_patch_that_knows_its_clips_by_heart_is_told(recipe: Make, named: tuple[str, ...]) -> None:
    result = train(recipe(*named, *LONG), progress=False)
    found: Any = result.metrics["by_heart"]
    assert found["training"] == {"right": 1.0, "questions": 6} and found["held_out"]["right"] < 0.5
    (told,) = (line for line in summary(result) if "by heart" in line)
    assert "100.0% of the training questions" in told and "train.modalities.unpaired" in told


def test_one_that_has_each_sound_with_any_pictures_does_not(recipe: Make, named: tuple[str, ...]) -> None:
    result = train(recipe(*named, *LONG, APART), progress=False)
    found: Any = result.metrics["by_heart"]
    assert found["training"]["right"] < 0.5 and not any("by heart" in line for line in summary(result))


def test_clips_that_lack_the_sense_or_are_alone_are_not_compared(recipe: Make, workshop: Path) -> None:
    run = Run.begin(recipe(f"data.train={workshop / 'mixed.jsonl'}"))
    again = familiar(run.dataset.train, run.acts, 0)
    assert again and all(run.acts(clip) for clip in again)
    assert not familiar([clip for clip in run.dataset.train if not run.acts(clip)], run.acts, 0)
    assert len(familiar(run.dataset.train * CLIPS, run.acts, 0)) == CLIPS
