"""How fast is a fusion at the sizes of a 7B base on CPU, compared with a literal loop and one matrix product?

    python benchmarks/fusion_speed.py            # all sizes, writes benchmarks/results/fusion_speed.json
    python benchmarks/fusion_speed.py --small    # batch 1 and three rounds, writes nothing

Every round times the fusion, the loop and the matrix product in turn, and only ratios within a round count, because
other load on the machine slows all three. The loop computes the same per clip and key frame, in the same order of
products; the matrix product has as many FLOPs. `operators` counts calls of torch operators, `computing` those that make
or change data, which a GPU launches: the others are views.

A folded fusion needs so few FLOPs that writing its update (90 MB per clip, fresh pages) takes longer than computing it,
so its rate is given twice: in the FLOPs it executes (`rate_of_product`), and in those of its equations as written, with
query and output projections on every visual token (`rate_as_written`).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from study import Study
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pave.config import FusionConfig
from pave.evaluation.flops import fusion_flops
from pave.fusion.align import align
from pave.fusion.cross_attention import Folded, build_fusion
from pave.fusion.rope import LONGEST, SHORTEST
from pave.sidechannel import SideBatch, SideTokens

FRAMES, TOKENS, VISION, VISUAL, SIDE = 32, 196, 1152, 3584, 1024  # LLaVA-OneVision 7B, encoders of 1024 channels
SIZES = {"audio 120x1x1": (120, 1), "video 240x2x2": (240, 2), "3-D 32x24x24": (32, 24)}
KINDS = {
    "official": FusionConfig(kind="official", values="shared", rope="off", head="norm"),
    "folded": FusionConfig(kind="folded"),
}


class Calls(TorchDispatchMode):
    """Counts calls of torch operators inside its block, and those of them that make or change data."""

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


def side_batch(steps: int, grid: int, batch: int) -> SideBatch:
    """Tokens of a 60 s clip, split by index as in the PAVE paper's experiments."""
    keys = torch.linspace(0, 60, FRAMES)
    rows = [SideTokens.regular(torch.randn(steps, grid, grid, SIDE), rate=steps / 60) for _ in range(batch)]
    return align(rows, [keys] * batch, "index")


def official_loop(fusion: Any, vision: Tensor, side: SideBatch) -> Tensor:
    """The equations of the official fusion, one clip and one key frame at a time."""
    heads, rows = fusion.heads, []
    for clip in range(len(vision)):
        for frame in range(FRAMES):
            steps = side.index[clip, frame][side.mask[clip, frame]]
            z = fusion.query_input_mapping(vision[clip, frame])
            memory = fusion.input_mapping(side.x[clip, steps].flatten(0, 2))
            for layer in fusion.cross_attn_layers:
                q = layer.attn.q_linear(z).unflatten(-1, (heads, -1)).transpose(0, 1)
                k = layer.attn.k_linear(memory).unflatten(-1, (heads, -1)).transpose(0, 1)
                read = F.scaled_dot_product_attention(q[None], k[None], k[None])[0]
                z = z + read.transpose(0, 1).flatten(1)
                z = z + layer.ffn(z)
            rows.append(fusion.output_norm(fusion.output_mapping(z)))
    return torch.stack(rows).unflatten(0, vision.shape[:2])


