"""Calls of a patched model: lay out, fuse, forward, generate. Stateless.

In: clips or their features, and questions. Out: `Inputs`, then what Hugging Face returns. Patches act through the
base's own `mm_encoder_outputs` argument and through hooks, so its class, names and weights never change. Knows nothing
of files.

b rows, t key frames, s visual tokens per key frame, d channels, v packed visual rows, l tokens of a row
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map

from pave.ambient import neutral
from pave.base import Host, Newline
from pave.config import SenseConfig
from pave.errors import UsageError
from pave.files.copied import guard_captures
from pave.media.clip import Clip
from pave.model.applied import Applied, Names
from pave.model.inputs import ClipFeatures, Inputs, Use, refuse_labels, refuse_other
from pave.model.layout import (
    History,
    Layout,
    bare_rows,
    inserted,
    lay_out,
    perceived,
    refuse_questions,
    refuse_uneven,
    tokenise,
)
from pave.model.options import checked_forward, checked_generate, refuse_ignored
from pave.model.perception import Perception
from pave.packing.mask import added
from pave.patch.lora import Call, running


@dataclass(frozen=True)
class Calls:
    """The parts of a model that a call needs."""

    host: Host
    applied: Applied
    perception: Perception

    # From clips and questions to tensors

    @neutral()
    def prepare(
        self,
        clips: Sequence[ClipFeatures | Clip],
        questions: Sequence[str],
        patches: Names,
        histories: Sequence[History] = (),
    ) -> Inputs:
        """Rows of one batch, each a question about a clip, after the earlier turns in `histories`."""
        refuse_uneven(clip=clips, question=questions, **({"dialogue": histories} if histories else {}))
        refuse_questions(self.host, questions)  # `tokenise` refuses them too, but after the clips have been encoded
        uses = self.open(self.applied.uses(patches, len(clips)), questions)
        features = self.perception.features(clips, senses_of(uses))
        return self.around(lay_out(self.host, features, perceived(uses, features)), questions, histories)

    def open(self, uses: Sequence[Use], questions: Sequence[str]) -> list[Use]:
        """The uses without the rows, one per question, that the gate of their patch leaves to the base."""
        found = []
        for use in uses:
            gate = use.attached.gate if use.attached.gated else None
            if gate is not None:
                asked = zip(questions, use.rows.tolist(), strict=True)
                opens = [requested and gate.opens(self.perception.reads(question)) for question, requested in asked]
                use = replace(use, rows=torch.tensor(opens))
            found += [use] if use.rows.any() else []
        return found

    @neutral()
    def around(self, layout: Layout, questions: Sequence[str], histories: Sequence[History] = ()) -> Inputs:
        """One question for each row of a layout, after the earlier turns in `histories`."""
        return layout.inputs(*tokenise(self.host, questions, layout, histories))

    @neutral()
    def lay_out(self, clips: Sequence[ClipFeatures], patches: Names) -> Layout:
        """Rows without texts, which the caller adds."""
        return lay_out(self.host, clips, perceived(self.applied.uses(patches, len(clips)), clips))

    # From tensors to logits and ids

    @neutral()
    def fused_tokens(self, inputs: Inputs) -> list[Tensor]:
        """Visual tokens (t s d) of each row, plus the update of each patch that has a side channel there, and its
        marker. All patches read the base's own tokens; other rows stay bit-identical.

        Fusion runs row by row: the bits of a row do not depend on the rest of its batch (law 6), sixteen rows cost the
        same with sixteen patches as with one, and no padding is computed. One row of a real clip fills a device."""
        uses = self._uses(inputs)
        visual = inputs.visual.to(self.host.device, self.host.dtype).rows()
        blind = inputs.visual.without_pictures
        for i in blind:
            for use in (use for use in uses if use.carries(i)):
                vision, tokens = use.attached.carrying(*visual[i].tokens.shape[1:3])
                visual[i] = replace(visual[i], vision=vision.to(self.host.dtype), tokens=tokens)
        fused = [row.tokens for row in visual]
        for use in uses:
            read = use.attached.reading(use.sides) if use.weight and use.attached.adds else {}
            for name, sides in read.items():
                fusion, dtype = use.attached.fusing(name), use.attached.precision
                for i, (row, side) in enumerate(zip(visual, sides, strict=True)):
                    if side is not None:
                        update = fusion(row.vision, row.tokens.to(dtype), side.to(row.tokens.device))
                        fused[i] = torch.add(fused[i], update, alpha=use.weight)
            for i in range(len(fused)) if use.attached.adds else ():
                if (mark := use.mark(i, i in blind)) is not None:
                    fused[i] = torch.add(fused[i], mark, alpha=use.weight)
        return [tokens[0].to(self.host.dtype) for tokens in fused]

    @neutral()
    def forward(
        self, inputs: Inputs, labels: Tensor | None, logits_to_keep: int | Tensor, **options: bool | None
    ) -> Any:
        """One pass of the base with its patches: a Hugging Face output with `logits` (b l vocabulary)."""
        refuse_other(inputs)
        if labels is not None:
            cut = isinstance(logits_to_keep, Tensor) or logits_to_keep
            refuse_labels(labels, None if cut else tuple(inputs.input_ids.shape))
        wanted = checked_forward(options)
        as_tuple = wanted.pop("return_dict", None) is False
        with self._running(inputs):
            base: Any = self.host.model
            outputs = base(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=self._masks(inputs),
                position_ids=self._positions(inputs),
                mm_encoder_outputs=self._visual_rows(inputs),
                labels=None if labels is None else labels.to(self.host.device),
                logits_to_keep=logits_to_keep,
                **{"use_cache": False, **wanted, "return_dict": True},
                **self._on_device(self.host.beyond(inputs.input_ids)),
            )
        if any(wanted.values()):
            guard_captures(self.host.model)
        refuse_ignored(wanted, outputs)
        cut = isinstance(logits_to_keep, Tensor) or logits_to_keep
        if cut and outputs.logits.shape[1] == inputs.input_ids.shape[1]:  # VideoLLaMA 3 ignores logits_to_keep
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            outputs.logits = outputs.logits[:, keep]
        if outputs.loss is not None:
            outputs.loss = bound(outputs.loss, trained(self._uses(inputs)))
        return outputs.to_tuple() if as_tuple else outputs

    @neutral()
    @torch.no_grad()
    def generate(self, inputs: Inputs, past: Any = None, **options: Any) -> Any:
        """The base's own generate() with Hugging Face's options; returns its output, prompt included. `past`: keys and
        values of the beginning of each row, with all of its visual part."""
        options = self._checked(inputs, options)
        positions = self._positions(inputs)
        _warn_of_length(self.host, int(positions.max()) + 1)
        with self._running(inputs), self.host.running("language model"), answering(self.host.language_model):
            base: Any = self.host.model
            generated = base.generate(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=inputs.attention_mask.to(self.host.device),
                position_ids=positions,
                **({"mm_encoder_outputs": self._visual_rows(inputs)} if past is None else {"past_key_values": past}),
                **self._on_device(self.host.beyond(inputs.input_ids)),
                **options,
            )
        if any(options.get(f"output_{what}") for what in ("hidden_states", "attentions")):
            guard_captures(self.host.model)
        return generated

    @neutral()
    @torch.no_grad()
    def embedded(self, inputs: Inputs) -> list[Tensor]:
        """What the language model reads: embeddings (l d) of each row without its padding, those of its visual rows
        fused. Bases with DeepStack add more to them in their first layers."""
        visual = self._visual_rows(inputs)
        ids = inputs.input_ids.to(self.host.device)
        places = ids == self.host.placeholder
        embeddings = self.host.model.get_input_embeddings()(ids.masked_fill(places, self.host.pad))
        if visual:
            rows = torch.cat([*visual[self.host.modality].pooler_output])
            embeddings = embeddings.masked_scatter(places[..., None], rows.to(embeddings))
        real = inputs.attention_mask.to(self.host.device).bool()
        return [row[mask] for row, mask in zip(embeddings, real, strict=True)]

    def _checked(self, inputs: Inputs, options: dict[str, Any]) -> dict[str, Any]:
        """Options of generate() with the base's defaults; UsageError for inputs and options it cannot handle."""
        refuse_other(inputs)
        checked_generate(options, self.host)
        if inputs.attention_mask.dim() != 2:
            shape = tuple(inputs.attention_mask.shape)
            raise UsageError(f"generate needs a mask of shape (b l), got {shape}; pass one question per row")
        counts = (inputs.input_ids == self.host.placeholder).sum(-1)
        if len(counts.unique()) > 1:  # beam search splits visual features by counting these, and would mix up rows
            raise UsageError(
                f"rows have {counts.tolist()} visual placeholders, generate needs equal numbers; use prepare()"
            )
        copies = _copies(self.host, options)
        if max(copies.values()) > 1 and not self.host.beams:
            asked = ", ".join(f"{name}={count}" for name, count in copies.items() if count > 1)
            raise UsageError(f"{self.host.model_type} does not support {asked}; leave it out")
        return {"eos_token_id": self.host.stops, "pad_token_id": self.host.pad, **options, **copies}

    def _masks(self, inputs: Inputs) -> Any:
        """The mask as the base and its attention kernel take it, or one for each kind of layer. UsageError for a kernel
        that takes no mask (b 1 l l)."""
        masks = self._on_device(self.host.attention(inputs.attention_mask, inputs.input_ids, inputs.positions()))
        config: Any = getattr(self.host.language_model, "config", None)
        kernel = getattr(config, "_attn_implementation", "sdpa")
        if kernel == "sdpa" or inputs.attention_mask.dim() == 2:
            return masks
        if kernel != "eager":
            remedy = 'call model.base.set_attn_implementation("sdpa") first'
            raise UsageError(f"questions that share a clip need a mask, which {kernel} does not take; {remedy}")
        return tree_map(lambda mask: added(mask, self.host.dtype), masks)

    def _on_device(self, value: Any) -> Any:
        """A tensor, or a dict of tensors, on the base's device. (transformers moves two-dimensional masks only.)"""
        if isinstance(value, dict):
            return {name: self._on_device(each) for name, each in value.items()}
        return value.to(self.host.device)

    def _positions(self, inputs: Inputs) -> Tensor:
        counts = inputs.visual.frames.tolist()
        times = [row[:count] for row, count in zip(inputs.visual.times.tolist(), counts, strict=True)]
        return self.host.positions(inputs.input_ids, inputs.positions(), times).to(self.host.device)

    def _uses(self, inputs: Inputs) -> tuple[Use, ...]:
        """The patches of a call, as modules of this model. UsageError if another base has seen the clips."""
        base = inputs.base
        identity = base if base is None or isinstance(base, str) else base.identity() if base is not self.host else None
        if identity is not None and identity != self.host.identity():
            raise UsageError("these inputs were prepared by a model with another base; prepare them with this model")
        return self.applied.live(inputs.uses)

    @contextmanager
    def _running(self, inputs: Inputs) -> Iterator[None]:
        """Enable the LoRAs of a call for its rows; its patches cannot be removed until the block ends."""
        uses = self._uses(inputs)
        gates = {use.attached.lora: use.strength for use in uses if use.attached.lora is not None}
        with ExitStack() as stack:
            for use in uses:
                use.attached.begin()
                stack.callback(use.attached.end)
            with running(Call({lora: strength for lora, strength in gates.items() if strength.any()})):
                yield

    def _visual_rows(self, inputs: Inputs) -> dict[str, Any]:
        """Packed visual rows in the base's own format: (b v d), padded with zeros on the left; or concatenated (1 v d)
        if the prompts have no spare placeholders."""
        fused = self.fused_tokens(inputs)
        newline: Sequence[Newline] = inputs.newline or self.host.newlines[:1] * len(fused)
        uses, blind = self._uses(inputs), [i in inputs.visual.without_pictures for i in range(len(fused))]
        visual = inputs.visual.to(self.host.device, self.host.dtype).rows()
        extra = inserted(uses, [None if none else row.tokens[0] for row, none in zip(visual, blind, strict=True)])
        bare = bare_rows(uses, blind)
        rows = [self.host.pack(*row) for row in zip(fused, newline, extra, bare, strict=True)]
        counts = (inputs.input_ids == self.host.placeholder).sum(-1).tolist()
        lengths = [len(row) for row in rows]
        if not any([*counts, *lengths]):
            return {}
        padded = counts == [max(lengths)] * len(rows)
        if not padded and counts != lengths:
            cause = f"the prompts have {counts} visual placeholders, the clips need {lengths}"
            raise UsageError(f"{cause}; call prepare() again")

        def arranged(rows: list[Tensor]) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_side="left") if padded else torch.cat(rows)[None]

        deep = None
        if inputs.visual.deep is not None:
            levels = inputs.visual.deep.to(self.host.device, self.host.dtype)
            sizes = [0 if without else len(own) for own, without in zip(fused, bare, strict=True)]
            deep = arranged([row[:size].flatten(0, 1) for row, size in zip(levels, sizes, strict=True)])
        return self.host.outputs(arranged(rows), deep)


