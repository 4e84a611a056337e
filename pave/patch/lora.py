"""LoRA of the language model as forward hooks: no wrapper, so names, classes and weights of the base never change.

In: PEFT's own words (`LoraConfig`) and a language model. Out: low-rank pairs, named by module path, that add
B·A·x·scaling to the output of their Linear layer, for the rows of a batch that ask for it. PEFT does the validation,
the choice of layers and the initial values, and its file format is read and written; its wrapper modules are not used,
because they change the base's names and stay behind when an adapter is deleted. Knows nothing of patches and files.

b rows that a call asked for, B rows inside the base (b, or b times the beams), l tokens, r rank
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import peft
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pave.config import LoraConfig
from pave.errors import RecipeError
from pave.fusion.meta import Blank

Layers = tuple[tuple[str, int, int], ...]  # module path inside the language model, channels in and out


class Assignment(NamedTuple):
    """What each row of a layer's input gets at once."""

    which: tuple[tuple[int, float], ...]  # numbers of LoRAs, and what each is multiplied by: weight times scaling
    chosen: Tensor | None  # int64 (B,): which of these; None: the only one
    wanted: Tensor | None  # bool (B 1 1): rows that get something; None: all of them


class Product(NamedTuple):
    """A product with one matrix for each row."""

    a: tuple[Tensor, ...]  # (in r) of those to choose from, or the only one for all rows (B in r)
    b: tuple[Tensor, ...]  # (r out), multiplied, or (B r out)
    assignment: Assignment
    dropout: float


