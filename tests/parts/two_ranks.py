"""One of two processes that train a patch together over gloo; rank 1 has a batch in which no row has the sense.

Out: JSON on stdout: gradients and losses under DDP; under FSDP2 the difference of the exported patch from DDP's.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from families import make_base
from small import awaken, make_clip, make_config, make_tokenizer
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import pave
from pave.model.patched import PatchedModel


def train(parallel: Any, rank: int) -> tuple[Any, list[float]]:
    """Two steps; the patch afterwards, and the losses."""
    model = PatchedModel(make_base(make_tokenizer()))
    torch.manual_seed(0)
    model.attach("ears", make_config(model.host))
    awaken(model, "ears")
    module = pave.patch_module(model, "ears")
    inputs, labels = module.batch([make_clip(rank, sound=rank == 0)], ["What do you hear?"], ["a beep"])
    wrapped = parallel(module)
    optimiser, losses = torch.optim.SGD(wrapped.parameters(), lr=1e-2), []
    for _ in range(2):
        loss = wrapped(inputs, labels).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(each.grad is not None for each in wrapped.parameters())
        optimiser.step()
        losses.append(loss.item())
    return model.export("ears"), losses


def main(rank: int, store: str) -> None:
    limit = timedelta(seconds=240)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    first, losses = train(DistributedDataParallel, rank)
    second, others = train(fully_shard, rank)
    off = max(float((first.tensors[name] - value).abs().max()) for name, value in second.tensors.items())
    total = sum(float(value.double().sum()) for value in first.tensors.values())
    print(json.dumps({"losses": losses, "others": others, "off": off, "total": total}))
    dist.destroy_process_group()
