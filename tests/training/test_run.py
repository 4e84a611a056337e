"""Claims about training: the same seed gives the same file, killed or not; the base is unchanged; clips without sound
teach nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
import torch
from forked import begin
from places import ROOT
from runs import KEEPING, quiet, trained
from small import full_disk, write_base, write_line
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from pave.errors import DataError, EncoderError, PatchMismatch, PatchNotFound, RecipeError, TrainingError
from pave.features.shards import Shards
from pave.files.tensorfile import read_metadata
from pave.hub import catalogue
from pave.loading.base import load_base
from pave.model.applied import Names
from pave.model.patched import PatchedModel
from pave.patch.file import Patch, read_config
from pave.recipe import Recipe, read_recipe
from pave.training.checkpoint import NAME
from pave.training.dataset import TURNS, TrainingClip, batch, read_dataset
from pave.training.loss import scores, token_accuracy
from pave.training.run import Run, train
from pave.training.setup import Setup
from pave.training.trainee import checkpoint_activations, training

Make = Callable[..., Recipe]
DROPOUT = ("fusion.dropout=0.2", "lora.lora_dropout=0.2")
WHOLE = (*DROPOUT, *KEEPING)


@torch.no_grad()
def logits(run: Run, count: int = 8) -> Tensor:
    """Logits of every position of the first clips' packed rows."""
    inputs, _ = batch(run.setup.model, run.dataset.train[:count], [run.setup.recipe.name])
    return run.setup.model.forward(inputs).logits


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The patch file of an uninterrupted run with dropout and all that a run does by default, from fresh clips."""
    output = tmp_path_factory.mktemp("whole")
    recipe = read_recipe(workshop, [f"train.output={output}", *WHOLE])
    return train(recipe).patch.read_bytes()


# Determinism, resuming


def test_the_same_seed_gives_the_same_file_and_another_seed_another(recipe: Make, whole: bytes) -> None:
    """Once from fresh features, once from cached ones, in another folder."""
    assert train(recipe(*WHOLE)).patch.read_bytes() == whole
    other = train(recipe(*WHOLE, "train.seed=1", output="other")).patch
    assert Patch.load(other).tensors.keys() == Patch.load(recipe().output).tensors.keys()
    assert other.read_bytes() != whole


def test_dropout_has_an_effect(recipe: Make, whole: bytes) -> None:
    output = recipe().output
    (output / "whole.safetensors").write_bytes(whole)
    dropped, plain = Patch.load(output / "whole.safetensors").tensors, Patch.load(train(recipe(*KEEPING)).patch).tensors
    for part in ("fusion", "lora"):
        assert any(not torch.equal(dropped[name], plain[name]) for name in plain if name.startswith(part))


def test_evaluating_and_saving_change_nothing(recipe: Make, workshop: Path, whole: bytes) -> None:
    """Held-out accuracy and a checkpoint after every step."""
    busy = recipe(*WHOLE, "train.eval_every=1", "train.checkpoint_every=1", f"data.val={workshop / 'mixed.jsonl'}")
    written = Patch.load(train(busy).patch)
    (workshop / "whole.safetensors").write_bytes(whole)
    quiet = Patch.load(workshop / "whole.safetensors")
    assert written.certificate != quiet.certificate  # the held-out figures, which the sha256 leaves out
    assert replace(written, certificate=quiet.certificate).save(workshop / "bare.safetensors").read_bytes() == whole


@pytest.mark.parametrize("cache", ["keep", "none"])
def test_a_killed_and_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    workshop: Path, tmp_path: Path, whole: bytes, cache: str
) -> None:
    output = tmp_path / "killed"
    words = [f"train.output={output}", f"data.cache={cache}", *WHOLE]

    def die(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with begin(tmp_path, lambda: train(read_recipe(workshop, words), progress=die)) as killed:
        _, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, err
    assert (output / NAME).is_file() and not (output / "patch.safetensors").exists()
    pictures = [key.endswith("-pictures") for key in Shards.of(output / "features").entries]
    assert len(pictures) == 6 and pictures == [cache == "none"] * 6
    steps = []
    result = train(read_recipe(workshop, words), resume=True, progress=lambda step, *_: steps.append(step))
    assert steps == [3, 4], "the checkpoint of step 2 is used"
    assert result.patch.read_bytes() == whole
    assert isinstance(result.metrics["loss"], list) and len(result.metrics["loss"]) == 4


def test_a_finished_run_is_resumed_without_a_step(recipe: Make, whole: bytes) -> None:
    train(recipe(*WHOLE))
    (recipe().output / "patch.safetensors").unlink()
    result = train(recipe(*WHOLE), resume=True, progress=lambda *_: pytest.fail("no step is left"))
    assert result.patch.read_bytes() == whole


def test_resuming_with_another_recipe_base_or_data_is_refused(
    recipe: Make, workshop: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    train(recipe())
    lines = (workshop / "train.jsonl").read_text().splitlines(keepends=True)
    line = json.loads(lines[0])
    line["conversations"][1]["value"] = "another answer"
    (workshop / "altered.jsonl").write_text("".join([json.dumps(line) + "\n", *lines[1:]]))
    other_base = write_base(tmp_path / "base", tokenizer, seed=1)
    for change in ("lora.r=2", "train.seed=3", f"base={other_base}", f"data.train={workshop / 'altered.jsonl'}"):
        with pytest.raises(TrainingError, match="another recipe, base or data"):
            train(recipe(change), resume=True)
    assert Run.begin(recipe("train.checkpoint_every=1")).resume() is None, "the interval of checkpoints does not matter"


def test_a_damaged_checkpoint_is_refused_and_the_run_can_start_again(recipe: Make, whole: bytes) -> None:
    file = recipe().output / NAME
    train(recipe(*WHOLE))
    broken = bytearray(file.read_bytes())
    broken[len(broken) // 2] ^= 1
    file.write_bytes(broken)
    with pytest.raises(TrainingError, match=r"is damaged.*; delete it and start without --resume"):
        train(recipe(*WHOLE), resume=True)
    file.unlink()
    (file.parent / "patch.safetensors").unlink()
    assert train(recipe(*WHOLE)).patch.read_bytes() == whole


def test_a_finished_run_is_not_overwritten_from_python(recipe: Make) -> None:
    output, short = recipe().output, ("train.steps=2",)
    before = train(recipe(*short)).patch.stat()
    for again in (recipe(*short), recipe("base=nothing/here")):
        with pytest.raises(TrainingError, match=r"holds a checkpoint of step 2; go on with --resume, give another"):
            train(again)
    (output / NAME).unlink()
    with pytest.raises(TrainingError, match=r"holds patch\.safetensors and no checkpoint"):
        train(recipe(*short))
    assert os.path.samestat((output / "patch.safetensors").stat(), before)


HOLD = """
import sys, time
from pathlib import Path
from pave.files.locks import held
with held(Path(sys.argv[1]), "a training run"):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a killed process is Unix here")
def test_the_folder_of_a_living_run_is_refused_and_that_of_a_dead_one_is_not(recipe: Make, workshop: Path) -> None:
    output = recipe().output
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            cause = rf"{output}: is in use by a training run \(process {process.pid} on .*, since .*\); wait for it"
            for resume in (False, True):
                with pytest.raises(TrainingError, match=cause):
                    train(recipe("base=nothing/here"), resume=resume)
        finally:
            process.kill()
    train(recipe("train.steps=1"))
    assert not list(output.glob(".*"))


