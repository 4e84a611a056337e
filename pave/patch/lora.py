"""LoRA of the language model as forward hooks: no wrapper, so names, classes and weights of the base never change.

In: a `LoraConfig` with PEFT's option names, and a language model. Out: low-rank pairs, named by module path, that add
B·A·x·scaling to the output of their Linear layer, for selected rows of a batch. Validation, selection of layers and
initial values are PEFT's; its wrapper modules are not used, because they change the base's names and remain when an
adapter is deleted. Knows nothing of patches and files.

b rows of a call, B rows inside the base (b, or b times the beams), l tokens, r rank
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from functools import cached_property, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import peft
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from pave.config import LoraConfig
from pave.errors import RecipeError
from pave.files.copied import OURS, guard, release
from pave.fusion.meta import Blank

# Otherwise a graph that was compiled before a patch is applied would go on without its LoRA: by default, torch.compile
# assumes that no hook is added.
torch._dynamo.config.skip_nnmodule_hook_guards = False

LEAST = 2  # rows of a product at least, in a batch: a product of one has other bits
COPIES = 2  # of the weights of a call's LoRAs, at most, to have those of each row side by side
PLAIN = (Tensor, nn.Parameter)  # weights that are not quantised
Layers = tuple[tuple[str, int, int], ...]  # module path inside the language model, channels in and out
_count = itertools.count()
_loras = weakref.WeakValueDictionary[str, "Loras"]()  # by name, for compiled graphs


class Assignment(NamedTuple):
    """At most one LoRA for each row of a layer's input."""

    which: tuple[tuple[int, float], ...]  # index and factor (weight times scaling) of each LoRA
    rows: tuple[Tensor, ...]  # int64 (k,): the rows of each
    owners: Tensor | None  # int64 (k,): of each row that has any, in order, the index into `which`, if they are many
    every: bool  # whether each row has one


class Product(NamedTuple):
    """A batched product with one pair of matrices per row."""

    a: Tensor  # (k in r); of a single row of several, twice
    b: Tensor  # (k r out) times the factor; likewise
    rows: Tensor | None  # int64 (k,): for these rows; None: for all
    dropout: float


