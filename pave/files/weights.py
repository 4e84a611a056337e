"""Which weights a model has: hashes of them, and what they depend on.

In: a model, its decoder and tokenizer, the files that it was read from. Out: tensors by name, also those that
accelerate keeps elsewhere, and sha256 hashes. Knows nothing of families and patches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pave.errors import BaseModelError
from pave.files import remembered


class Weights:
    """The weights of a multimodal model. `known`: the fingerprint, if it is known."""

    def __init__(self, model: PreTrainedModel, decoder: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.decoder, self.tokenizer = model, decoder, tokenizer
        self.known: str | None = None
        self.files: tuple[Path, ...] = ()  # that the weights were read from, if they were
        self._read: list[tuple[int, int]] = []  # their state when they had been read

    def read_from(self, files: Sequence[Path]) -> None:
        """The weights are, from now on, those of these files, unless they are changed."""
        self.files, self._read = tuple(files), self._state()

    def fingerprint(self) -> str:
        """sha256 of the decoder's weights as bfloat16, vocabulary rows cut to the tokenizer; computed once, and
        remembered on disk for weights that are as they were read."""
        if self.known is None:
            as_read = self.files and self._state() == self._read
            key = remembered.key_of(self._inside(), self.files) if as_read else ""
            self.known = remembered.recall(key) or self._hash()
            remembered.remember(key, self.known)
        return self.known

    def outside(self) -> dict[str, Tensor]:
        """All tensors outside the decoder."""
        whole = self.model.base_model
        decoder = next(name for name, module in whole.named_modules() if module is self.decoder)
        tensors = {name: each for name, each in whole.state_dict().items() if not name.startswith(f"{decoder}.")}
        for name, tensor in tensors.items():
            if tensor.is_meta:
                cause = f"{name} is offloaded and cannot be hashed, which cached feature files need"
                raise BaseModelError(f"{cause}; assign it a device in the device map, or cache features in memory only")
        return tensors

    def _state(self) -> list[tuple[int, int]]:
        """Where the weights are, and how often each was changed in place."""
        return [(tensor.data_ptr(), tensor._version) for _, tensor in self._inside()]

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._inside()):
            if tensor.is_meta:
                raise BaseModelError(f"{name} of the base has no values (meta device); load it with pave.load")
            value = tensor.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
            digest.update(json.dumps([name, list(value.shape)]).encode())
            digest.update(value.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _inside(self) -> Iterator[tuple[str, Tensor]]:
        """The weights of the decoder and of the head, vocabulary rows cut to the tokenizer."""
        rows = len(self.tokenizer)
        embedding, output = self.model.get_input_embeddings().weight, self.model.get_output_embeddings()
        assert isinstance(embedding, Tensor)  # every language model embeds its tokens
        head = getattr(output, "weight", embedding)
        for path, module in self.decoder.named_modules():
            values = offloaded(module)
            for leaf, tensor in module.named_parameters(recurse=False):
                value = values.get(leaf, tensor)
                yield f"{path}.{leaf}".lstrip("."), value[:rows] if tensor is embedding else value
        if output is not None and head is not embedding:
            yield "lm_head.weight", offloaded(output).get("weight", head)[:rows]


def offloaded(module: nn.Module) -> dict[str, Tensor]:
    """A module's own weights that accelerate keeps elsewhere until the module is called, by name."""
    hook: Any = getattr(module, "_hf_hook", None)
    own = dict(module.named_parameters(recurse=False))
    kept = [getattr(each, "weights_map", None) for each in getattr(hook, "hooks", [hook])]
    return {name: each[name] for each in kept if each is not None for name, value in own.items() if value.is_meta}
