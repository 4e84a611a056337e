"""Who reads what: the weights are those of the attention that is computed, for every kind and every alignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from test_cross_attention import keys, random, randomised, side_tokens, visual
from torch import Tensor

from pave.config import FusionConfig, ResamplerConfig
from pave.fusion import segments
from pave.fusion.align import align
from pave.fusion.attention import attention
from pave.fusion.qformer import Resampler, build_resampler
from pave.sidechannel import Rule, SideBatch, SideTokens

ROWS: list[tuple[Rule, int]] = [("time", 7), ("index", 9), ("index", 2)]  # ragged; ragged; interpolated


def sides(rule: Rule, steps: int) -> SideBatch:
    side = side_tokens(steps)
    side.valid[1, 0, 1] = False
    return align([side], [keys(4)], rule).to(dtype=torch.float64)


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_weights_are_those_of_the_fused_kernel(mask: str) -> None:
    q, k = random(3, 2, 5, 4), random(3, 2, 6, 4, seed=1)
    keep = random(3, 1, 1, 6, seed=2) > -0.5
    masks = {"none": None, "bool": keep, "float": torch.zeros(keep.shape).double().masked_fill(~keep, -torch.inf)}
    eye = torch.eye(6, dtype=torch.float64).expand(3, 2, 6, 6)
    want = F.scaled_dot_product_attention(q, k, eye, attn_mask=masks[mask]).mean(1)
    assert torch.allclose(attention(q, k, masks[mask]), want)


@pytest.mark.parametrize(("rule", "steps"), ROWS)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rope", ["time", "3d"])
def test_a_folded_update_is_the_weighted_sum_of_its_values(rule, steps, split, rope, monkeypatch):
    """With one head, the mean update of a key frame is linear in the mean weights."""
    monkeypatch.setattr(segments, "PADDED", 0 if split else 1 << 14)
    fusion: Any = randomised(FusionConfig(width=128, heads=1, rope=rope))
    side, (vision, tokens) = sides(rule, steps), visual(1)
    weights = fusion.weights(vision, tokens, side)
    values = fusion.value(fusion.read(side, torch.float64)) * fusion.scale
    want = fusion.out(weights.double().flatten(1) @ values)
    assert torch.allclose(fusion(vision, tokens, side)[0].mean(1), want, rtol=1e-4, atol=1e-5)
    assert (weights.sum((1, 2, 3)) < 1).all() and (weights >= 0).all()


@pytest.mark.parametrize(("rule", "steps"), ROWS)
def test_what_an_official_layer_adds_is_the_weighted_sum_of_its_values(rule, steps):
    fusion: Any = randomised(FusionConfig(kind="official", width=16, heads=1, layers=1))
    side, (vision, tokens) = sides(rule, steps), visual(1)
    before, after = [], []
    fusion.query_input_mapping.register_forward_hook(lambda module, inputs, output: before.append(output))
    fusion.cross_attn_layers[0].ffn[0].register_forward_pre_hook(lambda module, inputs: after.append(inputs[0]))
    weights = fusion.weights(vision, tokens, side)
    layer = fusion.cross_attn_layers[0].attn
    values = (layer.v_linear or layer.k_linear)(fusion.input_mapping(fusion.read(side, torch.float64)))
    added = rearrange(after[0] - before[0], "(t s) w -> t s w", t=4).mean(1)
    assert torch.allclose(added, weights.double().flatten(1) @ values, rtol=1e-4, atol=1e-5)
    assert torch.allclose(weights.sum((1, 2, 3)), torch.ones(4))


RESAMPLED = {
    "queries": {"queries": 3},
    "future": {"queries": 3, "causal_direction": "future", "stride": 2},
    "finer": {"queries": 4, "finer": (1, 2)},
    "states": {"readout": "states", "queries": 32, "stride": 2},
}


@pytest.mark.parametrize("way", RESAMPLED)
def test_weights_through_a_resampler_are_on_the_steps_that_its_tokens_depend_on(way: str) -> None:
    options = {"slots": 2, "window": 4, "width": 16, "heads": 2} | RESAMPLED[way]
    torch.manual_seed(0)
    resampler: Resampler = build_resampler(ResamplerConfig.model_validate(options), "add", (("ears", 6),)).double()
    tokens = SideTokens.regular(random(37, 6), rate=4)  # two a step; the last window is longer than the clip
    side = align([tokens], [keys(9)], "time").to(dtype=torch.float64)
    side.x.requires_grad_(True)
    made, _ = resampler({"ears": side})
    read = made.mask.new_zeros(9, made.x.shape[1]).scatter_(1, made.index[0], made.mask[0])[..., None]
    read = read.expand(-1, -1, made.x.shape[2]).double()
    weights, times = resampler.weights({"ears": side}, read)
    assert torch.allclose(weights[:-1].sum(1), read[:-1].sum((1, 2)))  # what the last reads is in part beyond the end
    for i in range(9):
        weight = torch.randn(made.x.shape[1:], dtype=torch.float64) * read[i, :, :, None, None]
        (slope,) = torch.autograd.grad((made.x[0] * weight).sum(), side.x, retain_graph=True)
        touched = side.times[0][slope[0].flatten(1).abs().sum(1) > 0]
        assert _steps(touched, times) == _steps(times[weights[i] > 0], times)


def _steps(seconds: Tensor, times: Tensor) -> set[int]:
    return {int((times - second).abs().argmin()) for second in seconds}
