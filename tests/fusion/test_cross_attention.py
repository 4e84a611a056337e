"""Fusion: equal to the official release, zero at initialisation, and each key frame reads its own segment only."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from places import GOLDEN as GOLDEN_FOLDER
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pave.config import FusionConfig
from pave.errors import BaseModelError, RecipeError, SignalError
from pave.fusion import segments
from pave.fusion.align import align
from pave.fusion.cross_attention import Folded, Fusion, Official, build_fusion
from pave.fusion.inserted import Concatenation
from pave.fusion.reader import Standardise
from pave.fusion.rope import cell_centres, cube_places, time_turns
from pave.sidechannel import Rule, SideBatch, SideTokens

GOLDEN = json.loads((GOLDEN_FOLDER / "pave_golden.json").read_text())
DIMS: dict[str, Any] = {"side_dim": 6, "vision_dim": 10, "visual_dim": 12, "tokens": 9, "frames": 4}
KINDS = {
    "folded": FusionConfig(width=16, heads=2),
    "folded, learnable query": FusionConfig(width=16, heads=2, query="learnable"),
    "folded, projected query": FusionConfig(width=16, heads=2, query="projected", rope="off"),
    "folded, 3-D": FusionConfig(width=256, heads=2, rope="3d"),
    "official": FusionConfig(kind="official", width=16, heads=2, values="shared", rope="off", head="norm"),
    "official, own values": FusionConfig(kind="official", width=16, heads=2, query="projected"),
    "official, 3-D": FusionConfig(kind="official", width=256, heads=2, layers=1, rope="3d", query="learnable"),
}
every_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
every_rule = pytest.mark.parametrize("rule", ["time", "index"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(config: FusionConfig, seed: int = 0) -> Fusion:
    """A fusion with random weights, so that none is zero as initialised."""
    torch.manual_seed(seed)
    fusion = build_fusion(config, **DIMS).double()
    assert isinstance(fusion, Fusion)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    fusion.calibrate(random(3, 12), random(50, 6) * 2 + 1)
    return fusion


def side_tokens(steps: int, grid: int = 2, seed: int = 0) -> SideTokens:
    return SideTokens.regular(random(steps, grid, grid, 6, seed=seed), rate=2)


def keys(frames: int) -> Tensor:
    return torch.arange(frames) + 0.25


def visual(b: int, t: int = 4, seed: int = 5) -> tuple[Tensor, Tensor]:
    return random(b, t, 9, 10, seed=seed), random(b, t, 9, 12, seed=seed + 1)


# equality with the official release


def official_tensor(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def official_fusion(query: str, rope: str) -> Official:
    """The golden module: seeded weights under the official names, by the recipe in the golden file."""
    options = {"kind": "official", "width": 256, "heads": 2, "query": query, "rope": rope}
    config = FusionConfig.model_validate(options | {"values": "shared", "head": "norm"})
    fusion = Official(config, side_dim=24, embed=32, vision_dim=20, visual_dim=16, tokens=9, frames=4).double()
    state = fusion.state_dict()
    for i, name in enumerate(sorted(GOLDEN["keys_learnable" if query == "learnable" else "keys_slow_feat"])):
        if name not in state:
            assert ".v_linear." in name  # the official code saves it, but never uses it
            continue
        value = official_tensor(1000 + i, *state[name].shape)
        if name == "learnable_query":
            state[name] = value
        elif value.ndim == 2:
            state[name] = 2 * value / value.shape[1] ** 0.5
        else:
            state[name] = 1 + 0.1 * value if name.endswith("weight") else 0.1 * value
    fusion.load_state_dict(state)
    return fusion


@pytest.mark.parametrize("case", GOLDEN["results"])
def test_official_fusion_equals_the_official_code(case):
    query, rope, shape = case.split("/")
    steps, grid = int(shape.split("_")[0][1:]), int(shape.split("x")[-1][0])
    fusion = official_fusion("learnable" if query == "learnable" else "vision", "3d" if rope == "rope=True" else "off")
    side = align([SideTokens.regular(official_tensor(1, steps, grid, grid, 24), rate=1)], [torch.arange(4.0)], "index")
    got = fusion(official_tensor(2, 1, 4, 9, 20), torch.zeros(1, 4, 9, 16, dtype=torch.float64), side).flatten(0, 2)
    want = {name: torch.tensor(value, dtype=torch.float64) for name, value in GOLDEN["results"][case].items()}
    assert torch.allclose(got.sum(), want["sum"], rtol=0, atol=1e-6)
    assert torch.allclose(got.abs().sum(), want["abs"], rtol=0, atol=1e-6)
    for rows, name in ((got[0, :4], "a"), (got[17, :4], "b"), (got[35, -4:], "c")):
        assert torch.allclose(rows, want[name], rtol=0, atol=1e-6)


def test_official_fusion_has_the_official_parameter_count():
    config = FusionConfig(kind="official", values="own", rope="off", head="norm")
    with torch.device("meta"):
        fusion = build_fusion(config, side_dim=1024, vision_dim=1152, visual_dim=3584, tokens=196, frames=32)
    assert sum(p.numel() for p in fusion.parameters()) == 8_996_352


@pytest.mark.parametrize("count", range(1, 28))
def test_cell_centres_are_the_integers_of_the_official_code(count):
    for size in range(count, 60):
        want = np.linspace(0, size, 2 * count + 1, dtype=int)[1:-1][::2]
        assert cell_centres(count, size).tolist() == want.tolist()


SHORTEST, LONGEST = 0.25, 256.0  # seconds of a full turn, of the fastest and the slowest pair of channels


def test_time_rotations_resolve_a_tenth_of_a_second_and_a_segment_of_a_long_film():
    """A tenth of a second is 0.4 of a turn for the fastest pair; a segment of two hours in 32 frames, 225 s, is less
    than one turn for the slowest."""
    seconds = torch.tensor([[0.1, 225.0]], dtype=torch.float64)
    cos, sin = (part[0, :, 0, 0] for part in time_turns(seconds, 16))
    for i, pair, circles in ((0, 8, 0.1 / SHORTEST), (1, 15, 225 / LONGEST)):
        assert cos[i, pair].item() == pytest.approx(math.cos(2 * math.pi * circles), abs=1e-9)
        assert sin[i, pair].item() == pytest.approx(math.sin(2 * math.pi * circles), abs=1e-9)


# equality with slow versions


def literal_folded(fusion: Folded, vision: Tensor, side: SideBatch) -> Tensor:
    """The equations of the docstring, one key frame and one head at a time."""
    b, t, s, _ = vision.shape
    assert fusion.query is not None
    query = fusion.query
    e = fusion.config.width // fusion.heads
    periods = SHORTEST * (LONGEST / SHORTEST) ** (torch.arange(e // 2, dtype=torch.float64) / (e // 2 - 1))
    update = torch.zeros(b, t, s, fusion.visual_dim, dtype=torch.float64)
    for i in range(b):
        for j in range(t):
            steps = side.index[i, j][side.mask[i, j]]
            x = side.x[i, steps].flatten(0, 2)
            x = (x - fusion.standard.mean) * fusion.standard.gain
            since = (side.times[i, steps] - side.key_times[i, j]).repeat_interleave(len(x) // max(1, len(steps)))
            q = query(F.layer_norm(vision[i, j], vision.shape[-1:]))
            k, v = fusion.key(x), fusion.value(x)
            for h in range(fusion.heads):
                part = slice(h * e, (h + 1) * e)
                pairs = torch.complex(*k[:, part].chunk(2, dim=-1)) * torch.exp(2j * math.pi * since[:, None] / periods)
                turned = torch.cat([pairs.real, pairs.imag], dim=-1)
                scores = q[:, part] @ torch.cat([turned, fusion.null[None, part]]).T / math.sqrt(e)
                read = scores.softmax(-1)[:, :-1] @ v[:, part]
                update[i, j] += fusion.scale * read @ fusion.out.weight[:, part].T
    return update


@every_rule
@pytest.mark.parametrize("folds", [True, False])
def test_folded_fusion_equals_its_equations_in_either_order(folds, rule):
    fusion = randomised(KINDS["folded"])
    assert isinstance(fusion, Folded)
    fusion.scale.fill_(3)
    fusion.folds = lambda s, n: folds  # the order affects only the cost
    vision, tokens = visual(3)
    side = align([side_tokens(11), None, side_tokens(16)], [keys(4)] * 3, rule)
    assert torch.allclose(fusion(vision, tokens, side), literal_folded(fusion, vision, side), rtol=0, atol=1e-9)


def turned(x: Tensor, place: Sequence[float]) -> Tensor:
    """A head (128,) at a place in time, height and width: 16, 24 and 24 of its pairs of channels, base 10,000."""
    axes = [0] * 16 + [1] * 24 + [2] * 24
    angles = torch.tensor([place[axis] / 10_000 ** (i / 64) for i, axis in enumerate(axes)], dtype=torch.float64)
    pairs = torch.complex(*x.chunk(2)) * torch.exp(1j * angles)
    return torch.cat([pairs.real, pairs.imag])


@every_rule
def test_a_folded_fusion_places_both_grids_in_three_dimensions(rule):
    """Eight steps of 2 × 2 side tokens beside four key frames of 3 × 3 visual ones, in a cube of 8 × 3 × 3: one query,
    one head and one key at a time."""
    fusion = randomised(KINDS["folded, 3-D"])
    assert isinstance(fusion, Folded) and fusion.query is not None
    with torch.no_grad():
        for part in (fusion.key, fusion.query, fusion.null):
            for each in part.parameters() if isinstance(part, torch.nn.Module) else [part]:
                each.mul_(0.2)  # else one key takes all attention
    (vision, tokens), row = visual(1), side_tokens(8)
    found = fusion(vision, tokens, align([row], [keys(4)], rule))
    # By the index rule as the official release places key frames; by time, at the nearest step (0.25, 0.75 ... s).
    when, coarse = {"index": (0, 2, 4, 7), "time": (0, 2, 4, 6)}[rule], (0, 2)
    x = (row.x - fusion.standard.mean) * fusion.standard.gain
    own = {"index": [[0, 1], [2, 3], [4, 5], [6, 7]], "time": [[0], [1, 2], [3, 4], [5, 6, 7]]}[rule]
    null = fusion.null.view(2, 128)
    for frame in range(4):
        for s in (0, 5, 8):
            query = fusion.query(F.layer_norm(vision[0, frame, s], (10,))).view(2, 128)
            update = torch.zeros(12, dtype=torch.float64)
            for h in range(2):
                q = turned(query[h], (when[frame], s // 3, s % 3))
                places = [(step, i, j) for step in own[frame] for i in range(2) for j in range(2)]
                keyed = [fusion.key(x[place]).view(2, 128)[h] for place in places]
                turns = [turned(k, (t, coarse[i], coarse[j])) for k, (t, i, j) in zip(keyed, places, strict=True)]
                scores = torch.stack([*(q @ k for k in turns), query[h] @ null[h]]) / math.sqrt(128)
                values = torch.stack([fusion.value(x[place]).view(2, 128)[h] for place in places])
                read = scores.softmax(-1)[:-1] @ values
                update += fusion.scale * fusion.out.weight[:, h * 128 : (h + 1) * 128] @ read
            assert torch.allclose(found[0, frame, s], update, rtol=0, atol=2e-5)  # angles are float32, as released


@pytest.mark.parametrize("query", ["vision", "projected", "learnable"])
@pytest.mark.parametrize("valid", [True, False])
def test_both_orders_of_the_folded_product_agree_and_so_do_their_gradients(query, valid):
    fusion = randomised(FusionConfig(width=16, heads=2, query=query))
    assert isinstance(fusion, Folded)
    row = side_tokens(9)
    keep = row.valid.clone()
    keep[:5, 0] = valid
    side = align([SideTokens(row.x, row.times, row.spans, keep), None], [keys(4)] * 2, "time")
    results = []
    for folds in (True, False):
        fusion.folds = lambda s, n, folds=folds: folds
        update = fusion(*visual(2), side)
        gradients = torch.autograd.grad(update.square().sum(), list(fusion.parameters()))
        results.append([update, *gradients])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-9)


def test_the_cheaper_order_is_chosen():
    with torch.device("meta"):
        fusion = build_fusion(FusionConfig(), side_dim=8, vision_dim=1152, visual_dim=3584, tokens=196, frames=32)
    assert isinstance(fusion, Folded)
    assert fusion.folds(196, 5)  # 120 tokens of sound
    assert not fusion.folds(196, 577)  # 24 × 24 patches per frame


def test_interpolated_keys_and_values_equal_the_official_interpolation_of_side_tokens():
    """Few steps, index rule: equal to first interpolating the side tokens to one step per key frame."""
    fusion = randomised(KINDS["official, own values"])
    assert isinstance(fusion, Official)
    few = side_tokens(3)
    short = align([few], [keys(4)], "index")
    x = F.interpolate(few.x.permute(3, 0, 1, 2)[None], size=(4, 2, 2), mode="trilinear", align_corners=True)
    times = F.interpolate(few.times[None, None], size=4, mode="linear", align_corners=True)[0, 0]
    long = SideTokens(x[0].permute(1, 2, 3, 0), times, times[:, None].expand(4, 2), torch.ones(4, 2, 2).bool())
    vision, tokens = visual(1)
    want = fusion(vision, tokens, align([long], [keys(4)], "index"))
    assert torch.allclose(fusion(vision, tokens, short), want, rtol=0, atol=1e-9)


# invariants


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_fusion_changes_nothing_and_one_nonzero_weight_does(config, dtype):
    fusion = build_fusion(config, **DIMS).to(dtype)
    vision, tokens = (x.to(dtype) for x in visual(2))
    side = align([side_tokens(8), side_tokens(5)], [keys(4)] * 2, "time").to(dtype=dtype)
    update = fusion(vision, tokens, side)
    assert update.dtype == dtype
    assert torch.equal(update, torch.zeros_like(tokens))
    official = "output_norm.bias" if config.head == "norm" else "output_mapping.2.weight"
    with torch.no_grad():
        fusion.get_parameter("out.weight" if config.kind == "folded" else official).view(-1)[0] = 1
    assert fusion(vision, tokens, side).abs().max() > 0


@every_kind
@every_rule
@pytest.mark.parametrize("steps", [16, 11, 3])
def test_a_key_frame_reads_only_its_own_segment(config, rule, steps):
    fusion, (vision, tokens) = randomised(config), visual(1)
    row = side_tokens(steps)
    side = align([row], [keys(4)], rule)
    still = fusion(vision, tokens, side)
    for frame in range(4):
        own = side.index[0, frame][side.mask[0, frame]]
        if side.blend is not None:  # between two steps
            after, share = (x[0, frame, 0] for x in side.blend)
            own = torch.tensor([step for step, part in ((own[0], 1 - share), (after, share)) if part > 0])
        others, mine = row.x.clone(), row.x.clone()
        others[~torch.isin(torch.arange(steps), own)] += 1
        mine[own] += 1 + torch.arange(6)
        for moved, same in ((others, True), (mine, False)):
            update = fusion(
                vision, tokens, align([SideTokens(moved, row.times, row.spans, row.valid)], [keys(4)], rule)
            )
            assert torch.equal(update[:, frame], still[:, frame]) == same


@every_kind
@every_rule
def test_ragged_rows_equal_each_row_alone(config, rule):
    fusion = randomised(config)
    vision, tokens = visual(4)
    rows = [side_tokens(16, seed=1), side_tokens(3, seed=2), None, side_tokens(9, seed=3)]
    lengths = [4, 4, 4, 2]
    together = fusion(vision, tokens, align(rows, [keys(n) for n in lengths], rule))
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        alone = fusion(vision[i : i + 1, :n], tokens[i : i + 1, :n], align([row], [keys(n)], rule))
        assert torch.allclose(together[i, :n], alone[0], rtol=0, atol=1e-9)
        assert (alone.abs().max() > 0) == (row is not None)
    assert torch.equal(together[3, 2:], torch.zeros_like(together[3, 2:]))  # padded key frames


@every_kind
def test_a_key_frame_without_side_tokens_is_not_changed_and_has_finite_gradients(config):
    fusion, (vision, tokens) = randomised(config), visual(2)
    row = side_tokens(8)
    keep = row.valid.clone()
    keep[:2] = False
    x = row.x.clone()
    x[:2] = torch.nan
    side = align([SideTokens(x, row.times, row.spans, keep), None], [keys(4)] * 2, "index")
    update = fusion(vision, tokens, side)
    assert torch.equal(update[0, 0], torch.zeros_like(update[0, 0]))
    assert torch.equal(update[1], torch.zeros_like(update[1]))
    assert (update[0, 1:].abs().amax((1, 2)) > 0).all()
    update.square().sum().backward()
    gradients = [p.grad for p in fusion.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@every_kind
def test_a_batch_without_any_signal_is_not_changed(config):
    vision, tokens = visual(2)
    update = randomised(config)(vision, tokens, align([None, None], [keys(4)] * 2, "time"))
    assert torch.equal(update, torch.zeros_like(tokens))


@every_kind
def test_the_layout_affects_only_the_cost(config):
    fusion, (vision, tokens) = randomised(config), visual(1)
    cases: list[tuple[int, Rule]] = [(8, "index"), (11, "index"), (3, "time")]
    for steps, rule in cases:
        side = align([side_tokens(steps)], [keys(4)], rule)
        careful = replace(side, layout="ragged", valid=None)
        assert torch.allclose(fusion(vision, tokens, side), fusion(vision, tokens, careful), rtol=0, atol=1e-9)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operator made inside its block."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.size = max(
            [
                self.size,
                *(each.numel() for each in (made if isinstance(made, tuple) else (made,)) if isinstance(each, Tensor)),
            ]
        )
        return made


@every_kind
@pytest.mark.parametrize("holes", [False, True])
def test_ragged_segments_are_read_as_padded_ones_are_and_cost_what_they_hold(config, holes, monkeypatch):
    """A sensor at 200 Hz, most of which belongs to the segment of the last key frame."""
    fusion, (vision, tokens), side = randomised(config), visual(1), SideTokens.regular(random(8400, 6), rate=200)
    side = replace(side, valid=side.valid & (torch.arange(8400) % 7 > 0)[:, None, None]) if holes else side
    ragged = align([side], [torch.tensor([0.0, 0.1, 0.2, 2.0])], "time")
    tokens.requires_grad_()
    with Largest() as grouped:
        found = fusion(vision, tokens, ragged)
    monkeypatch.setattr(segments, "PADDED", 1 << 30)
    with Largest() as padded:
        expected = fusion(vision, tokens, ragged)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    assert 2 * grouped.size < padded.size
    assert (found.sum() - expected.sum()).abs() < 1e-6 and found.requires_grad == expected.requires_grad


def test_steps_in_time_come_from_times_with_the_time_rule():
    """Twenty seconds of sound beside key frames over ten, or a few steps beside many key frames."""
    seconds = torch.tensor([0.0, 2.0, 5.0, 10.0])
    query_t, key_t = cube_places(side := align([SideTokens.regular(random(20, 6), rate=1)], [seconds], "time"))
    assert query_t.tolist() == [[0, 1, 4, 9]], "the steps nearest to them, centred at i + 0.5; the earlier of two"
    assert torch.equal(key_t, side.index)
    query_t, key_t = cube_places(align([SideTokens.regular(random(2, 6), rate=0.2)], [seconds], "time"))
    assert query_t.tolist() == [[0, 1, 2, 3]] and key_t.flatten().tolist() == [1, 1, 1, 2]
    index = cube_places(align([SideTokens.regular(random(20, 6), rate=1)], [seconds], "index"))[0]
    assert index.tolist() == [[0, 6, 12, 19]], "as in the official release"


class Calls(TorchDispatchMode):
    """Counts calls of torch operators inside its block, and those of them that are no views."""

    count = computing = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given, new = (
            {each.untyped_storage().data_ptr() for each in tree_leaves(value) if isinstance(each, Tensor)}
            for value in ((args, kwargs), made)
        )
        self.count += 1
        self.computing += func._schema.is_mutable or bool(new - given)
        return made


@every_rule
@pytest.mark.parametrize("steps", [(16,), (11,), (3,), (240, 9, 3), (11,) * 9])
@pytest.mark.parametrize("kind", ["folded", "official"])
def test_at_most_a_hundred_operators_run_at_any_length_and_batch(kind, steps, rule):
    fusion, (vision, tokens) = randomised(KINDS[kind]), visual(len(steps) + 1)
    side = align([*(side_tokens(n) for n in steps), None], [keys(4)] * (len(steps) + 1), rule)
    with torch.no_grad(), Calls() as calls:
        fusion(vision, tokens, side)
    assert 0 < calls.count <= 100


@every_rule
@pytest.mark.parametrize("steps", [16, 11, 3, 240])
@pytest.mark.parametrize("kind", ["folded", "official"])
def test_fewer_than_forty_operators_of_a_row_compute(kind, steps, rule):
    """Views cost no launch on a GPU."""
    fusion, (vision, tokens) = randomised(KINDS[kind]), visual(1)
    side = align([side_tokens(steps)], [keys(4)], rule)
    with torch.no_grad(), Calls() as calls:
        fusion(vision, tokens, side)
    assert 10 < calls.computing < 40 and calls.computing < calls.count


# properties of new recipes


@pytest.mark.parametrize("config", [KINDS["folded"], KINDS["official, own values"]])
def test_order_within_a_segment_matters_with_time_rope_only(config):
    vision, tokens = visual(1)
    row = side_tokens(8, grid=1)
    swapped = row.x.clone()
    swapped[[2, 3]] = row.x[[3, 2]]
    for rope, matters in (("time", True), ("off", False)):
        fusion = randomised(config.model_copy(update={"rope": rope}))
        first, second = (
            fusion(vision, tokens, align([SideTokens(x, row.times, row.spans, row.valid)], [keys(4)], "index"))
            for x in (row.x, swapped)
        )
        assert torch.allclose(first, second, rtol=0, atol=1e-9) != matters


def test_only_time_since_the_key_frame_matters_even_after_an_hour():
    fusion = randomised(KINDS["folded"])
    vision, tokens = visual(1)
    row = side_tokens(8)
    late = SideTokens(row.x, row.times + 3600, row.spans + 3600, row.valid)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.bfloat16, 0)):
        fusion = fusion.to(dtype)
        early_update = fusion(vision, tokens, align([row], [keys(4)], "time"))
        late_update = fusion(vision, tokens, align([late], [keys(4).double() + 3600], "time"))
        assert torch.allclose(early_update, late_update, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_constant_in_the_signal_costs_no_precision(dtype):
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * 700 + 7e4
    standard = Standardise(6)
    standard.fit(x)
    want = standard(x)
    assert torch.allclose(want.std(0), torch.ones(6), atol=1e-3) and standard.mean.abs().min() > 6e4
    assert torch.equal(standard.to(dtype)(x), want) and standard.mean.dtype == torch.float32


def test_calibration_sets_the_scale_of_a_first_step_and_is_saved():
    fusion = build_fusion(KINDS["folded"], **DIMS)
    before = set(fusion.state_dict())
    fusion.calibrate(torch.full((2, 3, 12), 4.0, dtype=torch.bfloat16), random(50, 6).float())
    assert fusion.state_dict()["scale"] == 4 and set(fusion.state_dict()) == before
    assert not {"scale", "standard.mean", "standard.gain"} & {name for name, _ in fusion.named_parameters()}


def test_calibrated_side_tokens_have_mean_zero_and_deviation_one_but_dead_channels_stay_dead():
    fusion = build_fusion(KINDS["folded"], **DIMS).double()
    assert isinstance(fusion, Folded)
    x = random(500, 6) * torch.tensor([1.0, 2, 3, 4, 5, 0]) + 7
    fusion.calibrate(random(3, 12), x)
    fitted = fusion.standard(x)
    assert torch.allclose(fitted.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(fitted.std(0)[:5], torch.ones(5, dtype=torch.float64), atol=1e-6)
    assert fitted[:, 5].abs().max() < 1e-6


@pytest.mark.parametrize("count", [0, 1])
def test_side_tokens_too_few_to_measure_are_not_standardised(count):
    fusion = build_fusion(KINDS["folded"], **DIMS)
    assert isinstance(fusion, Folded)
    fusion.calibrate(random(3, 12), random(count, 6))
    assert torch.equal(fusion.standard.gain, torch.ones(6)) and not fusion.standard.mean.any()


@pytest.mark.parametrize("combine", ["interleave", "prefix"])
def test_concatenation_returns_projected_tokens_and_their_mask(combine):
    config = FusionConfig(width=16, heads=2, combine=combine)
    beside = build_fusion(config, **DIMS).double()
    assert isinstance(beside, Concatenation)
    beside.calibrate(visual(1)[1], random(50, 6) + 3)
    rows = [side_tokens(8), None, side_tokens(5)]
    side = align(rows, [keys(4)] * 3, "time")
    out, mask = beside(side)
    assert out.shape[-1] == 12 and mask.shape == out.shape[:-1]
    borrowed = 4 if combine == "interleave" else 0  # the last key frame of the third clip has no step of its own
    assert mask.flatten(1).sum(1).tolist() == [32, 0, 20 + borrowed]
    x = rows[2].x.flatten(0, 2)
    want = beside.scale * beside.project((x - beside.standard.mean) * beside.standard.gain)
    assert torch.allclose(out[2][mask[2]][:20], want, rtol=0, atol=1e-9)


def test_unsupported_configurations_and_inputs_are_refused():
    for kind in ("folded", "official"):
        with pytest.raises(RecipeError, match="128 channels per head, got 64/2"):
            build_fusion(FusionConfig.model_validate({"kind": kind, "width": 64, "heads": 2, "rope": "3d"}), **DIMS)
    side = align([side_tokens(8)], [keys(4)], "time")
    with pytest.raises(BaseModelError, match="query: projected"):
        randomised(KINDS["folded"])(None, visual(1)[1], side)
    with pytest.raises(SignalError, match="at most 4 key frames"):
        randomised(KINDS["folded, learnable query"])(*visual(1, t=5), align([side_tokens(8)], [keys(5)], "time"))
    oblong = SideTokens.regular(random(8, 1, 2, 6), rate=2)
    for kind in ("folded, 3-D", "official, 3-D"):
        with pytest.raises(SignalError, match="square grids, got 1 × 2"):
            randomised(KINDS[kind])(*visual(1), align([oblong], [keys(4)], "time"))


# points


@pytest.mark.parametrize("name", ["folded", "official", "official, own values", "interleave"])
def test_points_act_only_through_the_mlp_that_is_added_to_features(name):
    config = KINDS.get(name, FusionConfig(width=16, heads=2, combine="interleave"))
    torch.manual_seed(0)
    with_points = build_fusion(config, **DIMS | {"side_dim": 9, "points": True}).double()
    for parameter in with_points.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with_points.calibrate(random(3, 12), random(50, 9) * 2 + 1)
    plain = build_fusion(config, **DIMS).double()
    state = with_points.state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if not key.startswith("place.")})
    side = align([SideTokens.regular(random(8, 2, 2, 9), rate=2)], [keys(4)], "time")
    first, norm, relu, last = (state.get(f"place.mlp.{i}.weight") for i in range(4))
    assert first is not None and norm is not None and last is not None and relu is None
    p = (side.x[..., 6:] - state["place.standard.mean"]) * state["place.standard.gain"]
    inner = p @ first.T + state["place.mlp.0.bias"]
    inner = F.layer_norm(inner, (6,), norm, state["place.mlp.1.bias"]).relu()
    x = side.x[..., :6]
    if isinstance(plain, Official):
        assert plain.standard is None
    else:
        assert plain.standard is not None and with_points.standard is not None
        x = with_points.standard(x)
        plain.standard.mean.zero_()
        plain.standard.gain.fill_(1)

    def output(fusion: Fusion | Concatenation, side: SideBatch) -> Tensor:
        return fusion(side)[0] if isinstance(fusion, Concatenation) else fusion(*visual(1), side)

    added = replace(side, x=x + inner @ last.T + state["place.mlp.3.bias"])
    want = output(plain, added)
    assert torch.allclose(output(with_points, side), want, rtol=0, atol=1e-6)
    assert not torch.allclose(output(plain, replace(side, x=x)), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("config", [KINDS["folded"], KINDS["official"]], ids=["folded", "official"])
def test_a_room_far_from_its_origin_is_the_same_room(config):
    """Even in bfloat16, whose resolution at 1000 m is 4 m."""
    outputs = []
    for away in (0.0, 1000.0):
        torch.manual_seed(0)
        fusion = build_fusion(config, **DIMS | {"side_dim": 9, "points": True})
        assert isinstance(fusion, Fusion)
        for parameter in fusion.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        x = torch.cat([random(8, 2, 2, 6), (random(8, 2, 2, 3, seed=1) * 64).round() / 64 + away], -1).float()
        fusion.calibrate(random(3, 12), x.flatten(0, 2))
        side = align([SideTokens.regular(x, rate=2)], [keys(4)], "time")
        vision, tokens = (each.bfloat16() for each in visual(1))
        outputs.append(fusion.bfloat16()(vision, tokens, side))
    assert torch.allclose(outputs[0].float(), outputs[1].float(), rtol=0.02, atol=0.02 * outputs[0].abs().max().item())


def test_features_and_points_are_calibrated_separately():
    fusion = build_fusion(KINDS["folded"], **DIMS | {"side_dim": 9, "points": True})
    x = random(500, 9) * torch.tensor([2.0] * 6 + [5.0] * 3) + torch.tensor([1.0] * 6 + [-7.0] * 3)
    fusion.calibrate(random(3, 12), x)
    assert fusion.standard is not None and fusion.place is not None
    for standard, mean, deviation in ((fusion.standard, 1, 2), (fusion.place.standard, -7, 5)):
        assert torch.allclose(standard.mean, torch.tensor(mean).float(), atol=1)
        assert torch.allclose(1 / standard.gain, torch.tensor(deviation).float(), atol=0.5)


def test_points_alone_are_refused():
    with pytest.raises(RecipeError, match="side tokens of 3 channels with a point of 3 have no features"):
        build_fusion(KINDS["folded"], **DIMS | {"side_dim": 3, "points": True})
