"""Copies of a network: what `copy`, `pickle` and `torch.save` make of modules whose hooks belong to this process.

In: modules. Out: such modules without these hooks: LoRAs of applied patches, and those with which transformers captures
hidden states, which a copy installs anew when it needs them. Knows nothing of patches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

CAPTURES = "<locals>.output_capturing_hook"  # end of a name in transformers: a function in a function has no pickle
INSTALLED = "_output_capturing_hooks_installed"  # where transformers remembers that a model has them
OURS: set[Callable[..., Any]] = set()  # functions of hooks that stay behind, as partials


def guard(module: nn.Module) -> None:
    """Copies of a module leave hooks of this process behind."""
    vars(module)["__reduce_ex__"] = partial(_reduced, module)


def release(module: nn.Module) -> None:
    """The end of `guard`, if no such hook is left."""
    if not any(map(stays_behind, module._forward_hooks.values())) and INSTALLED not in vars(module):
        vars(module).pop("__reduce_ex__", None)


def guard_captures(network: nn.Module) -> None:
    """`guard` every module in which transformers captures hidden states."""
    for module in network.modules():
        if INSTALLED in vars(module) or any(map(_captures, module._forward_hooks.values())):
            guard(module)


def stays_behind(hook: object) -> bool:
    """Whether a hook belongs to this process."""
    return (isinstance(hook, partial) and hook.func in OURS) or _captures(hook)


def _captures(hook: object) -> bool:
    return str(getattr(hook, "__qualname__", "")).endswith(CAPTURES)


def _reduced(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """What copy and pickle make a module from."""
    reduced: Any = type(module).__reduce_ex__(module, protocol)
    make, arguments, state, *rest = reduced
    state = {name: value for name, value in state.items() if name not in ("__reduce_ex__", INSTALLED)}
    hooks = module._forward_hooks.items()
    state["_forward_hooks"] = OrderedDict((key, hook) for key, hook in hooks if not stays_behind(hook))
    return make, arguments, state, *rest