class Call:
    """How much each row of one call wants of each LoRA, float32 (b,). A row of weight 0 keeps its exact output."""

    def __init__(self, gates: Mapping[Lora, Tensor]) -> None:
        self.gates = {lora: weights.float().cpu() for lora, weights in gates.items()}
        self._assigned: dict[object, list[Assignment]] = {}
        self._products: dict[object, list[Product]] = {}

    def products(self, loras: Loras, path: str, x: Tensor) -> list[Product]:
        """What is added to the output of a layer for x (B … in). Weights that do not learn are made ready once for all
        tokens of the call: an answer comes token by token, and waits for every small operation."""
        key = loras, path, len(x)
        if (known := self._products.get(key)) is not None:
            return known
        kinds: dict[object, list[Lora]] = {}
        for lora in loras.acting(path):
            kinds.setdefault(lora.pairs[path].kind, []).append(lora)
        products = [step for group in kinds.values() for step in self._products_of(tuple(group), path, x)]
        if not any(lora.pairs[path].B.requires_grad for group in kinds.values() for lora in group):
            self._products[key] = products
        return products

    def _products_of(self, loras: tuple[Lora, ...], path: str, x: Tensor) -> Iterator[Product]:
        pairs = [lora.pairs[path] for lora in loras]
        for assignment in self._assignments(loras, len(x), x.device):
            a = tuple(pairs[i].A.to(x).mT for i, _ in assignment.which)
            b = tuple((pairs[i].B.float() * factor).to(x).mT for i, factor in assignment.which)
            if assignment.chosen is None:
                a, b = ((each.expand(len(x), -1, -1),) for (each,) in (a, b))
            yield Product(a, b, assignment, pairs[0].dropout if pairs[0].training else 0.0)

    def _assignments(self, loras: tuple[Lora, ...], count: int, device: torch.device) -> list[Assignment]:
        """LoRAs dealt out to `count` rows: the first assignment gives each row the first that it wants, and so on.
        Made
        once for all layers, since a GPU would have to be waited for."""
        key = loras, count, device
        if key not in self._assigned:
            factors = torch.stack([self.gates[lora] * lora.config.scaling for lora in loras])  # (loras b)
            factors = factors.repeat_interleave(count // factors.shape[1], 1)
            wants = [[(i, factor) for i, factor in enumerate(row) if factor] for row in factors.T.tolist()]
            self._assigned[key] = [_assignment(rows, device) for rows in zip_longest(*wants)]
        return self._assigned[key]


def _assignment(rows: Sequence[tuple[int, float] | None], device: torch.device) -> Assignment:
    which = tuple(dict.fromkeys(filter(None, rows)))
    chosen = None if len(which) == 1 else torch.tensor([which.index(row) if row else 0 for row in rows], device=device)
    wanted = None if all(rows) else torch.tensor([row is not None for row in rows], device=device)[:, None, None]
    return Assignment(which, chosen, wanted)


# Which LoRAs run in this thread and call. Hooks that find themselves absent do nothing: a direct call of the base is
# the base, whatever is attached.
_active: ContextVar[Call] = ContextVar("pave_lora", default=Call({}))  # noqa: B039 (never changes: it has no LoRAs)


class Pair(nn.Module):
    """One layer's A (r in) and B (out r)."""

    def __init__(self, config: LoraConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(config.r, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, config.r))
        self.dropout = config.lora_dropout
        nn.init.kaiming_uniform_(self.A, a=5**0.5)  # PEFT's own start: A as nn.Linear, B zero

    @property
    def kind(self) -> object:
        """Pairs of one kind can be computed together: of equal rank, and those with dropout each on its own."""
        return id(self) if self.dropout and self.training else len(self.A)


class Lora(nn.Module):
    """All pairs of one patch; a state_dict key is `<module path inside the language model>.{A,B}`."""

    def __init__(self, config: LoraConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        for path, inputs, outputs in layers:
            *parents, last = path.split(".")
            place: nn.Module = self
            for name in parents:
                if name not in place._modules:
                    place.add_module(name, nn.Module())
                place = place._modules[name]  # type: ignore[assignment]
            place.add_module(last, Pair(config, inputs, outputs))

    @cached_property
    def pairs(self) -> dict[str, Pair]:
        """By module path."""
        return {path: module for path, module in self.named_modules() if isinstance(module, Pair)}


blank_lora = Blank(Lora)


class Loras:
    """The LoRAs that are inside a language model: one hook on each of their layers, however many there are."""

    def __init__(self, language_model: nn.Module) -> None:
        self._layers = language_model
        self._inside: list[Lora] = []
        self._hooks: dict[str, RemovableHandle] = {}
        self._lock = threading.Lock()

    def add(self, lora: Lora) -> None:
        """Let a LoRA in. It does nothing until a call runs with it."""
        with self._lock:
            self._inside = [*self._inside, lora]
            for path in lora.pairs.keys() - self._hooks.keys():
                layer = self._layers.get_submodule(path)
                self._hooks[path] = layer.register_forward_hook(partial(_hook, self, path))

    def remove(self, lora: Lora) -> None:
        """Let a LoRA go, and take off the hooks that no other needs."""
        with self._lock:
            self._inside = [each for each in self._inside if each is not lora]
            needed = {path for each in self._inside for path in each.pairs}
            for path in self._hooks.keys() - needed:
                self._hooks.pop(path).remove()

    def acting(self, path: str) -> list[Lora]:
        """Those that run in the call of this moment and have a pair for this layer."""
        inside = self._inside
        return [lora for lora in _active.get().gates if lora in inside and path in lora.pairs]


@torch.compiler.disable  # a compiled base is compiled once, whatever patches come and go
def _hook(loras: Loras, path: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    call = _active.get()
    return (
        updated(inputs[0], output, products)
        if call.gates and (products := call.products(loras, path, inputs[0]))
        else None
    )


def updated(x: Tensor, out: Tensor, products: Sequence[Product]) -> Tensor:
    """`out` (B … out) with the low-rank updates of x (B … in), each on the rows that want it.

    One product per row, whatever the rows want: so every mixture of rows gives the same bits (law 6), and sixteen rows
    with a patch each cost what sixteen with one do. Compute follows the layer's dtype: weights kept in float32 for
    training are cast at every call, those of a loaded patch have been cast once.
    """
    if x.dim() != 3:
        rows, made = (each.reshape(len(x), -1, each.shape[-1]) for each in (x, out))
        return updated(rows, made, products).view_as(out)
    for a, b, (_, chosen, wanted), dropout in products:
        down, up = (a[0], b[0]) if chosen is None else (torch.stack(a)[chosen], torch.stack(b)[chosen])
        more = torch.baddbmm(out, torch.bmm(F.dropout(x, dropout) if dropout else x, down), up)
        out = more if wanted is None else torch.where(wanted, more, out)
    return out


@contextmanager
def running(call: Call) -> Iterator[None]:
    """Within the block, and in this context only, the LoRAs of this call run; all others are off."""
    token = _active.set(call)
    try:
        yield
    finally:
        _active.reset(token)


def recompute_context() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch.utils.checkpoint: the recomputation runs in the backward pass, maybe in autograd's own
    thread, where the context of the forward call is gone; it must find the same LoRAs."""
    call = _active.get()
    return running(call), running(call)


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


def targets(config: LoraConfig, language_model: nn.Module) -> Layers:
    """The layers that a LoRA enters. Every target word must match something."""
    words = to_peft(config)
    linear = {name: layer for name, layer in language_model.named_modules() if isinstance(layer, nn.Linear)}
    found = [name for name in linear if check_target_module_exists(words, name)]
    idle = [word for word in config.target_modules if not any(n == word or n.endswith(f".{word}") for n in found)]
    if idle or not found:
        exist = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        called = ", ".join(idle[:3]) + (f" or {len(idle) - 3} more names" if len(idle) > 3 else "")
        raise RecipeError(f"lora.target_modules: no layer is called {called}; the language model has {exist}")
    return tuple((name, linear[name].in_features, linear[name].out_features) for name in found)
