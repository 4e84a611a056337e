"""Claims about the record of a run: every step once, also of a resumed run; trackers and curves show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pave.errors import RecipeError, TrainingError
from pave.recipe import Recipe
from pave.training import curves
from pave.training.log import NAME, Log, refuse_missing

Make = Callable[..., Recipe]
LOOK = {"held-out": 0.5, "held-out loss": 1.25, "shuffled": 0.25, "shuffled loss": 2.0, "retention": 0.99}


def lines(recipe: Recipe) -> list[dict[str, float]]:
    return [json.loads(line) for line in (recipe.output / NAME).read_text().splitlines()]


def test_a_resumed_run_goes_on_with_the_record_of_its_checkpoint(recipe: Make) -> None:
    log = Log(recipe(), 0)
    for step in range(1, 5):
        log.add(step, {"loss": 1 / step} | (LOOK if step == 2 else {}))
    log.add(4, LOOK)  # the finished patch
    with (recipe().output / NAME).open("a") as file:
        file.write('{"step": 5, "lo')  # a killed process
    again = Log(recipe(), 3)
    assert [line["step"] for line in lines(recipe())] == [1, 2, 3] and [line["step"] for line in again.looks] == [2]
    again.add(4, {"loss": 0.2500001234})
    assert lines(recipe())[2:] == [{"step": 3, "loss": 0.333333}, {"step": 4, "loss": 0.25}]
    assert [line["step"] for line in Log(recipe(), 4).lines] == [1, 2, 3, 4]
    assert Log(recipe(), 0).lines == [] and not lines(recipe()), "another run begins"


def test_a_record_that_cannot_be_written_ends_no_run(recipe: Make) -> None:
    (recipe().output / NAME).mkdir()
    log = Log(recipe(), 0)
    with pytest.warns(
        UserWarning, match=r"log\.jsonl: cannot be written .*; the run goes on, its record has a gap"
    ) as told:
        for step in (1, 2):
            log.add(step, {"loss": 1.0} | LOOK)
    assert len(told) == 1 and len(log.looks) == 2


def test_tensorboard_shows_the_record(recipe: Make) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracked = recipe("train.trackers=[tensorboard]")
    first = Log(tracked, 0)
    for step in range(1, 5):
        first.add(step, {"loss": 1 / step})
    first.close()
    resumed = Log(tracked, 3)
    resumed.add(4, {"loss": 8.0} | LOOK)
    resumed.close()
    shown = EventAccumulator(str(tracked.output / "tensorboard")).Reload()
    losses = {event.step: event.value for event in shown.Scalars("loss")}
    assert losses == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3, 4: 8.0}), "step 4 is that of the resumed run"
    assert [event.value for event in shown.Scalars("shuffled")] == [0.25]


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"train\.trackers"):
        recipe("train.trackers=[tensorbord]")
    with pytest.raises(TrainingError, match=r"train\.trackers=no_such_tracker: not installed; run pip install no_such"):
        refuse_missing(["json", "no_such_tracker"])


def test_curves_show_the_control(tmp_path: Path) -> None:
    looks = [{"step": step} | LOOK for step in (50, 100)]
    losses = [4 / (1 + step / 10) for step in range(100)]
    with_control, without = tmp_path / "a.png", tmp_path / "b.png"
    curves.draw(with_control, "ears", losses, looks, base=0.4)
    own = [{key: value for key, value in look.items() if "shuffled" not in key} for look in looks]
    curves.draw(without, "ears", losses, own, base=0.4)
    pictures = [Image.open(file).convert("RGB") for file in (with_control, without)]
    counts = [pixels(each, curves.OTHER) for each in pictures]
    assert pictures[0].size == (960, 720) and counts[0] > 100 and counts[1] == 0


def test_a_control_that_is_equal_covers_no_curve(tmp_path: Path) -> None:
    """Of a patch that ignores its sense, both are seen, and not only in the legends, which have some 100 pixels."""
    equal = [
        {"step": step, "held-out": 0.5, "shuffled": 0.5, "held-out loss": 1, "shuffled loss": 1} for step in (1, 9)
    ]
    curves.draw(tmp_path / "a.png", "ears", [4.0, 2.0, 1.0] * 3, equal)
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    assert min(pixels(picture, curves.OWN), pixels(picture, curves.OTHER)) > 200


def pixels(picture: Image.Image, colour: str) -> int:
    wanted = tuple(bytes.fromhex(colour[1:]))
    return sum(count for count, each in picture.getcolors(1 << 20) or () if each == wanted)


def test_smoothed_losses_are_means_of_the_last_ones() -> None:
    assert curves._smoothed([float(n) for n in range(40)])[:4] == [0, 0.5, 1.5, 2.5]