class _Bound(torch.autograd.Function):
    """A tensor as it is, bit for bit, on which parameters depend with gradient zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.shapes = [(each.shape, each.dtype, each.device) for each in parameters]
        return x.clone() if not x.dim() else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.shapes)
        return (*gradients, *zeros)


@contextmanager
def answering(language_model: nn.Module) -> Iterator[None]:
    """Within the block the language model is in eval mode. Where activations are recomputed it is in training mode, in
    which transformers' layers keep no keys and values, so that generate() would see the last token alone."""
    modules = [module for module in language_model.modules() if module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def bound(x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The same values; every parameter gets a gradient, zero where x does not depend on it. Without one, backward()
    fails for a batch in which no row has the sense, and under DDP other processes wait for it for ever."""
    return _Bound.apply(x, *parameters) if parameters and torch.is_grad_enabled() else x  # pyright: ignore


def trained(uses: Sequence[Use]) -> list[Tensor]:
    """The parameters in training of all patches of a call."""
    modules: Any = [use.attached for use in uses]
    return [each for module in modules for each in module.parameters() if each.requires_grad]


def senses_of(uses: Sequence[Use]) -> list[SenseConfig]:
    """The senses of all patches of a call."""
    return [sense for use in uses for sense in use.attached.config.senses.values()]


def _warn_of_length(host: Host, length: int) -> None:
    """Warn if a prompt is longer than the base supports."""
    if host.context and length > host.context:
        cause = f"the prompt has {length:,} positions, {host.model_type} supports {host.context:,}"
        remedy = "use fewer frames or seconds, or a shorter question"
        warnings.warn(f"{cause}: its answer may be nonsense; {remedy}", stacklevel=2)


def _copies(host: Host, options: Mapping[str, Any]) -> dict[str, int]:
    """Beams and sequences per row, from the options of generate() or its configs."""
    configs = (options.get("generation_config"), host.model.generation_config)
    names = ("num_beams", "num_return_sequences")
    candidates = {name: [options.get(name), *(getattr(config, name, None) for config in configs)] for name in names}
    return {name: next(filter(None, counts), 1) for name, counts in candidates.items()}
