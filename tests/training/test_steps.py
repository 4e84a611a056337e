"""Claims about the steps of a run: a divided step is the same step; epochs, stages, longer runs and the best evaluation
are what they say, also if the run is interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from runs import quiet, trained
from torch import Tensor

from pave.errors import RecipeError, TrainingError
from pave.model.patched import load
from pave.patch.file import Patch
from pave.recipe import NARROW_RATE, WIDE, WIDE_RATE, Recipe, TrainConfig
from pave.text.progress import Shown
from pave.training import plan
from pave.training.plan import divided, stretches
from pave.training.run import Run, train
from pave.training.trainee import attention

Make = Callable[..., Recipe]
DROPOUT = ("fusion.dropout=0.2", "lora.lora_dropout=0.2")
# Two senses and a resampler, whose diversity is an auxiliary loss.
FAVOR = (
    "senses.slow={encoder: logmel, options: {bands: 8, rate: 2}}",
    "resampler={width: 16, heads: 2, window: 4, queries: 4, slots: 3, diversity: 0.5}",
)


def interrupted(recipe: Recipe, last: int) -> None:
    """The beginning of a run, which ends after a step as with ctrl-c."""

    def stop(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, progress=stop)


# Parts of a step

DIVIDING = ("train.accumulate", "train.micro_batch")


@pytest.fixture
def ragged(workshop: Path) -> str:
    """Clips with one to many questions, of which two have no sound."""
    lines = []
    for number, text in enumerate((workshop / "mixed.jsonl").read_text().splitlines()):
        line = json.loads(text)
        line["conversations"] *= 1 + 3 * (number % 4)
        lines.append(json.dumps(line) + "\n")
    (workshop / "ragged.jsonl").write_text("".join(lines))
    return f"data.train={workshop / 'ragged.jsonl'}"


def step_of(recipe: Recipe) -> tuple[Run, list[dict[str, float]], dict[str, Tensor]]:
    """A run whose patch has an effect, the losses of each part of its first step, and the gradients of the step."""
    run = Run.begin(recipe)
    generator = torch.Generator().manual_seed(0)
    for parameter in run.trainee.parameters["lora"].values():
        parameter.data.normal_(std=0.3, generator=generator)
    with torch.no_grad():
        run.trainee.attached.train()
        parts = [
            {"loss": float(loss), "kept": float(kept), **{name: float(each) for name, each in more.items()}}
            for loss, kept, more, _ in run.losses_of(0)
        ]
    parameters = {name: each for part in run.trainee.parameters.values() for name, each in part.items()}
    loss = run.step(0)
    assert loss == pytest.approx(sum(part["loss"] for part in parts), rel=1e-6)
    return run, parts, {name: each.grad for name, each in parameters.items() if each.grad is not None}


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("train.accumulate=3",), 3),
        (("train.micro_batch=300", "train.mean_over=tokens"), None),
        (("train.accumulate=8", *FAVOR), 8),
        (("train.micro_batch=1", "train.keep=0", *FAVOR), 8),
        ((), 2),  # to spare padding
        (FAVOR, 2),
    ],
)
def test_a_divided_step_is_the_undivided_one(
    recipe: Make, ragged: str, words: tuple[str, ...], count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses and its gradient, in float32; also where a part has clips without the sense alone."""
    same = (ragged, "train.batch=8", "train.max_grad_norm=1e9", "train.keep=2")
    with monkeypatch.context() as context:
        context.setattr(plan, "SPARED", 1.0)
        _, (whole,), gradients = step_of(recipe(*same, *(each for each in words if not each.startswith(DIVIDING))))
    monkeypatch.setattr(plan, "SPARED", 0.01)
    run, parts, divided_gradients = step_of(recipe(*same, *words))
    assert len(parts) == count if count else 1 < len(parts) < 8
    assert all(whole[name] > 0 for name in whole if "train.keep=0" not in words or name != "kept")
    for name, value in whole.items():
        assert sum(part.get(name, 0.0) for part in parts) == pytest.approx(value, rel=1e-6)
    assert ("diversity" in whole) == (run.setup.recipe.resampler is not None)
    assert gradients.keys() == divided_gradients.keys() and gradients
    scale = max(float(each.abs().max()) for each in gradients.values())
    assert all(torch.allclose(each, divided_gradients[name], atol=1e-6 * scale) for name, each in gradients.items())