def test_features_that_are_cut_short_during_a_run_are_encoded_again(
    workshop: Path, tmp_path: Path, whole: bytes
) -> None:
    """In the second epoch, in which every clip has been read before; and the user is told."""
    output = tmp_path / "cut"

    def cut(step: int, steps: int, figures: dict[str, float]) -> None:
        for file in (output / "features").glob("*.safetensors") if step == 2 else ():
            os.truncate(file, 100)

    with pytest.warns(UserWarning, match=r"was cut short.* was encoded again"):
        result = train(read_recipe(workshop, [f"train.output={output}", *WHOLE]), progress=cut)
    assert result.patch.read_bytes() == whole


def test_a_full_disk_leaves_the_last_good_checkpoint(recipe: Make) -> None:
    output = recipe().output

    def fill(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 2:
            disk.__enter__()

    disk = full_disk()
    with pytest.raises(TrainingError, match=r"at step 4.*--resume"):
        try:
            train(recipe(), progress=fill)
        finally:
            disk.__exit__(None, None, None)
    assert sorted(file.name for file in output.iterdir()) == [NAME, "features", "log.jsonl"]
    assert read_metadata(output / NAME)["step"] == "2"
    assert train(recipe(), resume=True).patch.is_file()


def test_a_recipe_may_be_a_file_and_encoded_clips_are_counted(
    recipe: Make, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(workshop / "patch.yaml")
    assert result.patch == Path("runs") / recipe().name / "patch.safetensors" and result.patch.is_file()
    seen: list[tuple[int, int]] = []
    setup = Setup.of(recipe(f"train.output={tmp_path / 'fresh'}"))
    count = len(read_dataset(setup, on_clip=lambda done, total: seen.append((done, total))).train)
    assert seen == [(i + 1, count) for i in range(count)]
    os.utime(next(workshop.glob("clips/train-*.mp4")))
    seen.clear()
    read_dataset(setup, on_clip=lambda done, total: seen.append((done, total)))
    assert seen == [(count, count)], "cached clips are not encoded again"


def test_a_patch_is_trained_on_top_of_another_that_does_not_change(
    recipe: Make, workshop: Path, tmp_path: Path
) -> None:
    below = train(recipe("name=below", output="below")).patch
    before = below.read_bytes()
    words = ("name=above", "senses={fine: {encoder: logmel, options: {bands: 8, rate: 20}}}")
    run = trained(recipe(*words, f"train.on_top_of=[{below}]", output="above"))
    assert list(run.setup.model.patches) == run.setup.names == ["below", "above"]
    frozen = run.setup.model.attached()[0]
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert Patch.load(below).sha256 == run.setup.model.patches["below"].sha256 and below.read_bytes() == before
    result = run.finish()
    alone = train(recipe(*words, output="alone")).patch
    first, second = Patch.load(result.patch), Patch.load(alone)
    assert any(not torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert first.config.training["on_top_of"] == {"below": Patch.load(below).sha256}
    assert "on_top_of" not in second.config.training and str(tmp_path) not in first.text
    model = PatchedModel(load_base(recipe().base))
    second = replace(first, certificate=None)  # without a remark on what the base keeps
    (remark,) = model.apply_patch(second).remarks
    assert "trained on top of below" in remark and "not applied" in remark
    model.remove_patch("above")
    model.apply_patch(below)
    assert model.apply_patch(second).remarks == ()
    with pytest.raises(TrainingError, match=r"training.on_top_of.below: '\w+' there, None here"):
        train(recipe(*words, output="above"), resume=True)


@pytest.fixture(scope="module")
def first(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch to start from."""
    return train(read_recipe(workshop, ["name=first", f"train.output={tmp_path_factory.mktemp('first')}"])).patch


def test_training_can_start_from_a_patch(recipe: Make, first: Path, tmp_path: Path) -> None:
    before = first.read_bytes()
    run = Run.begin(recipe(f"train.start_from={first}", output="second"))
    start, tensors = run.setup.model.export(run.setup.recipe.name).tensors, Patch.load(first).tensors
    assert start.keys() == tensors.keys() and all(torch.equal(start[name], tensors[name]) for name in tensors)
    run.fit(quiet)
    second = Patch.load(run.finish().patch)
    assert (
        any(not torch.equal(second.tensors[name], tensors[name]) for name in tensors) and first.read_bytes() == before
    )
    assert second.config.training["start_from"] == {"first": Patch.load(first).sha256}
    assert str(tmp_path) not in second.text
    with pytest.raises(TrainingError, match=r"training.start_from.first: '\w+' there, None here"):
        train(recipe(output="second"), resume=True)
    written = tmp_path / "patch.yaml"
    shutil.copy(first, tmp_path / "old.safetensors")
    written.write_text(
        "name: a\nsenses: {audio: {encoder: logmel}}\ndata: {train: a.jsonl}\ntrain: {start_from: old.safetensors}"
    )
    assert read_recipe(written).train.start_from == str(tmp_path / "old.safetensors")
    assert read_recipe(written, ["train.start_from=audio-playroom"]).train.start_from == "audio-playroom"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fusion={width: 16, heads: 2}", "its fusion is "),
        ("senses={audio: {encoder: logmel, options: {bands: 4}}}", "its senses is "),
    ],
)
def test_training_cannot_start_from_a_patch_of_another_shape(
    recipe: Make, first: Path, words: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"train.start_from=.*{message}"):
        Setup.of(recipe(words, f"train.start_from={first}"))
    with pytest.raises(PatchNotFound, match="no patch, folder or file"):
        Setup.of(recipe("train.start_from=nowhere"))


def test_patches_that_cannot_share_a_row_are_refused_before_clips_are_read(recipe: Make, tmp_path: Path) -> None:
    below = train(recipe("name=below", "newline=grid", output="below")).patch
    with pytest.raises(PatchMismatch, match="need different prompt layouts"):
        Setup.of(recipe(f"train.on_top_of=[{below}]"))


def test_rows_of_a_step_may_use_different_patches(recipe: Make) -> None:
    run = Run.begin(recipe())
    name = run.setup.recipe.name
    for parameter in run.trainee.parameters["lora"].values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    clips = run.dataset.train[:2]

    def gradient(clips: list[TrainingClip], patches: Names) -> dict[str, Tensor]:
        found, wanted = scores(run.setup.model, *batch(run.setup.model, clips, patches))
        cross_entropy(found.float(), wanted, reduction="sum").backward()
        found = {
            path: each.grad.clone() for path, each in run.trainee.parameters["lora"].items() if each.grad is not None
        }
        run.trainee.optimiser.zero_grad()
        return found

    mixed, first = gradient(clips, [[name], []]), gradient(clips[:1], [name])
    assert mixed.keys() == first.keys() and mixed
    both = gradient(clips, [name])
    whole = sum(each.square().sum() for each in first.values())
    apart = [sum((each - found[path]).square().sum() for path, each in first.items()) for found in (mixed, both)]
    assert apart[0] < 1e-6 * whole and apart[1] > 1e-2 * whole
    with pytest.raises(PatchNotFound, match="no patch of this name is applied"):
        gradient(clips, [[name], ["eers"]])


def test_every_epoch_sees_every_clip_once(recipe: Make) -> None:
    run = Run.begin(recipe("train.batch=4"))
    count = len(run.dataset.train)
    drawn = [id(clip) for step in range(count) for clip in run.clips_of(step)]
    epochs = [drawn[i : i + count] for i in range(0, len(drawn), count)]
    assert all(len(set(epoch)) == count for epoch in epochs) and len(epochs) == 4
    assert len({tuple(epoch) for epoch in epochs}) > 1


# What is learned


def test_the_loss_falls_and_the_base_stays_bit_for_bit(recipe: Make) -> None:
    run = Run.begin(recipe("train.steps=40", "train.batch=6", "train.checkpoint_every=100", "train.lora_lr=5e-3"))
    before = {name: value.clone() for name, value in run.setup.model.base_state_dict().items()}
    run.fit(quiet)
    assert run.losses[-1] < 0.6 * run.losses[0]
    after = run.setup.model.base_state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in run.setup.model.base.parameters())
    assert not any(module.training for module in run.setup.model.base.modules())
    assert (
        token_accuracy(run.setup.model, run.dataset.train, run.setup.names, 8)["all"]
        > token_accuracy(run.setup.model, run.dataset.train, run.setup.names[:-1], 8)["all"]
    )


def test_a_patch_that_is_saved_and_loaded_answers_as_the_trained_one(recipe: Make, workshop: Path) -> None:
    run = trained(recipe("train.steps=8"))
    result, trained_logits, accuracy = (
        run.finish(),
        logits(run),
        token_accuracy(run.setup.model, run.dataset.train, run.setup.names, 8),
    )
    run.setup.model.remove_patch("ears")
    run.setup.model.apply_patch(result.patch)
    assert torch.equal(logits(run), trained_logits)
    assert token_accuracy(run.setup.model, run.dataset.train, run.setup.names, 8) == accuracy
    run.setup.model.set_weight("ears", 0.5)
    assert not torch.equal(logits(run), trained_logits), "the comparison can fail"


def test_a_patch_file_holds_no_path_and_no_time(recipe: Make, workshop: Path) -> None:
    file = train(recipe()).patch
    content = file.read_bytes()
    for path in (workshop, recipe().output, Path.home()):
        assert str(path).encode() not in content
    config = read_config(file)
    assert config.base.repo == "" and config.training["clips"] == 6 and config.training["steps"] == 4


# Rows without sound


@pytest.fixture
def mixed(recipe: Make, workshop: Path) -> Callable[..., Recipe]:
    """A user's own file in which two of eight clips have no sound track: the first and the fourth line."""
    return lambda *words, **place: recipe(f"data.train={workshop / 'mixed.jsonl'}", "train.batch=8", *words, **place)


def soundless_rows(run: Run) -> Tensor:
    return torch.tensor([all(side is None for side in clip.features.sides.values()) for clip in run.dataset.train])


def test_rows_without_sound_get_the_base_logits_while_training(mixed: Make) -> None:
    run = trained(mixed())
    soundless = soundless_rows(run)
    assert soundless.sum() == 2
    with training(run.setup.model.applied.module("ears")):
        patched = logits(run)
    with run.setup.model.patches_off():
        base = logits(run)
    assert torch.equal(patched[soundless], base[soundless])
    assert all(not torch.equal(patched[i], base[i]) for i in (~soundless).nonzero()[:, 0])


def test_lora_stays_on_without_sound_where_the_recipe_says_so(mixed: Make) -> None:
    run = trained(mixed("train.keep_lora_when_absent=true"))
    patch = Patch.load(run.finish().patch)
    assert patch.config.keep_lora_when_absent is True
    soundless = soundless_rows(run)
    run.setup.model.remove_patch("ears")
    run.setup.model.apply_patch(patch)
    patched = logits(run)
    with run.setup.model.patches_off():
        base = logits(run)
    assert all(not torch.equal(patched[i], base[i]) for i in soundless.nonzero()[:, 0])


def test_a_step_without_any_sound_changes_nothing(mixed: Make) -> None:
    run = trained(mixed())
    run.dataset.train[:] = [
        clip for clip, soundless in zip(run.dataset.train, soundless_rows(run), strict=True) if soundless
    ]
    vars(run).pop("epoch", None)  # of the clips before
    before = run.setup.model.export("ears")
    loss = run.step(0)
    after = run.setup.model.export("ears")
    assert loss > 0 and after.sha256 == before.sha256


def test_a_run_with_such_steps_can_be_resumed(mixed: Make) -> None:
    """One clip a step, so that some steps have no sound and AdamW counts fewer steps than the run."""
    words = ("train.batch=1", "train.steps=8")
    bytes_ = train(mixed(*words, output="whole")).patch.read_bytes()

    def stop(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(mixed(*words), progress=stop)
    assert train(mixed(*words), resume=True).patch.read_bytes() == bytes_


def test_data_in_which_no_clip_has_sound_is_refused(recipe: Make, workshop: Path) -> None:
    file = workshop / "deaf.jsonl"
    file.write_text("".join(write_line(f"clips/deaf-{i}.mp4", "?", "no") for i in range(2)))
    with pytest.raises(DataError, match=r"none of its 2 clips has audio .absent: no audio track.*nothing to learn"):
        train(recipe(f"data.train={file}"))
    assert train(recipe(f"data.train={file}", "train.keep_lora_when_absent=true")).patch.is_file()


# What stops a run


def test_a_loss_that_is_not_finite_stops_the_run_with_the_rates_named(recipe: Make) -> None:
    spoiled = Run.begin(recipe("train.steps=2", "train.checkpoint_every=1"))
    cause = r"step {}.*train.fusion_lr=\S+ or train.lora_lr=\S+; {}"

    def spoil(step: int, *_: object) -> None:
        next(iter(spoiled.trainee.parameters["lora"].values())).data.fill_(torch.inf)

    with pytest.raises(TrainingError, match=cause.format(2, "the last good checkpoint, of step 1, is in")):
        spoiled.fit(spoil)
    again = Run.begin(spoiled.setup.recipe)
    again.resume()
    assert again.kept == 1
    assert all(parameter.isfinite().all() for part in again.trainee.parameters.values() for parameter in part.values())
    fresh = Run.begin(spoiled.setup.recipe)  # in the same folder, which has the checkpoint of another run
    next(iter(fresh.trainee.parameters["lora"].values())).data.fill_(torch.inf)
    with pytest.raises(TrainingError, match=cause.format(1, "no checkpoint of this run")):
        fresh.fit(spoil)


def test_unreadable_clips_are_skipped_and_reported(recipe: Make, workshop: Path) -> None:
    file = workshop / "broken.jsonl"
    (workshop / "clips" / "broken.mp4").write_text("no film")
    lines = [write_line(f"clips/{name}.mp4", "is there a beep?", "no") for name in ("broken", "gone")]
    file.write_text("".join(lines) + (workshop / "train.jsonl").read_text())
    result = train(recipe(f"data.train={file}"))
    unreadable = result.metrics["unreadable"]
    assert isinstance(unreadable, dict) and [Path(path).stem for path in unreadable] == ["broken", "gone"]
    assert read_config(result.patch).training["clips"] == 6
    quarantine = (result.patch.parent / "features" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["why"] for line in quarantine] == list(unreadable.values())


def test_a_file_without_readable_clips_is_refused(recipe: Make, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(write_line("gone.mp4", "?", "a"))
    with pytest.raises(DataError, match=r"none of its 1 clips can be read; the first: .*gone\.mp4"):
        train(recipe(f"data.train={tmp_path / 'a.jsonl'}"))


def test_a_lora_target_that_no_layer_has_is_refused(recipe: Make) -> None:
    with pytest.raises(RecipeError, match="no layer matches wonder_proj"):
        train(recipe("lora.target_modules=[wonder_proj]"))


# The outputs of a run


def test_metrics_hold_losses_and_held_out_scores_by_channel(recipe: Make, workshop: Path) -> None:
    seen = []
    words = recipe(f"data.val={workshop / 'mixed.jsonl'}", "train.eval_every=2")
    result = train(words, progress=lambda *each: seen.append(each))
    assert [step for step, _, _ in seen] == [1, 2, 3, 4] and {steps for _, steps, _ in seen} == {4}
    assert ["held-out" in figures for _, _, figures in seen] == [False, True, False, False], "the end has its own"
    metrics = json.loads((words.output / "metrics.json").read_text())
    assert metrics == result.metrics
    assert metrics["loss"] == [round(figures["loss"], 5) for _, _, figures in seen]
    assert set(metrics["held_out"]) == {"all", "audio"} and set(metrics["held_out"]["all"]) == {
        "base",
        "patched",
        "shuffled",
    }


def test_the_rate_has_a_linear_warm_up_and_a_cosine_decay(recipe: Make) -> None:
    rates = []
    words = recipe("train.steps=8", "train.warmup=0.25", "train.fusion_lr=2e-3", "train.checkpoint_every=8")
    train(words, progress=lambda step, steps, figures: rates.append(figures["rate"]))
    cosine = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert rates == pytest.approx([2e-3 * share for share in (0.5, 1, *cosine)], rel=1e-9)


def test_held_out_accuracy_is_that_of_the_patch_at_that_step(recipe: Make, workshop: Path) -> None:
    words = ("train.steps=25", "train.lora_lr=1e-2", "train.eval_every=8", f"data.val={workshop / 'mixed.jsonl'}")
    run, accuracies = Run.begin(recipe(*words)), {}
    model, names = run.setup.model, run.setup.names

    def look(step: int, steps: int, figures: dict[str, float]) -> None:
        if "held-out" in figures:
            accuracies[step] = figures["held-out"]
            held_out, seen = (
                token_accuracy(model, clips, names, 3)["all"] for clips in (run.dataset.val, run.dataset.train)
            )
            assert accuracies[step] == held_out != seen

    run.fit(look)
    assert list(accuracies) == [8, 16, 24] and 0 < accuracies[8] < accuracies[24]


@pytest.mark.parametrize("combine", ["prefix", "interleave"])
def test_inserted_tokens_are_trained_and_compared_with_the_base(recipe: Make, workshop: Path, combine: str) -> None:
    result = train(recipe(f"fusion.combine={combine}", f"data.val={workshop / 'mixed.jsonl'}"))
    assert set(result.metrics["held_out"]) >= {"all"}  # type: ignore[call-overload]


def test_bfloat16_bases_train_their_patch_in_float32(recipe: Make) -> None:
    run = trained(recipe("train.dtype=bfloat16"))
    assert run.setup.model.host.dtype == torch.bfloat16
    assert {value.dtype for value in run.setup.model.export("ears").tensors.values()} == {torch.float32}
    trained_logits = logits(run)
    patch = run.finish().patch
    run.setup.model.remove_patch("ears")
    run.setup.model.apply_patch(patch)
    assert torch.equal(logits(run), trained_logits)


def test_playroom_clips_are_written_and_held_out(recipe: Make, workshop: Path) -> None:
    words = recipe("data.train=null", "data.playroom={clips: 8, channels: [audio]}", "train.steps=1")
    result = train(words)
    assert {file.name for file in (words.output / "clips").glob("*.jsonl")} == {"train.jsonl", "val.jsonl"}
    assert "held_out" in result.metrics and os.path.getsize(result.patch) > 1000
    shutil.rmtree(words.output / "clips")


def test_a_missing_encoder_is_an_error_before_a_large_base_is_fetched() -> None:
    with pytest.raises(EncoderError, match="no encoder 'their-ears'"):
        train(catalogue.recipe("audio-avsd", ["senses.audio.encoder=their-ears"]))


@pytest.mark.parametrize(("keep", "layouts"), [(0, 1), (1, 3)])  # more for what the base says, and for a longer row
def test_a_step_builds_its_layout_once_and_tokenises_nothing(recipe: Make, keep: int, layouts: int) -> None:
    run = Run.begin(recipe("train.steps=3", "train.batch=4", f"train.keep={keep}"))
    run.step(0)
    names = ("align", "lay_out", "wanted", "encode_text", "encode_special")
    calls = Counter[str]()

    def count(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name in names and "pave" in frame.f_code.co_filename:
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        run.step(1)
    finally:
        sys.setprofile(None)
    lays = 3 * layouts  # the method of the model, that of its calls, and the function
    assert dict(calls) == {"align": 4, "lay_out": lays, "wanted": layouts}


@pytest.mark.parametrize(
    "words", [("train.keep=1", "lora.lora_dropout=0.4"), ("lora.lora_dropout=0.4",), ("train.keep=1",)]
)
def test_recomputed_activations_give_the_same_steps(recipe: Make, words: Sequence[str]) -> None:
    """With dropout, the recomputation drops the same; and the base's answers are those that it gives otherwise."""
    plain, recomputed = (
        train(recipe("train.steps=2", f"train.gradient_checkpointing={on}", *words, output=f"recomputed-{on}"))
        for on in ("false", "true")
    )
    assert plain.metrics["retention"] == recomputed.metrics["retention"]
    one, other = (Patch.load(result.patch).tensors for result in (plain, recomputed))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_generating_while_activations_are_recomputed_gives_the_same_answers(recipe: Make) -> None:
    run = Run.begin(recipe())
    model, clips = run.setup.model, [clip.features for clip in run.dataset.train[:2]]
    inputs = model.prepare(clips, ["what is it?"] * 2)
    wanted = model.generate(inputs, max_new_tokens=6)
    checkpoint_activations(model)
    assert torch.equal(model.generate(inputs, max_new_tokens=6), wanted)
    assert model.host.language_model.training, "as before"


def test_very_many_questions_about_a_clip_are_several_rows(recipe: Make, workshop: Path) -> None:
    line = json.loads((workshop / "train.jsonl").read_text().splitlines()[0])
    line["conversations"] = [*line["conversations"][:2] * 700]
    (workshop / "many.jsonl").write_text(json.dumps(line) + "\n")
    run = Run.begin(recipe(f"data.train={workshop / 'many.jsonl'}"))
    lengths = [sum(len(turn.prompt) + len(turn.answer) for turn in clip.turns) for clip in run.dataset.train]
    assert len(lengths) > 1 and max(lengths) <= TURNS and sum(len(clip.turns) for clip in run.dataset.train) == 700
    assert all(len(clip.examples) == len(clip.turns) for clip in run.dataset.train)
    training = run.trainee.attached.config.training
    assert (training["clips"], training["questions"]) == (1, 700)


@pytest.mark.parametrize("name", ["a\0b", "k" * 5000])
def test_folders_that_cannot_be_are_refused(recipe: Make, name: str) -> None:
    with pytest.raises(TrainingError, match="cannot be written"):
        train(recipe().model_copy(update={"train": recipe().train.model_copy(update={"output": Path(name)})}))
