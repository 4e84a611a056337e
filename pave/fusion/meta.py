"""Modules without values, for weights that come from a file: no random numbers are drawn, and no time is lost.

In: a function that builds a module. Out: one that gives a module of the same shape on the meta device, a new one at
every call. It is built once per shape; to copy it takes a tenth of the time. Knows nothing of patches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
Module = TypeVar("Module", bound=nn.Module)


class Blank(Generic[P, Module]):
    """A function that builds a module, on the meta device; its arguments must be hashable."""

    def __init__(self, build: Callable[P, Module]) -> None:
        self._build = build
        self._first = lru_cache(maxsize=16)(self._on_meta)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Module:
        """A module of one's own."""
        return _copy(self._first(*args, **kwargs))

    def outline(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, torch.Tensor]:
        """Names and shapes of its tensors, which costs no module."""
        return self._first(*args, **kwargs).state_dict()

    def _on_meta(self, *args: Any, **kwargs: Any) -> Module:
        with torch.device("meta"):
            return self._build(*args, **kwargs)


def _copy(module: Module) -> Module:
    """The same tree of modules: what hangs on it, or takes the place of its parameters, leaves `module` alone."""
    fresh = object.__new__(type(module))
    fresh.__dict__ = {
        name: value.copy() if isinstance(value, dict | set) else value for name, value in vars(module).items()
    }
    for name, child in module.named_children():
        fresh._modules[name] = _copy(child)
    return fresh