def test_a_part_has_rows_of_like_lengths_and_at_most_so_many_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = (200 + torch.randint(0, 3000, (64,), generator=draw)).tolist()
    parts = divided(lengths, TrainConfig(micro_batch=8_000, batch=64))
    assert sorted(chain(*parts)) == list(range(64))
    sizes = [[lengths[row] for row in part] for part in parts]
    assert all(len(each) * max(each) <= 8_000 for each in sizes)
    assert all(min(one) >= max(other) for one, other in pairwise(sizes))
    padded = sum(len(each) * max(each) for each in sizes)
    assert 1 - sum(lengths) / padded < 0.05 < 1 - sum(lengths) / (64 * max(lengths)), "padding, and without parts"
    assert divided([5, 9, 7], TrainConfig(micro_batch=6)) == [[1], [2], [0]], "a row alone may have more"
    assert divided([5, 9, 7], TrainConfig()) == [[0, 1, 2]], "as they came"
    assert [len(part) for part in divided([1] * 8, TrainConfig(accumulate=3, batch=8))] == [2, 3, 3]


def test_a_second_part_spares_padding() -> None:
    options = TrainConfig(batch=8)
    assert divided([62] * 3 + [130] + [62] * 4, options, sparing=True) == [[3], [0, 1, 2, 4, 5, 6, 7]]
    assert divided([130, 60, 120, 60], options, sparing=True) == [[0, 2], [1, 3]]
    assert divided([62] * 7 + [80], options, sparing=True) == [[*range(8)]], "a pass costs more than it spares"
    assert divided([62] * 8, options, sparing=True) == [[*range(8)]]
    assert divided([9], options, sparing=True) == [[0]] and divided([], options, sparing=True) == [[]]


def test_an_interrupted_run_of_divided_steps_gives_the_bytes_of_an_uninterrupted_one(recipe: Make, ragged: str) -> None:
    words = (ragged, "train.batch=8", "train.micro_batch=300", *DROPOUT)
    whole = train(recipe(*words, output="whole")).patch.read_bytes()
    interrupted(recipe(*words), 3)
    assert train(recipe(*words), resume=True).patch.read_bytes() == whole


def test_held_out_clips_go_through_the_base_like_those_of_a_part(recipe: Make, ragged: str) -> None:
    val = ragged.replace("train=", "val=")
    run = Run.begin(recipe(val, "train.batch=8"))
    longest = max(clip.length for clip in run.dataset.val)
    sizes = [run.together]
    for word in ("train.accumulate=3", f"train.micro_batch={3 * longest + 1}", "train.micro_batch=1"):
        sizes.append(Run(Run.begin(recipe(val, "train.batch=8", word)).setup, run.dataset, run.trainee).together)
    assert sizes == [8, 3, 3, 1]


# How long a run is


def test_epochs_are_rounded_up_to_whole_steps(recipe: Make) -> None:
    run = Run.begin(recipe("train.steps=null", "train.epochs=2", "train.batch=5"))
    clips = [id(clip) for step in range(run.steps) for clip in run.clips_of(step)]
    assert run.steps == 3 and {clips[:12].count(each) for each in clips} == {2}
    training = run.trainee.attached.config.training
    assert (training["steps"], training["epochs"]) == (3, 2.0)
    assert [stretches(TrainConfig(epochs=0.1, batch=1), count)[-1].end for count in (30, 31)] == [3, 4]


