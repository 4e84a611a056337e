"""FLOPs of language models, fusions and any other module, two per multiplication of a matrix product.

In: modules on the meta device, numbers of tokens. Out: counts, of what is computed here and as the PAVE paper counts.

t key frames, s visual tokens per key frame, k side tokens of a key frame's segment, n of them all
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pave.base import Host
from pave.errors import BaseModelError
from pave.fusion.cross_attention import Folded, Official
from pave.fusion.inserted import Concatenation, Pooled

DECODER = ("hidden_size", "num_hidden_layers", "num_attention_heads")  # config attributes of transformers


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one prefill, by one way of counting; 0: not counted."""

    vision: int  # vision tower and projector
    encoders: Mapping[str, int | None]  # by sense; 0: no network, None: unknown
    language_model: int
    head: int
    resampler: int
    fusion: Mapping[str, int]  # by input
    lora: int

    @property
    def total(self) -> int:
        patch = self.resampler + sum(self.fusion.values()) + self.lora
        return (
            self.vision + sum(count or 0 for count in self.encoders.values()) + self.language_model + self.head + patch
        )


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The sizes that a language model's FLOPs depend on: two per multiplication of a matrix product, without biases."""

    weights: int  # that one token is multiplied with: all matrices but embeddings and head; only its active experts
    head: int  # FLOPs of one token's logits
    hidden: int
    layers: int
    heads: int
    width: int  # channels of all heads of all layers together
    key_width: int  # of all their key heads

    @classmethod
    def of(cls, host: Host) -> Decoder:
        lm, head = host.language_model, host.model.get_output_embeddings()
        config = getattr(lm, "config", None)
        sizes: dict[str, Any] = {name: getattr(config, name, None) for name in DECODER}
        missing = [name for name, size in sizes.items() if not isinstance(size, int)]
        width, key_width = (_channels(lm, name) for name in ("q_proj", "k_proj"))
        active = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None) or 0
        missing += [] if width else ["q_proj"]
        missing += [] if active or not _matrices(lm, 3) else ["num_experts_per_tok"]
        if head is None or missing:
            cause = f"its language model has no {', '.join(missing) or 'head'}"
            raise BaseModelError(f"{host.model_type}: {cause}, so its FLOPs cannot be counted; use another base")
        hidden, layers, heads = sizes.values()
        experts = sum(active * each.numel() // len(each) for each in _matrices(lm, 3))
        return cls(
            weights=sum(each.numel() for each in _matrices(lm, 2)) + experts,
            head=2 * linear_weights(head),
            hidden=hidden,
            layers=layers,
            heads=heads,
            width=width,
            key_width=key_width,
        )

    def products(self, n: int, *, pairs: int) -> int:
        """Linear layers and attention for n tokens, of which `pairs` attend to each other."""
        return 2 * n * self.weights + 4 * pairs * self.width

    def as_llm_viewer(self, n: int) -> int:
        """LLM-Viewer's count: full attention; 5 operations per score for softmax, 7 per number for each of two norms, 1
        for each of two additions, 2 for an activation."""
        others = 5 * self.heads * n**2 + (2 * 7 + 2 * 1 + 2) * n * self.hidden
        return self.products(n, pairs=n**2) + self.layers * others


def fusion_flops(fusion: nn.Module, t: int, s: int, n: int, k: float, *, paper: bool = False) -> int:
    """FLOPs of a fusion's matrix products for n side tokens, two per multiplication. Whether k includes padding is up
    to the caller.

    paper: one more projection (of the output of each layer's attention), and the order of the equations, not folded."""
    if isinstance(fusion, Pooled):
        return 2 * fusion.config.segments * (n * fusion.features + linear_weights(fusion))
    if isinstance(fusion, Concatenation):
        return 2 * n * linear_weights(fusion)
    assert isinstance(fusion, Folded | Official)
    width, placed = fusion.config.width, 0 if fusion.place is None else n * linear_weights(fusion.place)
    if isinstance(fusion, Folded):
        made = placed + n * (linear_weights(fusion.key) + linear_weights(fusion.value))
        folded = not paper and fusion.folds(s, k + 1)  # one for the null key
        return round(2 * (made + t * fusion.products(s, k + 1, folded=folded)))
    ask = fusion.query_input_mapping
    asked = 0 if ask is None else linear_weights(ask)
    answers = (2 if fusion.config.values == "own" else 1) * width * fusion.input_mapping.out_features
    layer = t * s * (6 if paper else 5) * width**2 + n * answers + 2 * t * s * k * width
    ends = placed + t * s * (asked + linear_weights(fusion.output_mapping)) + n * linear_weights(fusion.input_mapping)
    return round(2 * (ends + fusion.config.layers * layer))


@torch.no_grad()
def flops_of(run: Callable[..., Any], *inputs: Tensor) -> int:
    """FLOPs of a network, counted by torch on meta tensors. 0 for networks that need values on the way, as vision
    towers for pictures of any size do."""
    try:
        with FlopCounterMode(display=False) as counter:
            run(*inputs)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):  # torch's errors about missing values of meta tensors name the device
            raise
        return 0
    return counter.get_total_flops()


def linear_weights(module: nn.Module) -> int:
    """Numbers in the matrices of all Linear layers."""
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear))


def _matrices(module: nn.Module, dims: int) -> list[Tensor]:
    """All weights with this number of dimensions, except embeddings; in those with three, each row is an expert."""
    layers = [each for each in module.modules() if not isinstance(each, nn.Embedding)]
    return [weight for each in layers for weight in each.parameters(recurse=False) if weight.ndim == dims]


def _channels(module: nn.Module, name: str) -> int:
    """Output channels of all Linear layers of this name together."""
    found = [each for path, each in module.named_modules() if path.endswith(f".{name}")]
    return sum(each.out_features for each in found if isinstance(each, nn.Linear))
