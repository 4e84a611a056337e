"""The causal Q-Former: equal to the official block; attention masks; and what its diversity loss measures."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pave.config import PRESETS, ResamplerConfig
from pave.fusion.align import align
from pave.fusion.clock import synchronise
from pave.fusion.qformer import Attention, QFormer, Queries, Resampler, build_resampler, causal_mask, similarity
from pave.sidechannel import SideBatch, SideTokens

GOLDEN = GOLDEN_FOLDER / "favor_causal_qformer_tiny.safetensors"
NAMES = {  # official -> ours
    r"embeddings\.LayerNorm": "norm",
    r"encoder\.layer": "layers",
    r"encoder_causal_attention\.self": "causal",
    r"encoder_causal_attention\.output": "causal",
    r"crossattention\.self": "cross",
    r"crossattention\.output": "cross",
    r"attention\.self": "among",
    r"attention\.output": "among",
    r"intermediate_query\.dense": "ffn.0",
    r"output_query\.dense": "ffn.2",
    r"output_query\.LayerNorm": "norm",
    r"LayerNorm": "norm",
    r"dense": "out",
}


def official_block() -> tuple[QFormer, dict[str, Tensor], dict[str, Any]]:
    """The official block with its weights under our names, and the golden input and output."""
    with safe_open(GOLDEN, "pt") as file:
        facts = file.metadata()
    golden, shape = load_file(GOLDEN), json.loads(facts["cfg"])
    block = QFormer(shape["hidden"], shape["width"], heads=shape["heads"], layers=shape["layers"]).double().eval()
    state = {}
    for name, value in golden.items():
        if name.startswith("weights.") and not name.endswith("position_ids"):
            name = name.removeprefix("weights.")
            for official, ours in NAMES.items():
                name = re.sub(official, ours, name)
            state[name] = value
    block.load_state_dict(state)
    return block, golden, shape | {"direction": facts["direction"]}


@pytest.mark.parametrize("direction", ["future", "past", "none"])
def test_the_block_equals_the_official_one_in_its_direction(direction: str) -> None:
    block, golden, shape = official_block()
    mask = causal_mask(shape["frames_per_window"], shape["slots"], direction, torch.device("cpu"))
    outputs = block(golden["queries"], golden["frames"], mask, golden["valid"].bool())
    error = (outputs - golden["output"]).abs().max()
    assert error < 1e-10 if direction == shape["direction"] else error > 1e-2


@pytest.mark.parametrize(("preset", "millions"), [("paper", 40.2), ("default", 17.9), ("tiny", 4.5)])
def test_presets_have_the_known_parameter_counts(preset: str, millions: float) -> None:
    """With two senses; `paper` was counted on the official module, the others on a prototype."""
    config = ResamplerConfig.model_validate({"preset": preset})
    with torch.device("meta"):
        resampler = build_resampler(config, "add", (("video", 1152), ("audio", 1280)))
    assert isinstance(resampler, Queries)
    assert abs(sum(each.numel() for each in resampler.qformer.parameters()) / 1e6 - millions) < 0.1
    assert set(PRESETS) == {"paper", "default", "tiny"} and resampler.width == 2 * config.width


# Attention. 2 steps per second, each with 4 tokens of video and 5 of sound; a window has 4 steps


CONFIG: dict[str, Any] = {"slots": 5, "window": 4, "queries": 4, "width": 16, "heads": 2}
SENSES = (("video", 3), ("audio", 6))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(combine: str = "add", **changes: Any) -> Resampler:
    """A resampler with random weights, so that none is small as initialised."""
    torch.manual_seed(0)
    resampler = build_resampler(ResamplerConfig.model_validate(CONFIG | changes), combine, SENSES).double().eval()
    for name, weight in resampler.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    resampler.calibrate({"video": random(50, 3) + 1, "audio": 2 * random(50, 6)})
    return resampler


Sides = dict[str, SideBatch | None]
KEYS = torch.arange(4) + 0.25


def tokens(sense: str, steps: int, seed: int = 0, valid: Tensor | None = None) -> SideBatch:
    """One sense over so many steps."""
    row = SideTokens.regular(random(steps, 2, 2, 3, seed=seed), rate=2)
    if sense == "audio":
        row = SideTokens.regular(random(5 * steps, 1, 1, 6, seed=seed + 9), rate=10)
    row = row if valid is None else SideTokens(row.x, row.times, row.spans, valid)
    return align([row], [KEYS], "time")


def senses(steps: int = 8) -> Sides:
    return {"video": tokens("video", steps), "audio": tokens("audio", steps)}


def moved(sides: Sides, sense: str, step: int) -> Sides:
    """A copy in which the tokens of this sense at one step differ."""
    side = sides[sense]
    assert side is not None
    x, each = side.x.clone(), 1 if sense == "video" else 5
    x[0, step * each : (step + 1) * each] += torch.arange(x.shape[-1])
    return sides | {sense: SideBatch(x, side.times, side.steps, side.index, side.mask, None, side.key_times)}


def made(resampler: Resampler, sides: Sides) -> Tensor:
    return resampler(sides)[0].x[0, :, :, 0]


def changed(one: Tensor, other: Tensor) -> list[int]:
    """The windows or steps that differ by more than rounding."""
    return (one - other).abs().flatten(1).amax(1).gt(1e-6).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("sense", ["video", "audio"])
@pytest.mark.parametrize(("direction", "seen"), [("past", [5, 6, 7]), ("future", [4, 5]), ("none", [4, 5, 6, 7])])
def test_a_step_is_attended_to_from_one_side_of_its_window_only(direction: str, seen: list[int], sense: str) -> None:
    """Steps 4 to 7 are the second window; step 5 changes."""
    resampler, still = randomised(causal_direction=direction), senses()
    assert isinstance(resampler, Queries)
    layer: Any = resampler.qformer.layers[0]
    states = []
    for sides in (still, moved(still, sense, 5)):
        x = resampler._windows(synchronise(sides, resampler.config), sides).flatten(1, 2) + resampler.position
        states.append(layer.causal(x, x, causal_mask(4, 5, direction, x.device)).view(8, 5, -1))
    assert changed(*states) == seen


@pytest.mark.parametrize("sense", ["video", "audio"])
@pytest.mark.parametrize("step", range(8))
def test_a_window_reads_all_of_its_steps_and_no_other(step: int, sense: str) -> None:
    resampler, still = randomised(), senses()
    one, other = made(resampler, still), made(resampler, moved(still, sense, step))
    assert changed(one, other) == [step // 4] and torch.equal(one[1 - step // 4], other[1 - step // 4])
    assert ((one - other)[step // 4].abs().amax(-1) > 1e-6).all(), "each of its outputs depends on it"


@pytest.mark.parametrize(("stride", "step", "windows"), [(2, 5, [1, 2]), (1, 3, [0, 1, 2, 3]), (3, 3, [0, 1])])
def test_overlapping_windows_share_the_steps_in_both(stride: int, step: int, windows: list[int]) -> None:
    still = senses()
    resampler = randomised(stride=stride)
    assert changed(made(resampler, still), made(resampler, moved(still, "audio", step))) == windows


def test_swapping_two_windows_swaps_their_outputs() -> None:
    sides, resampler = senses(), randomised()
    swapped: Sides = {}
    for sense, side in sides.items():
        assert side is not None
        x = side.x.roll(side.x.shape[1] // 2, 1)
        swapped[sense] = SideBatch(x, side.times, side.steps, side.index, side.mask, None, side.key_times)
    assert torch.allclose(made(resampler, swapped), made(resampler, sides).flip(0), rtol=0, atol=1e-12)
    assert changed(*made(resampler, sides)[:, None]) == [0], "the two differ"


@pytest.mark.parametrize(("stride", "third"), [(None, [3]), (2, [3, 4, 5]), (1, [3, 4, 5, 6])])
def test_a_state_does_not_depend_on_later_steps(stride: int | None, third: list[int]) -> None:
    """A state is taken from the window with the longest past; later steps of the windows of step 3 depend on step 3."""
    resampler, still = randomised(readout="states", queries=32, stride=stride), senses()
    assert made(resampler, still).shape == (8, 5, 32)
    depend = [changed(made(resampler, still), made(resampler, moved(still, "video", step))) for step in range(8)]
    assert all(steps == list(range(step, step + len(steps))) and steps for step, steps in enumerate(depend))
    assert depend[3] == third


@pytest.mark.parametrize(("sense", "at", "slots", "half"), [("video", 3, {0, 1, 2, 3}, 0), ("audio", 17, {2}, 1)])
def test_a_token_is_at_its_step_and_slot_in_the_channels_of_its_sense(
    sense: str, at: int, slots: set[int], half: int
) -> None:
    resampler, sides = randomised(), senses()
    resampler.norm = torch.nn.Identity()  # type: ignore[assignment]
    clock, side = synchronise(sides, resampler.config), sides[sense]
    assert side is not None
    x = side.x.clone()
    x[0, at] += 1
    louder = SideBatch(x, side.times, side.steps, side.index, side.mask, None, side.key_times)
    differ = (resampler._windows(clock, sides | {sense: louder}) - resampler._windows(clock, sides)).abs() > 1e-9
    windows, steps, places, halves = differ.unflatten(-1, (2, 16)).any(-1).nonzero(as_tuple=True)
    assert set(clock.steps[windows, steps].tolist()) == {3} and set(places.tolist()) == slots
    assert set(halves.tolist()) == {half}


def test_defaults_are_favors() -> None:
    config, paper = ResamplerConfig(), ResamplerConfig.model_validate({"preset": "paper"})
    defaults = (config.diversity, config.causal_direction, config.rate, config.window, config.queries)
    assert defaults == (0.01, "past", 2, 10, 32)
    assert (paper.width, paper.heads, paper.layers, paper.slots, paper.dropout) == (768, 12, 2, 32, 0.1)


# Missing tokens


@pytest.mark.parametrize("sense", ["video", "audio"])
@pytest.mark.parametrize("readout", ["queries", "states"])
def test_a_missing_sense_is_zero_after_its_projection(readout: str, sense: str) -> None:
    resampler, sides = randomised(readout=readout, queries=4 if readout == "queries" else 32), senses()
    without = made(resampler, sides | {sense: None})
    assert changed(without, made(resampler, sides))
    for parameter in resampler.project[sense].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(made(resampler, sides), without)


def test_input_is_standardised_by_measured_statistics() -> None:
    """Scaling a sense by 40 and adding a large constant changes nothing after calibration."""
    resampler, other, sides = randomised(), randomised(), senses()
    side = sides["audio"]
    assert side is not None
    loud = SideBatch(40 * side.x + 900, side.times, side.steps, side.index, side.mask, None, side.key_times)
    resampler.calibrate({"audio": side.x.flatten(0, 3)})
    other.calibrate({"audio": loud.x.flatten(0, 3)})
    want = made(resampler, sides)
    assert torch.allclose(made(other, sides | {"audio": loud}), want, rtol=0, atol=1e-5)
    assert changed(made(resampler, sides | {"audio": loud}), want) == [0, 1]


def test_dropout_acts_on_attention_weights_and_on_the_output() -> None:
    """With one key, and weights such that the output is 1: a head or an element is dropped, else scaled."""
    attention = Attention(64, heads=16, dropout=0.5)
    attention.norm = torch.nn.Identity()  # type: ignore[assignment]
    for name, parameter in attention.named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if name == "value.bias" else 0.0)
    torch.nn.init.eye_(attention.out.weight)
    x, read = torch.zeros(32, 1, 64), torch.zeros(32, 1, 64)
    output = attention.train()(x, read)
    heads = output.unflatten(-1, (16, 4))
    assert set(output.unique().tolist()) == {0.0, 4.0}
    assert 0.4 < (heads == 0).all(-1).float().mean() < 0.7, "half of the heads, and of the others one in sixteen"
    assert torch.equal(attention.eval()(x, read), torch.ones_like(x))


def test_sound_that_ends_within_a_step_is_padded_with_zeros() -> None:
    valid = torch.ones(40, 1, 1, dtype=torch.bool)
    valid[33:] = False
    short = SideTokens.regular(tokens("audio", 8).x[0, :33], rate=10)
    resampler, video = randomised(), tokens("video", 8)
    cut = made(resampler, {"video": video, "audio": align([short], [KEYS], "time")})
    masked = made(resampler, {"video": video, "audio": tokens("audio", 8, valid=valid)})
    assert torch.equal(cut, masked) and changed(cut, made(resampler, senses())) == [1]


def test_a_single_picture_equals_a_video_that_repeats_it() -> None:
    resampler, picture = randomised(), random(1, 2, 2, 3)
    videos = (SideTokens.regular(picture.expand(count, -1, -1, -1), rate=2) for count in (1, 6, 3))
    sound = tokens("audio", 6)
    sound = SideBatch(sound.x, sound.times, sound.steps, sound.index[:, :1], sound.mask[:, :1], None, KEYS[None, :1])
    once, always, half = (
        made(resampler, {"video": align([video], [KEYS[:1]], "time"), "audio": sound}) for video in videos
    )
    assert torch.equal(once, always) and changed(once, half) == [0, 1]


@pytest.mark.parametrize("direction", ["past", "future", "none"])
def test_padding_after_the_end_has_no_influence_with_past(direction: str) -> None:
    """With the official code's `future`, steps attend to it."""
    resampler, sides = randomised(causal_direction=direction), senses(6)
    clock = synchronise(sides, resampler.config)
    x = resampler._windows(clock, sides)
    dirty = x.clone()
    dirty[1, 2:] = random(2, 5, 32)
    assert (clock.steps[1] < clock.count).tolist() == [True, True, False, False]
    one, other = (resampler.look(each, clock)[0] for each in (x, dirty))
    assert changed(one, other) == ([] if direction == "past" else [1])


