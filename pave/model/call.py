"""Calls of a patched model: lay out, fuse, forward, generate; tensors in, tensors out, and no state of their own.

In: clips or their features, and questions. Out: `Inputs`, then what Hugging Face returns. Patches enter through the
base's own `mm_encoder_outputs` argument and through hooks, so its class, names and weights never change. Knows nothing
of files.

b rows, t key frames, s visual tokens per key frame, d channels, v packed visual rows, l tokens of a row
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pave.base import Host, Newline
from pave.config import SenseConfig
from pave.errors import UsageError
from pave.media.clip import Clip
from pave.model.applied import Applied, Names
from pave.model.inputs import ClipFeatures, Inputs, Use
from pave.model.layout import Layout, inserted, lay_out, perceived, tokenise
from pave.model.perception import Perception
from pave.patch.lora import Call, running


@dataclass(frozen=True)
class Calls:
    """The parts of a model that a call needs."""

    host: Host
    applied: Applied
    perception: Perception

    # From clips and questions to tensors

    def prepare(self, clips: Sequence[ClipFeatures | Clip], questions: Sequence[str], patches: Names) -> Inputs:
        """Rows of one batch: a question about a clip each."""
        if len(clips) != len(questions) or not clips or not all(isinstance(question, str) for question in questions):
            raise UsageError(f"{len(clips)} clips and {len(questions)} questions; give a text for every clip")
        uses = self.applied.uses(patches, len(clips))
        features = self.perception.features(clips, senses_of(uses))
        return self.around(lay_out(self.host, features, perceived(uses, features)), questions)

    def around(self, layout: Layout, questions: Sequence[str]) -> Inputs:
        """One question for each row of a layout."""
        return layout.inputs(*tokenise(self.host, questions, layout))

    def lay_out(self, clips: Sequence[ClipFeatures], patches: Names) -> Layout:
        """Rows whose texts the caller writes."""
        return lay_out(self.host, clips, perceived(self.applied.uses(patches, len(clips)), clips))

    # From tensors to logits and ids

    def fused_tokens(self, inputs: Inputs) -> list[Tensor]:
        """Visual tokens (t s d) of each row, plus what patches add where they sense something. All patches look at the
        base's own tokens; other rows keep theirs exactly.

        Fusion runs row by row: the bits of a row hang on nothing else in its batch (law 6), sixteen rows with a patch
        each cost what sixteen with one do, and no padding is computed. One row of a real clip fills a device."""
        visual = inputs.visual.to(self.host.device, self.host.dtype).rows()
        fused = [row.tokens for row in visual]
        for use in self.applied.live(inputs.uses):
            read = use.attached.reading(use.sides) if use.weight and use.attached.adds else {}
            for name, sides in read.items():
                fusion, dtype = use.attached.fusing(name), use.attached.precision
                for i, (row, side) in enumerate(zip(visual, sides, strict=True)):
                    if side is not None:
                        update = fusion(row.vision, row.tokens.to(dtype), side.to(row.tokens.device))
                        fused[i] = fused[i] + update * use.weight
        return [tokens[0].to(self.host.dtype) for tokens in fused]

    def forward(self, inputs: Inputs, labels: Tensor | None, logits_to_keep: int | Tensor) -> Any:
        """One pass of the base with its patches: a Hugging Face output with `logits` (b l vocabulary)."""
        mask = self.host.attention(inputs.attention_mask, inputs.input_ids, inputs.positions())
        with self._held(inputs):
            base: Any = self.host.model
            outputs = base(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=self._here(mask),
                position_ids=self._positions(inputs),
                mm_encoder_outputs=self._visual_rows(inputs),
                labels=None if labels is None else labels.to(self.host.device),
                logits_to_keep=logits_to_keep,
                use_cache=False,
                **self._here(self.host.beyond(inputs.input_ids)),
            )
        if outputs.logits.shape[1] == inputs.input_ids.shape[1]:  # VideoLLaMA 3 gives all, whatever is asked for
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            outputs.logits = outputs.logits[:, keep]
        return outputs

    @torch.no_grad()
    def generate(self, inputs: Inputs, **options: Any) -> Any:
        """The base's own generate(), with Hugging Face's options; returns what that returns, prompt included."""
        options = self._checked(inputs, options)
        positions = self._positions(inputs)
        _warn_of_length(self.host, int(positions.max()) + 1)
        with self._held(inputs):
            base: Any = self.host.model
            return base.generate(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=inputs.attention_mask.to(self.host.device),
                position_ids=positions,
                mm_encoder_outputs=self._visual_rows(inputs),
                **self._here(self.host.beyond(inputs.input_ids)),
                **options,
            )

    def _checked(self, inputs: Inputs, options: dict[str, Any]) -> dict[str, Any]:
        """Options of generate() with what the base needs, once inputs and options are known to be possible."""
        if inputs.attention_mask.dim() != 2:
            shape = tuple(inputs.attention_mask.shape)
            raise UsageError(f"generate needs a mask (b l), got {shape}; give one question per row")
        held = (inputs.input_ids == self.host.placeholder).sum(-1)
        if len(held.unique()) > 1:  # a beam search tells rows apart by their number, and would mix them up
            raise UsageError(
                f"rows hold {held.tolist()} visual placeholders, generate needs as many in all; use prepare()"
            )
        copies = _copies(self.host, options)
        if max(copies.values()) > 1 and not self.host.beams:
            asked = ", ".join(f"{name}={count}" for name, count in copies.items() if count > 1)
            raise UsageError(f"{self.host.model_type} cannot answer with {asked}; leave it out")
        return {"eos_token_id": self.host.stops, "pad_token_id": self.host.pad, **options, **copies}

    def _here(self, told: Any) -> Any:
        """A tensor, or several by name, where the base lies. (transformers moves masks of two dimensions only.)"""
        if isinstance(told, dict):
            return {name: self._here(each) for name, each in told.items()}
        return told.to(self.host.device)

    def _positions(self, inputs: Inputs) -> Tensor:
        counts = inputs.visual.frames.tolist()
        times = [row[:count] for row, count in zip(inputs.visual.times.tolist(), counts, strict=True)]
        return self.host.positions(inputs.input_ids, inputs.positions(), times).to(self.host.device)

    @contextmanager
    def _held(self, inputs: Inputs) -> Iterator[None]:
        """Hold the patches of a call in place and open their LoRAs for its rows."""
        uses = self.applied.live(inputs.uses)
        gates = {use.attached.lora: use.strength for use in uses if use.attached.lora is not None}
        with ExitStack() as held:
            for use in uses:
                use.attached.begin()
                held.callback(use.attached.end)
            with running(Call({lora: strength for lora, strength in gates.items() if strength.any()})):
                yield

    def _visual_rows(self, inputs: Inputs) -> dict[str, Any]:
        """Packed visual rows (b v d), shorter ones behind zero rows; or all rows in line (1 v d) when the prompts hold
        no spare placeholders. As the base takes them."""
        fused = self.fused_tokens(inputs)
        newline: Sequence[Newline] = inputs.newline or self.host.newlines[:1] * len(fused)
        extra = inserted(self.applied.live(inputs.uses), len(fused))
        rows = [self.host.pack(*row) for row in zip(fused, newline, extra, strict=True)]
        held = (inputs.input_ids == self.host.placeholder).sum(-1).tolist()
        lengths = [len(row) for row in rows]
        padded = held == [max(lengths)] * len(rows)
        if not padded and held != lengths:
            cause = f"the prompts hold {held} visual placeholders, the clips need {lengths}"
            raise UsageError(f"{cause}; call prepare() again")

        def arranged(rows: list[Tensor]) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_side="left") if padded else torch.cat(rows)[None]

        deep = None
        if inputs.visual.deep is not None:
            levels = inputs.visual.deep.to(self.host.device, self.host.dtype)
            deep = arranged([row[: len(own)].flatten(0, 1) for row, own in zip(levels, fused, strict=True)])
        return self.host.outputs(arranged(rows), deep)


def senses_of(uses: Sequence[Use]) -> list[SenseConfig]:
    """The senses of all patches of a call."""
    return [sense for use in uses for sense in use.attached.config.senses.values()]


def _warn_of_length(host: Host, length: int) -> None:
    """Say so where a prompt is longer than anything that the base knows."""
    most = getattr(getattr(host.language_model, "config", None), "max_position_embeddings", None)
    if most and length > most:
        cause = f"the prompt has {length:,} positions, {host.model_type} was made for {most:,}"
        remedy = "ask about fewer frames or seconds, or in fewer words"
        warnings.warn(f"{cause}: its answer may be nonsense; {remedy}", stacklevel=2)


def _copies(host: Host, options: Mapping[str, Any]) -> dict[str, int]:
    """What makes generate() answer a row several times: options, or what its configs say."""
    configs = (options.get("generation_config"), host.model.generation_config)
    names = ("num_beams", "num_return_sequences")
    told = {name: [options.get(name), *(getattr(config, name, None) for config in configs)] for name in names}
    return {name: next(filter(None, counts), 1) for name, counts in told.items()}