class Call:
    """The weight of each LoRA in each row of one call, float32 (b,). A row of weight 0 keeps its exact output."""

    def __init__(self, gates: Mapping[Lora, Tensor]) -> None:
        self.gates = {lora: weights.float().cpu() for lora, weights in gates.items()}
        self._assigned: dict[object, list[Assignment]] = {}
        self._products: dict[object, list[Product]] = {}

    def products(self, loras: Loras, path: str, x: Tensor) -> list[Product]:
        """The products to add to a layer's output for x (B … in). Frozen weights are prepared once per call: decoding
        runs token by token, so every small operation adds latency."""
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
        scalings = tuple(pair.scaling for pair in pairs)
        for which, rows, owners, every in self._assignments(loras, scalings, len(x), x.device):
            a = [pairs[i].A.to(x) for i, _ in which]
            b = [(pairs[i].B.float() * factor).to(x) for i, factor in which]
            dropout = pairs[0].dropout if pairs[0].training else 0.0
            if owners is not None:
                down, up = torch.stack(a)[owners], torch.stack(b)[owners]
                yield Product(down.mT, up.mT, None if every else rows[0], dropout)
                continue
            for one, other, own in zip(a, b, rows, strict=True):
                count = max(len(own), min(len(x), LEAST))
                down, up = one.expand(count, -1, -1), other.expand(count, -1, -1)
                yield Product(down.mT, up.mT, None if every and len(which) == 1 else own, dropout)

    def _assignments(
        self, loras: tuple[Lora, ...], scalings: tuple[float, ...], count: int, device: torch.device
    ) -> list[Assignment]:
        """LoRAs assigned to `count` rows: the i-th assignment has the i-th LoRA of each row. Made once for all layers
        of equal scaling, since it synchronises with the GPU."""
        key = loras, scalings, count, device
        if key not in self._assigned:
            weighted = [self.gates[lora] * scaling for lora, scaling in zip(loras, scalings, strict=True)]
            factors = torch.stack(weighted)  # (loras b)
            factors = factors.repeat_interleave(count // factors.shape[1], 1)
            chosen = [[(i, factor) for i, factor in enumerate(row) if factor] for row in factors.T.tolist()]
            self._assigned[key] = [_assignment(rows, device) for rows in zip_longest(*chosen)]
        return self._assigned[key]


def _assignment(rows: Sequence[tuple[int, float] | None], device: torch.device) -> Assignment:
    which = tuple(dict.fromkeys(filter(None, rows)))
    places = [[place for place, row in enumerate(rows) if row == each] for each in which]
    some = [place for place, row in enumerate(rows) if row]
    if len(which) == 1 or len(some) > COPIES * len(which):
        return Assignment(which, tuple(torch.tensor(each, device=device) for each in places), None, all(rows))
    owners = torch.tensor([which.index(row) for row in rows if row], device=device)
    return Assignment(which, (torch.tensor(some, device=device),), owners, all(rows))


# The LoRAs of the current call, per thread. Hooks of all others do nothing, so a direct call of the base gives the
# base's output.
_active: ContextVar[Call] = ContextVar("pave_lora", default=Call({}))  # noqa: B039 (immutable: it has no LoRAs)


class Pair(nn.Module):
    """One layer's A (r in) and B (out r)."""

    def __init__(self, config: LoraConfig, path: str, inputs: int, outputs: int) -> None:
        super().__init__()
        rank, self.scaling = config.rank(path), config.scaling_of(path)
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        self.dropout = config.lora_dropout
        nn.init.kaiming_uniform_(self.A, a=5**0.5)  # PEFT's initialisation: A as nn.Linear, B zero

    @property
    def kind(self) -> object:
        """Pairs of equal kind are computed together: equal rank, without dropout."""
        return id(self) if self.dropout and self.training else len(self.A)


class Lora(nn.Module):
    """All pairs of one patch; a state_dict key is `<module path inside the language model>.{A,B}`."""

    def __init__(self, config: LoraConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        for path, inputs, outputs in layers:
            *parents, last = path.split(".")
            module: nn.Module = self
            for name in parents:
                if name not in module._modules:
                    module.add_module(name, nn.Module())
                module = module._modules[name]  # type: ignore[assignment]
            module.add_module(last, Pair(config, path, inputs, outputs))

    @cached_property
    def pairs(self) -> dict[str, Pair]:
        """By module path."""
        return {path: module for path, module in self.named_modules() if isinstance(module, Pair)}


blank_lora = Blank(Lora)


class Loras:
    """The LoRAs of a language model: one hook per layer, shared by all of them."""

    def __init__(self, language_model: nn.Module) -> None:
        self._layers = language_model
        self._inside: list[Lora] = []
        self._hooks: dict[str, RemovableHandle] = {}
        self.paths: Any = WeakIdKeyDictionary()  # weight -> path of its layer
        self.name = str(next(_count))
        _loras[self.name] = self
        self._lock = threading.Lock()

    def add(self, lora: Lora) -> None:
        """Register a LoRA. It does nothing until a call runs with it."""
        with self._lock:
            self._inside = [*self._inside, lora]
            for path in lora.pairs.keys() - self._hooks.keys():
                layer = self._layers.get_submodule(path)
                self._hooks[path] = layer.register_forward_hook(partial(_hook, self, path))
                self.paths[layer.weight] = path
                guard(layer)

    def remove(self, lora: Lora) -> None:
        """Unregister a LoRA and remove the hooks that no other needs."""
        with self._lock:
            self._inside = [each for each in self._inside if each is not lora]
            needed = {path for each in self._inside for path in each.pairs}
            for path in self._hooks.keys() - needed:
                self._hooks.pop(path).remove()
                release(self._layers.get_submodule(path))

    def acting(self, path: str) -> list[Lora]:
        """The LoRAs of the current call that have a pair for this layer."""
        inside = self._inside
        return [lora for lora in _active.get().gates if lora in inside and path in lora.pairs]


def _hook(loras: Loras, path: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if torch.compiler.is_compiling() and not torch.is_grad_enabled() and type(layer.weight) in PLAIN:
        torch.ops.pave.add_low_rank(output, inputs[0], layer.weight, loras.name)
        return None
    return _apart(loras, path, inputs[0], output)


def _update(loras: Loras, path: str, x: Tensor, out: Tensor) -> Tensor | None:
    call = _active.get()
    return updated(x, out, products) if call.gates and (products := call.products(loras, path, x)) else None


# With gradients, or weights of another kind, a graph ends at each LoRA.
_apart: Any = torch.compiler.disable(_update)


@torch.library.custom_op("pave::add_low_rank", mutates_args=["out"], tags=[torch.Tag.cudagraph_unsafe])
def add_low_rank(out: Tensor, x: Tensor, weight: Tensor, loras: str) -> None:
    """A hook in a compiled graph, where it is opaque: which LoRAs a call uses is known when it runs, so that no other
    patch needs another graph, and CUDA graphs leave it out. `weight` tells which layer it is: equal layers may share
    their graph."""
    if (path := _loras[loras].paths.get(weight)) is None:
        raise RuntimeError("a weight of the base was replaced after it was compiled; call torch.compiler.reset()")
    if (more := _update(_loras[loras], path, x, out)) is not None:
        out.copy_(more)


@add_low_rank.register_fake
def _(out: Tensor, x: Tensor, weight: Tensor, loras: str) -> None: ...


OURS.add(_hook)


def updated(x: Tensor, out: Tensor, products: Sequence[Product]) -> Tensor:
    """`out` (B … out) plus the low-rank updates of x (B … in), each on its rows.

    One batched product per row, whichever LoRAs the rows use: bits do not depend on the other rows (law 6). Many LoRAs
    are one product, with the weights of each row side by side, which takes a few times their memory; of few, each is a
    product of its own. Computes in the layer's dtype: float32 training weights are cast at every call, those of a
    loaded patch once.
    """
    if x.dim() != 3:
        rows, flat = (each.reshape(len(x), -1, each.shape[-1]) for each in (x, out))
        return updated(rows, flat, products).view_as(out)
    for a, b, rows, dropout in products:
        own, before = (x, out) if rows is None else (x[rows], out[rows])
        if len(own) < len(a):
            own, before = (each.expand(len(a), -1, -1) for each in (own, before))
        more = torch.baddbmm(before, torch.bmm(F.dropout(own, dropout) if dropout else own, a), b)
        out = more if rows is None else out.index_copy(0, rows, more[: len(rows)])
    return out


class running(AbstractContextManager[None]):
    """Within the block, in this context only, exactly the LoRAs of this call are active."""

    def __init__(self, call: Call) -> None:
        self.call, self.tokens = call, list[Token[Call]]()

    def __enter__(self) -> None:
        self.tokens.append(_active.set(self.call))

    def __exit__(self, *_: object) -> None:
        _active.reset(self.tokens.pop())


def recompute_context() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch.utils.checkpoint: recomputation in the backward pass may run in autograd's thread, outside
    the context of the forward call, and needs the same LoRAs."""
    call = _active.get()
    return running(call), running(call)


def to_peft(config: LoraConfig, prefix: str = "") -> peft.LoraConfig:
    """The config as peft.LoraConfig, which validates it. `prefix`: path of the language model in the whole model; the
    targets become a regular expression, since vision towers have a q_proj too, and its patterns must name whole paths
    in the language model."""
    names = list(config.target_modules)
    inside = rf"{prefix}\.(?:.*\.)?(?:{'|'.join(name.replace('.', '[.]') for name in names)})"
    ranks, alphas = (
        {f"{prefix}.{layer}".replace(".", "[.]"): value for layer, value in pattern.items()}
        for pattern in (config.rank_pattern, config.alpha_pattern)
    )
    try:
        return peft.LoraConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT only divides it
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
            target_modules=inside if prefix else names,
            rank_pattern=ranks,
            alpha_pattern=alphas,
            bias="none",
            task_type="CAUSAL_LM",
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"lora: PEFT rejects it ({error}); correct the value") from None


def targets(config: LoraConfig, language_model: nn.Module) -> Layers:
    """The layers that LoRA adapts. Every target name must match a layer."""
    peft_config = to_peft(config)
    linear = {name: layer for name, layer in language_model.named_modules() if isinstance(layer, nn.Linear)}
    found = [name for name in linear if check_target_module_exists(peft_config, name)]
    ends = {end for name in found for end in _ends(name)}
    for key in ("target_modules", "rank_pattern", "alpha_pattern"):
        unmatched = [each for each in getattr(config, key) if each not in ends]
        if unmatched or not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            named = ", ".join(unmatched[:3]) + (f" and {len(unmatched) - 3} more" if len(unmatched) > 3 else "")
            raise RecipeError(f"lora.{key}: no layer matches {named}; the language model has {known}")
    return tuple((name, linear[name].in_features, linear[name].out_features) for name in found)


def _ends(path: str) -> Iterator[str]:
    """The names that match a layer: its path, and every end of it."""
    while path:
        yield path
        path = path.partition(".")[2]