# Several lengths of windows


def test_outputs_of_finer_windows_are_concatenated_to_those_of_the_coarse_window_around_them() -> None:
    """8 steps: two windows of 4 with 4 outputs, each with the output of a one-step window, and one of the two outputs
    of a window of two."""
    resampler, still = randomised(finer=(1, 2)), senses()
    fine, middle, coarse = made(resampler, still).chunk(3, -1)
    assert fine.shape == middle.shape == coarse.shape == (2, 4, 16)
    for step in range(8):
        after = made(resampler, moved(still, "audio", step)).chunk(3, -1)
        w, place = divmod(step, 4)
        depend = [
            (one - other).abs().amax(-1).gt(1e-6).nonzero().tolist()
            for one, other in zip((fine, middle, coarse), after, strict=True)
        ]
        assert depend[0] == [[w, place]]
        assert depend[1] == [[w, place // 2 * 2], [w, place // 2 * 2 + 1]]
        assert depend[2] == [[w, i] for i in range(4)]


def test_a_finer_window_uses_the_same_network_at_that_length() -> None:
    """The weights are shared, except the queries."""
    both, fine = randomised(finer=(1,)), randomised(window=1, queries=1, diversity=0)
    shared = {name: value for name, value in both.state_dict().items() if name not in ("position", "queries.4")}
    fine.load_state_dict(shared | {"position": both.position[:5]})
    assert torch.allclose(made(both, senses())[..., :16].flatten(0, 1), made(fine, senses())[:, 0], atol=1e-12)


def test_finer_windows_beyond_the_end_are_zero_and_do_not_count() -> None:
    """5 steps in two windows of 4: the last three are padding, and so is one window of two."""
    resampler = randomised(finer=(1, 2))
    sides = senses(5)
    side, similar = resampler(sides)
    fine, middle, coarse = side.x[0, :, :, 0].chunk(3, -1)
    assert not fine[1, 1:].any() and not middle[1, 2:].any()
    assert all(x.abs().amax(-1).gt(0).all() for x in (fine[1, :1], middle[1, :2], coarse[1]))
    assert len(similar) == 3 + 2, "windows of two steps and of four; those of one step do not count"


# Diversity


def official_formula(x: Tensor) -> Tensor:
    """Mean cosine of all pairs of different outputs of a window."""
    n, total = x.shape[1], 0.0
    for window in x:
        for i in range(n):
            for j in range(n):
                if i != j:
                    total += window[i] @ window[j] / (window[i].norm() * window[j].norm() + 1e-9)
    return torch.as_tensor(total) / (len(x) * (n * n - n))


def test_diversity_equals_the_official_formula_and_ignores_scale_and_order() -> None:
    x = random(3, 5, 7)
    assert torch.allclose(similarity(x).mean(), official_formula(x), rtol=0, atol=1e-9)
    assert torch.allclose(similarity(x), similarity(x.flip(1) * torch.arange(1, 6)[:, None]), rtol=0, atol=1e-12)


def test_diversity_is_one_for_equal_outputs_zero_for_orthogonal_ones_and_minimal_for_a_simplex() -> None:
    equal, orthogonal = random(1, 1, 8).expand(2, 6, 8), torch.eye(6).expand(2, 6, 6)
    simplex = (torch.eye(6) - 1 / 6).expand(2, 6, 6)
    for x, value in ((equal, 1), (orthogonal, 0), (simplex, -1 / 5)):
        assert torch.allclose(similarity(x), torch.full((2,), float(value), dtype=x.dtype), rtol=0, atol=1e-6)


def test_padding_does_not_count_for_diversity() -> None:
    """A batch's mean is over real windows: next to a clip of two windows, a clip of one has a weight of a third."""
    resampler = randomised()
    values = [resampler(senses(steps))[1] for steps in (3, 8)]
    assert [len(each) for each in values] == [1, 2]
    made_of = [resampler(senses(steps))[0].x[0, :, :, 0] for steps in (3, 8)]
    assert torch.allclose(torch.cat(values).mean(), official_formula(torch.cat(made_of)), rtol=0, atol=1e-9)