def folded_loop(fusion: Any, vision: Tensor, side: SideBatch) -> Tensor:
    """The equations of the folded fusion, one clip and one key frame at a time."""
    heads, e, rows = fusion.heads, fusion.config.width // fusion.heads, []
    periods = torch.logspace(math.log2(SHORTEST), math.log2(LONGEST), e // 2, base=2, dtype=torch.float64)
    to_q = fusion.query.weight.unflatten(0, (heads, e))
    to_d = fusion.out.weight.T.unflatten(0, (heads, e))
    for clip in range(len(vision)):
        for frame in range(FRAMES):
            steps = side.index[clip, frame][side.mask[clip, frame]]
            x = side.x[clip, steps]
            since = (side.times[clip, steps] - side.key_times[clip, frame])[:, None, None] * (2 * math.pi / periods)
            cos, sin = (f.float().repeat_interleave(x.shape[1] ** 2, 0) for f in (since.cos(), since.sin()))
            x = fusion.standard(x.flatten(0, 2))
            one, two = fusion.key(x).unflatten(-1, (heads, e)).chunk(2, dim=-1)
            k = torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1)
            k = torch.cat([k, fusion.null.view(1, heads, e)]).transpose(0, 1)
            v = F.pad(fusion.value(x).unflatten(-1, (heads, e)).transpose(0, 1), (0, 0, 0, 1)) * fusion.scale
            y = F.layer_norm(vision[clip, frame], (VISION,))
            if fusion.folds(len(y), k.shape[1]):
                k = k / math.sqrt(e)
                level = (k @ fusion.query.bias.view(heads, e, 1)).flatten()
                scores = torch.addmm(level, y, (k @ to_q).flatten(0, 1).T)
                rows.append(scores.unflatten(-1, (heads, -1)).softmax(-1).flatten(1) @ (v @ to_d).flatten(0, 1))
            else:
                q = fusion.query(y).unflatten(-1, (heads, e)).transpose(0, 1)
                read = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
                rows.append(fusion.out(read.transpose(0, 1).flatten(1)))
    return torch.stack(rows).unflatten(0, vision.shape[:2])


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(kind: str, size: str, batch: int, rounds: int) -> dict[str, float | int | str]:
    """One line of the table."""
    torch.manual_seed(0)
    fusion = build_fusion(
        KINDS[kind], side_dim=SIDE, vision_dim=VISION, visual_dim=VISUAL, tokens=TOKENS, frames=FRAMES
    ).eval()
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    side = side_batch(*SIZES[size], batch)
    vision, tokens = torch.randn(batch, FRAMES, TOKENS, VISION), torch.zeros(batch, FRAMES, TOKENS, VISUAL)
    shape = batch * FRAMES, TOKENS, (n := side.x[..., 0].numel()), n / (batch * FRAMES)
    flops = written = fusion_flops(fusion, *shape)
    loop = partial(official_loop, fusion, vision, side)
    if isinstance(fusion, Folded):
        written = fusion_flops(fusion, *shape, paper=True)
        loop = partial(folded_loop, fusion, vision, side)
    left = torch.randn(batch * FRAMES * TOKENS, VISION)
    right = torch.randn(VISION, max(1, round(flops / (2 * left.numel()))))
    ways = {"ours": lambda: fusion(vision, tokens, side), "loop": loop, "product": lambda: left @ right}
    with Calls() as calls:
        ours = fusion(vision, tokens, side)
    difference = (ours - loop()).abs().max() / ours.abs().max()
    if difference > 1e-4:
        raise SystemExit(f"{kind}, {size}: the loop computes something else (relative difference {difference:.1e})")
    del ours
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            took[name].append(seconds(call))
    ratios = {
        name: statistics.median(a / b for a, b in zip(took["ours"], took[name], strict=True))
        for name in ("loop", "product")
    }
    return {
        "gflops": round(flops / 1e9, 2),
        "gflops_as_written": round(written / 1e9, 2),
        "operators": calls.count,
        "computing": calls.computing,
        "seconds_median": round(statistics.median(took["ours"]), 4),
        "time_of_loop": round(ratios["loop"], 3),  # below 1: faster than the loop
        "rate_of_product": round(1 / ratios["product"], 3),  # 1: as fast as one matrix product of as many FLOPs
        "rate_as_written": round(written / flops / ratios["product"], 3),
        "relative_difference_to_loop": float(f"{float(difference):.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time both kinds of fusion at the sizes of a 7B base.")
    parser.add_argument("--small", action="store_true", help="batch 1 and three rounds; writes nothing")
    parser.add_argument("--rounds", metavar="N", type=int, default=11, help="interleaved repeats; default: %(default)s")
    arguments = parser.parse_args()
    batches, rounds = ((1,), 3) if arguments.small else ((1, 4), arguments.rounds)
    study = Study("fusion_speed")
    for kind, size, batch in product(KINDS, SIZES, batches):
        key = f"{kind}, {size}, batch {batch}"
        if arguments.small or key not in study:
            with torch.no_grad():
                line = measure(kind, size, batch, rounds)
            if not arguments.small:
                study.add(key, {"rounds": rounds, **line})
        else:
            line = study.runs[key]
        print(f"{key}:", *(f"{name}={value}" for name, value in line.items()), flush=True)


if __name__ == "__main__":
    main()
