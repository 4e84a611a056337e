"""LoRA of the language model as forward hooks: no wrapper, so names, classes and weights of the base never change.

In: PEFT's own words (`LoraConfig`) and a language model. Out: low-rank pairs, named by module path, that add
B·A·x·scaling to the output of their Linear layer, for the rows of a batch that ask for it. PEFT does the validation,
the choice of layers and the initial values, and its file format is read and written; its wrapper modules are not used,
because they change the base's names and stay behind when an adapter is deleted. Knows nothing of patches and files.

b rows that a call asked for, B rows inside the base (b, or b times the beams), l tokens, r rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from pave.config import LoraConfig
from pave.errors import RecipeError


@dataclass(frozen=True)
class Gate:
    """How much each row of one call wants of one LoRA. A row of weight 0 keeps its exact output."""

    weights: Tensor  # float32 (b,)
    every: bool  # no row has weight 0: nothing to select

    @classmethod
    def of(cls, weights: Tensor) -> Gate:
        return cls(weights.float(), bool((weights != 0).all()))


# Which LoRAs run in this thread and call. Hooks that find themselves absent do nothing: a direct call of the base is
# the base, whatever is attached.
_active: ContextVar[Mapping[Lora, Gate]] = ContextVar("pave_lora", default={})  # noqa: B039 (never mutated)


class Pair(nn.Module):
    """One layer's A (r in) and B (out r). Compute follows the layer's dtype: weights kept in float32 for training are
    cast at every call, those of a loaded patch have been cast once."""

    def __init__(self, config: LoraConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(config.r, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, config.r))
        self.scaling, self.dropout = config.scaling, config.lora_dropout
        if not self.A.is_meta:  # else it waits for the values of a file
            nn.init.kaiming_uniform_(self.A, a=5**0.5)  # PEFT's own start: A as nn.Linear, B zero

    def forward(self, x: Tensor, out: Tensor, gate: Gate) -> Tensor:
        """`out` (B l out) with the low-rank update of x (B l in) on the rows that the gate opens."""
        weights = gate.weights.to(x.device).repeat_interleave(len(x) // len(gate.weights))
        weights = weights.view(-1, *[1] * (x.dim() - 1))
        inner = F.linear(F.dropout(x, self.dropout, self.training), self.A.to(x))
        # The factor meets the r inner channels, in float32, the same way for every mixture of rows (law 6).
        update = F.linear((inner * (weights * self.scaling)).to(x.dtype), self.B.to(x))
        return out + update if gate.every else torch.where(weights != 0, out + update, out)


class Lora(nn.Module):
    """All pairs of one patch; a state_dict key is `<module path inside the language model>.{A,B}`."""

    def __init__(self, config: LoraConfig, layers: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.config = config
        for path, (inputs, outputs) in layers.items():
            *parents, last = path.split(".")
            place: nn.Module = self
            for name in parents:
                if name not in place._modules:
                    place.add_module(name, nn.Module())
                place = place._modules[name]  # type: ignore[assignment]
            place.add_module(last, Pair(config, inputs, outputs))

    def pairs(self) -> dict[str, Pair]:
        """Module path -> pair."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Pair)}

    def enter(self, language_model: nn.Module) -> Callable[[], None]:
        """Hang one hook on every target layer; the returned function takes them all off again."""
        handles = [
            language_model.get_submodule(path).register_forward_hook(partial(self._hook, pair))
            for path, pair in self.pairs().items()
        ]

        def leave() -> None:
            for handle in handles:
                handle.remove()

        return leave

    def _hook(self, pair: Pair, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        gate = _active.get().get(self)
        return None if gate is None else pair(inputs[0], output, gate)


@contextmanager
def running(gates: Mapping[Lora, Gate]) -> Iterator[None]:
    """Within the block, and in this context only, these LoRAs run with these gates; all others are off."""
    token = _active.set(dict(gates))
    try:
        yield
    finally:
        _active.reset(token)


def recompute_context() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch.utils.checkpoint: the recomputation runs in the backward pass, maybe in autograd's own
    thread, where the context of the forward call is gone; it must find the same LoRAs."""
    gates = _active.get()
    return running(gates), running(gates)


def to_peft(config: LoraConfig, prefix: str = "") -> peft.LoraConfig:
    """The same words as PEFT's own object, which validates them. `prefix`: the language model's path, for layers of a
    whole model; targets become a regular expression, since vision towers have a q_proj too."""
    targets: Any = list(config.target_modules)
    if prefix:
        targets = rf"{prefix}\.(?:.*\.)?(?:{'|'.join(target.replace('.', '[.]') for target in config.target_modules)})"
    try:
        return peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it, floats are fine
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"lora: PEFT refuses it ({error})") from None


def targets(config: LoraConfig, language_model: nn.Module) -> dict[str, tuple[int, int]]:
    """The layers that a LoRA enters: module path -> (in, out) channels. Every target word must match something."""
    words = to_peft(config)
    linear = {
        name: (module.in_features, module.out_features)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    found = {name: shape for name, shape in linear.items() if check_target_module_exists(words, name)}
    idle = [word for word in config.target_modules if not any(n == word or n.endswith(f".{word}") for n in found)]
    if idle or not found:
        exist = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise RecipeError(f"lora.target_modules: no layer is called {', '.join(idle)}; the language model has {exist}")
    return found
