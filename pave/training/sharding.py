"""Divide the decoder of a frozen base among processes, so that each stores a part of its weights (FSDP2).

Each layer is gathered when it computes, in the forward and in the backward pass, and its parts are kept afterwards. So
all processes have to run the decoder equally often, in the same order: they do, since they look at the same held-out
clips and ask the same questions, and `pave.training.plan` gives each as many passes. What is outside the decoder's
layers, and the patch, every process has whole.

A base comes into memory whole, in the dtype that it is to have, before it is divided. So the processes of a machine do
this one after the other: it has room for one whole base and the parts of the others.

In: how to load a base on the CPU, the same in each process. Out: that base, on this process's device. Knows nothing of
patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from pave.base import Host
from pave.errors import BaseModelError
from pave.model.patched import PatchedModel
from pave.training.ranks import Ranks


def sharded(load: Callable[[], PatchedModel], ranks: Ranks) -> PatchedModel:
    """The loaded model, its layers divided over the processes of this machine; over all if each machine has one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    among = ranks.here if ranks.here > 1 and ranks.count % ranks.here == 0 else ranks.count
    mesh = init_device_mesh(device, (ranks.count // among, among), mesh_dim_names=("copies", "parts"))["parts"]

    def divided() -> PatchedModel:
        model = load()
        shard(model.host, mesh)
        return model

    return ranks.one_by_one(divided)


def shard(host: Host, mesh: DeviceMesh) -> None:
    """Divide the layers of a base."""
    host.fingerprint()  # of whole weights
    decoder: Any = host.language_model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        cause = f"{host.model_type}: its decoder has no list of layers that could be divided"
        raise BaseModelError(f"{cause}; train without train.shard")
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    whole = {each for name, each in decoder.named_parameters() if not name.startswith("layers.")}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)  # gathers the next layer while one computes
    decoder.register_forward_pre_hook(_always_backward, with_kwargs=True)
    nn.Module.to(host.model, mesh.device_type)


def _always_backward(decoder: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Let the backward pass run through all layers, also where no row has the sense: another process may have one, and
    gathers the layers with this one."""
    x = options.get("inputs_embeds")
    if torch.is_grad_enabled() and x is not None and not x.requires_grad:
        return inputs, {**options, "inputs_embeds": x.detach().requires_grad_()}
    return None