def test_a_longer_run_goes_on_and_says_so(recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    short, longer = recipe(*DROPOUT), recipe(*DROPOUT, "train.steps=7", "train.schedule=linear")
    rates: list[float] = []
    finished = train(recipe(*DROPOUT, output="short")).patch
    train(short)
    with pytest.raises(TrainingError, match=r"training\.schedule: None there, 'linear' here"):
        train(longer, resume=True)
    longer = recipe(*DROPOUT, "train.steps=7")
    run = Run.begin(longer, Shown(bars=False))
    capsys.readouterr()
    run.resume()
    assert "was to have 4 steps and goes on to 7: from step 4 on" in capsys.readouterr().err
    run.fit(lambda step, steps, figures: rates.append(figures["rate"]))
    whole = run.finish().patch
    cosine = [NARROW_RATE * (1 + math.cos(math.pi * (step - 1) / 6)) / 2 for step in (4, 5, 6)]
    assert rates == pytest.approx(cosine, rel=1e-9)
    config = Patch.load(whole).config
    assert config.training["steps"] == 7
    assert config.training["planned"] == {"from step 0": "4 steps", "from step 4": "7 steps"}
    assert "planned" not in Patch.load(finished).config.training
    with pytest.raises(TrainingError, match=r"is of step 7, beyond the 5 that the recipe asks for; ask for as many"):
        train(recipe("train.steps=5", *DROPOUT), resume=True)


def test_an_interrupted_longer_run_gives_the_bytes_of_an_uninterrupted_one(recipe: Make) -> None:
    files = []
    for output, stop in (("whole", None), ("interrupted", 7)):
        train(recipe(*DROPOUT, output=output))
        longer = recipe(*DROPOUT, "train.steps=8", output=output)

        def halt(step: int, *_: object, last: int | None = stop) -> None:
            if step == last:
                raise KeyboardInterrupt

        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(longer, resume=True, progress=halt)
        files.append(train(longer, resume=True).patch.read_bytes())
    assert files[0] == files[1]


# Rates


@pytest.mark.parametrize(
    ("schedule", "factors"), [("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]), ("constant", [0.5, 1, 1, 1, 1, 1])]
)
def test_the_rate_follows_the_schedule_after_the_warm_up(schedule: str, factors: list[float]) -> None:
    options = TrainConfig.model_validate({"steps": 6, "warmup": 1 / 3, "schedule": schedule})
    (stretch,) = stretches(options, 100)
    assert [stretch.factor(step) for step in range(6)] == pytest.approx(factors)


def test_rates_that_are_not_given_depend_on_the_width_of_the_base(recipe: Make) -> None:
    """The PAVE authors train bases of 896 and 3,584 channels with 2e-5."""
    given = TrainConfig(lora_lr=1e-3)
    for channels, rate in ((128, 3e-3), (896, 2e-5), (3584, 2e-5)):
        assert (given.on(channels).fusion_lr, given.on(channels).lora_lr) == (rate, 1e-3)
        assert given.on(channels).resampler_lr == 3e-4
    run = Run.begin(recipe())
    assert run.setup.model.host.dim < WIDE and run.trainee.attached.config.training["fusion_lr"] == NARROW_RATE
    assert WIDE_RATE == 2e-5


def test_betas_and_decay_are_those_of_the_optimiser_and_recorded(recipe: Make) -> None:
    run = Run.begin(recipe("train.betas=[0.8, 0.9]", "train.weight_decay=0.1"))
    (defaults,) = {(group["betas"], group["weight_decay"]) for group in run.trainee.optimiser.param_groups}
    assert defaults == ((0.8, 0.9), 0.1)
    assert run.trainee.attached.config.training["betas"] == "0.8, 0.9"
    plain = Run.begin(recipe())
    assert {group["betas"] for group in plain.trainee.optimiser.param_groups} == {(0.9, 0.98)}
    younger = {"betas", "epochs", "schedule", "stages", "best", "accumulate", "micro_batch"}
    assert not younger & plain.trainee.attached.config.training.keys(), "older patches keep their bytes"


# Stages


STAGES = (
    "train.steps=null",
    "train.checkpoint_every=1",
    "train.stages=[{steps: 3, lora_lr: 0}, {epochs: 1, batch: 2, fusion_lr: 1.0e-3}]",
)


def test_a_stage_has_its_own_length_batch_and_rates(recipe: Make) -> None:
    run, rates, loras = Run.begin(recipe(*STAGES)), [], []
    lora = [*run.trainee.parameters["lora"].values()]
    before = [each.detach().clone() for each in lora]

    def look(step: int, steps: int, figures: dict[str, float]) -> None:
        rates.append(figures["rate"])
        loras.append(all(torch.equal(one, other) for one, other in zip(lora, before, strict=True)))

    assert run.steps == 6 and [len(run.clips_of(step)) for step in range(6)] == [3, 3, 3, 2, 2, 2]
    order = [id(clip) for step in range(6) for clip in run.clips_of(step)]
    assert len({*order[:6]}) == len({*order[6:12]}) == 6, "the second stage goes on in the order of clips"
    run.fit(look)
    assert loras == [True] * 3 + [False] * 3
    counts = {int(state["step"]) for state in run.trainee.optimiser.state.values()}
    assert counts == {3}, "the moments of AdamW are those of the second stage"
    assert rates == pytest.approx(
        [*(NARROW_RATE * each for each in (1, 1, 0.5)), *(1e-3 * each for each in (1, 1, 0.5))]
    )
    training = Patch.load(run.finish().patch).config.training
    assert training["steps"] == 6 and training["stages"] == {
        "1": '{"lora_lr":0.0,"steps":3}',
        "2": '{"batch":2,"epochs":1.0,"fusion_lr":0.001}',
    }


def test_the_two_stages_of_audio_visual_llm_can_be_written() -> None:
    """Table of its hyper-parameters (arXiv 2312.06720), with 260,000 samples of its own, 650,000 and 770,000 others."""
    first = {"epochs": 3, "batch": 256, "fusion_lr": 2e-3, "lora_lr": 0}
    second = {"epochs": 1, "batch": 128, "fusion_lr": 2e-5, "lora_lr": 2e-5}
    options = TrainConfig.model_validate({"warmup": 0.03, "stages": [first, second]})
    assert (options.betas, options.schedule, options.weight_decay) == ((0.9, 0.98), "cosine", 0)
    stages = stretches(options, 260_000 + 650_000 + 770_000)
    assert [(stage.begin, stage.end, stage.seen) for stage in stages] == [(0, 19_688, 0), (19_688, 32_813, 5_040_128)]
    assert [stage.factor(stage.begin + 590) for stage in stages] == [1.0, pytest.approx(0.9989, abs=1e-3)]


@pytest.mark.parametrize("last", [3, 5])
def test_an_interrupted_run_of_stages_gives_the_bytes_of_an_uninterrupted_one(recipe: Make, last: int) -> None:
    """Also between the two, where the second begins with moments of its own."""
    whole = train(recipe(*STAGES, *DROPOUT, output="whole")).patch.read_bytes()
    interrupted(recipe(*STAGES, *DROPOUT), last)
    assert train(recipe(*STAGES, *DROPOUT), resume=True).patch.read_bytes() == whole


def test_a_part_with_rate_0_gets_no_gradient(recipe: Make) -> None:
    run = trained(recipe("train.lora_lr=0", "train.steps=2"))
    parts = run.trainee.parameters
    assert all(each.grad is None for each in parts["lora"].values())
    assert all(each.grad is not None for each in parts["fusion"].values())


def test_training_can_start_from_a_patch_with_another_lora(recipe: Make) -> None:
    """A fusion that has been trained alone; LoRA joins later."""
    first = train(recipe("name=first", "lora=null", output="first")).patch
    told: list[str] = []
    run = Run.begin(recipe(f"train.start_from={first}"))
    told = run.setup.remarks()
    assert told == [
        f"train.start_from={first}: its LoRA (none) is not taken; the recipe's (r=4, lora_alpha=16) begins anew"
    ]
    start, tensors = run.setup.model.export("ears").tensors, Patch.load(first).tensors
    learned = [name for name in tensors if name.startswith("fusion.")]
    assert learned and all(torch.equal(start[name], tensors[name]) for name in learned)
    assert not any(value.any() for name, value in start.items() if name.startswith("lora.") and name.endswith(".B"))
    run.fit(quiet)
    again = Run.begin(recipe(f"train.start_from={run.finish().patch}", "lora.lora_dropout=0.3", output="again"))
    assert again.setup.remarks() == [], "dropout has no weights"
    taken = {name: value for name, value in again.setup.model.export("ears").tensors.items() if "lora." in name}
    own = run.setup.model.export("ears").tensors
    assert taken and all(torch.equal(value, own[name]) for name, value in taken.items())


# The best evaluation


def best_run(recipe: Make, workshop: Path, **place: str) -> Recipe:
    """The held-out accuracy of this run rises, and falls when the rate becomes absurd."""
    stages = "train.stages=[{steps: 12}, {steps: 4, fusion_lr: 0.9, lora_lr: 0.9}]"
    options = ("batch=6", "eval_every=4", "checkpoint_every=1", "best=true", "lora_lr=2.0e-2", "steps=null")
    words = [f"train.{each}" for each in options]
    return recipe(*words, stages, f"data.val={workshop / 'train.jsonl'}", **place)


def test_the_patch_is_that_of_the_best_evaluation(recipe: Make, workshop: Path) -> None:
    run, seen = Run.begin(best_run(recipe, workshop)), {}

    def look(step: int, steps: int, figures: dict[str, float]) -> None:
        if "held-out" in figures:
            seen[step] = figures["held-out"], run.setup.model.export("ears").tensors

    run.fit(look)
    last = run.setup.model.export("ears").tensors
    result = run.finish()
    best = max(seen, key=lambda step: seen[step][0])
    assert seen[best][0] > 0 and list(seen) == [4, 8, 12]
    assert result.metrics["best"] == {"step": best, "held_out": seen[best][0]}
    assert result.metrics["held_out"]["all"]["patched"] == seen[best][0]  # type: ignore[index]
    tensors = Patch.load(result.patch).tensors
    assert all(torch.equal(tensors[name], seen[best][1][name]) for name in tensors)
    assert any(not torch.equal(tensors[name], last[name]) for name in tensors)
    run.choose(99, run.look().own)
    assert run.best is not None and run.best.step == best, "the first of equal ones"


def test_an_interrupted_run_keeps_its_best_evaluation(recipe: Make, workshop: Path) -> None:
    whole = train(best_run(recipe, workshop, output="whole")).patch.read_bytes()
    interrupted(best_run(recipe, workshop), 15)
    assert train(best_run(recipe, workshop), resume=True).patch.read_bytes() == whole


# Refusals


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.epochs=2", "steps=4, epochs=2.0, 0 stages: a run has one length; give exactly one (steps=null, "),
        ("train.steps=null", "steps=None, epochs=None, 0 stages: a run has one length"),
        ("train={stages: [{lora_lr: 0}]}", "stage 1 of stages needs exactly one of steps and epochs"),
        ("train={epochs: 0}", "train.epochs=0: must be above 0"),
        ("train.accumulate=4", "accumulate=4: a step of batch=3 has no so many parts"),
        ("train={accumulate: 2, micro_batch: 9}", "accumulate=2 divides a step by clips, micro_batch=9 by tokens; use"),
        ("train={fusion_lr: 0, lora_lr: 0}", "fusion_lr and lora_lr are 0, so nothing learns; give one of them a rate"),
        ("train.best=true", "train.best chooses by held-out questions, and there are none; give data.val"),
        ("train.betas=[0.9, 1]", "train.betas.1=1: must be below 1"),
        ("train.schedule=step", "must be 'cosine', 'linear' or 'constant'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(recipe: Make, word: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe(word)
    assert message in str(refused.value)


def test_short_rows_in_bfloat16_take_plain_products_on_a_cpu() -> None:
    for dtype, longest, flash in (("bfloat16", 128, False), ("bfloat16", 129, True), ("float32", 128, True)):
        with attention(load("playroom", dtype=dtype).host, longest):
            assert torch.backends.cuda.flash_sdp_enabled() is flash
        assert torch.backends.cuda.flash_sdp_enabled()
