"""The lower altitude of a patched model: encode, prepare, then forward or generate; tensors in, tensors out.

In: clips and questions. Out: frozen features, `Inputs`, then what Hugging Face returns. Patches enter through the
base's own `mm_encoder_outputs` argument and through hooks, so its class, names and weights never change. Knows nothing
of files.

b rows, t key frames, s visual tokens per key frame, n side tokens beside a key frame, d channels, v packed visual rows,
l tokens of a row
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from pave.base import Base, Newline
from pave.config import SenseConfig
from pave.encoder import Encoder, load_encoder
from pave.errors import PatchNotFound, SignalError, nearest
from pave.media.clip import Clip
from pave.model.inputs import ClipFeatures, Inputs, Use, beside, layout, sides_of, stack, tokenise
from pave.patch.attached import Attached
from pave.patch.lora import Call, Loras, running
from pave.patch.report import PatchReport

Names = str | Sequence[str] | Sequence[str | Sequence[str] | None] | None

_off: ContextVar[frozenset[int]] = ContextVar("pave_patches_off", default=frozenset())  # ids of models


class Steps:
    """A base, the patches that are applied to it, and the steps from a clip to an answer."""

    def __init__(self, host: Base) -> None:
        self.host = host
        self._applied: dict[str, tuple[Attached, PatchReport]] = {}
        self._encoders: dict[str, Encoder] = {}
        self._loras = Loras(host.language_model)
        self._lock = threading.RLock()

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself; a direct call of it is a call without patches."""
        return self.host.model

    @property
    def patches(self) -> Mapping[str, PatchReport]:
        """What is applied, in order."""
        with self._lock:
            return MappingProxyType({name: report for name, (_, report) in self._applied.items()})

    def attached(self) -> list[Attached]:
        """The modules of all applied patches, in order."""
        with self._lock:
            return [attached for attached, _ in self._applied.values()]

    @contextmanager
    def patches_off(self) -> Iterator[None]:
        """Within the block, and in this thread only, the base answers, bit for bit."""
        token = _off.set(_off.get() | {id(self)})
        try:
            yield
        finally:
            _off.reset(token)

    def encoder(self, sense: SenseConfig) -> Encoder:
        """The frozen encoder of a sense; built once."""
        key = f"{sense.encoder} {sorted(sense.options.items())}"
        with self._lock:
            if key not in self._encoders:
                self._encoders[key] = load_encoder(sense.encoder, **sense.options).on(self.host)
            return self._encoders[key]

    def encoders(self) -> list[Encoder]:
        """The frozen encoders of all applied patches, each once."""
        senses = [sense for attached in self.attached() for sense in attached.config.senses.values()]
        return list({encoder.spec.preprocessing: encoder for encoder in map(self.encoder, senses)}.values())

    @torch.no_grad()
    def encode(
        self,
        clips: Sequence[Clip],
        senses: Sequence[SenseConfig | Encoder] | None = None,
        chunk: int | None = None,
    ) -> list[ClipFeatures]:
        """What frozen networks see and hear in clips: one vision pass for all, one pass of each encoder per clip.
        `senses` defaults to those of the applied patches; `chunk` bounds the frames of one vision pass."""
        for clip in clips:
            if not isinstance(clip, Clip):
                raise SignalError(f"got {clip!r} for a clip; give Clip.read(path), or Clip.from_frames(frames)")
        senses = self.encoders() if senses is None else senses
        built = [sense if isinstance(sense, Encoder) else self.encoder(sense) for sense in senses]
        encoders = {encoder.spec.preprocessing: encoder for encoder in built}
        visual = self.host.encode([self.host.pixels(clip) for clip in clips], [_times(clip) for clip in clips], chunk)
        features = []
        for i, clip in enumerate(clips):
            count = int(visual.frames[i])
            sides = {key: encoder.encode(clip) for key, encoder in encoders.items()}
            absent = {key: encoders[key].lacks(clip) for key, side in sides.items() if side is None}
            parts = (visual.vision[i, :count], visual.tokens[i, :count], visual.times[i, :count])
            deep = None if visual.deep is None else visual.deep[i, :count]
            features.append(ClipFeatures(*parts, sides, absent, deep))
        return features

    def encode_clip(self, clip: Clip, senses: Sequence[SenseConfig | Encoder] | None = None) -> ClipFeatures:
        """One clip, as CPU tensors for a cache."""
        return self.encode([clip], senses)[0].to("cpu")

    def prepare(
        self, clips: Sequence[ClipFeatures | Clip], questions: Sequence[str], *, patches: Names = None
    ) -> Inputs:
        """Rows of one batch: a question about a clip each. `patches`: names for all rows, or one list per row; None:
        all that are enabled. Patches and weights are those of this moment."""
        if len(clips) != len(questions) or not clips or not all(isinstance(question, str) for question in questions):
            raise ValueError(f"{len(clips)} clips and {len(questions)} questions; give a text for every clip")
        asked = self._asked(patches, len(clips))
        features = self._features(clips, [sense for each in asked for sense in each.attached.config.senses.values()])
        uses = _perceived(asked, features)
        layouts = self._layouts(uses, len(features))
        visual = self._visual_ids(features, uses, [newline for newline, _ in layouts])
        ids, mask = tokenise(self.host, questions, [template for _, template in layouts], visual)
        return Inputs(ids, mask, stack(features), uses, tuple(newline for newline, _ in layouts))

    def inputs(
        self,
        clips: Sequence[ClipFeatures],
        patches: Names,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
    ) -> Inputs:
        """Rows that the caller has laid out, each around the ids that `visual_ids` gives for its clip; `patches` as in
        `prepare`."""
        uses = _perceived(self._asked(patches, len(clips)), clips)
        newlines: list[Newline] = [newline for newline, _ in self._layouts(uses, len(clips))]
        return Inputs(input_ids, attention_mask, stack(clips), uses, tuple(newlines), position_ids)

    def visual_ids(self, clips: Sequence[ClipFeatures], patches: Names) -> list[list[int]]:
        """The visual part of each clip's prompt under these patches: placeholders, and what the base writes around."""
        uses = _perceived(self._asked(patches, len(clips)), clips)
        return self._visual_ids(clips, uses, [newline for newline, _ in self._layouts(uses, len(clips))])

    def fused_tokens(self, inputs: Inputs) -> list[Tensor]:
        """Visual tokens (t s d) of each row, plus what patches add where they sense something. All patches look at the
        base's own tokens; other rows keep theirs exactly.

        Fusion runs row by row: the bits of a row hang on nothing else in its batch (law 6), sixteen rows with a patch
        each cost what sixteen with one do, and no padding is computed. One row of a real clip fills a device."""
        visual = inputs.visual.to(self.host.device, self.host.dtype).rows()
        fused = [row.tokens for row in visual]
        for use in self._live(inputs):
            read = use.attached.reading(use.sides) if use.weight and use.attached.adds else {}
            for name, sides in read.items():
                fusion, dtype = use.attached.fusing(name), use.attached.precision
                for i, (row, side) in enumerate(zip(visual, sides, strict=True)):
                    if side is not None:
                        update = fusion(row.vision, row.tokens.to(dtype), side.to(row.tokens.device))
                        fused[i] = fused[i] + update * use.weight
        return [tokens[0].to(self.host.dtype) for tokens in fused]

    def forward(self, inputs: Inputs, *, labels: Tensor | None = None, logits_to_keep: int | Tensor = 0) -> Any:
        """One pass of the base with its patches: a Hugging Face output with `logits` (b l vocabulary)."""
        with self._calling(inputs):
            base: Any = self.base
            said = base(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=self._here(
                    self.host.attention(inputs.attention_mask, inputs.input_ids, inputs.positions())
                ),
                position_ids=self._positions(inputs),
                mm_encoder_outputs=self._outputs(inputs),
                labels=None if labels is None else labels.to(self.host.device),
                logits_to_keep=logits_to_keep,
                use_cache=False,
                **self._here(self.host.beyond(inputs.input_ids)),
            )
        if said.logits.shape[1] == inputs.input_ids.shape[1]:  # VideoLLaMA 3 gives all, whatever is asked for
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            said.logits = said.logits[:, keep]
        return said

    @torch.no_grad()
    def generate(self, inputs: Inputs, **options: Any) -> Any:
        """The base's own generate(), with Hugging Face's options; returns what that returns, prompt included."""
        if inputs.attention_mask.dim() != 2:
            shape = tuple(inputs.attention_mask.shape)
            raise ValueError(f"generate needs a mask (b l), got {shape}; give one question per row")
        held = (inputs.input_ids == self.host.placeholder).sum(-1)
        if len(held.unique()) > 1:  # a beam search tells rows apart by their number, and would mix them up
            raise ValueError(
                f"rows hold {held.tolist()} visual placeholders, generate needs as many in all; use prepare()"
            )
        copies = self._copies(options)
        if max(copies.values()) > 1 and not self.host.beams:
            asked = ", ".join(f"{name}={count}" for name, count in copies.items() if count > 1)
            raise ValueError(f"{self.host.model_type} cannot answer with {asked}; leave it out")
        options = {"eos_token_id": self.host.stops, "pad_token_id": self.host.pad, **options, **copies}
        positions = self._positions(inputs)
        self._warn_of_length(int(positions.max()) + 1)
        with self._calling(inputs):
            base: Any = self.base
            return base.generate(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=inputs.attention_mask.to(self.host.device),
                position_ids=positions,
                mm_encoder_outputs=self._outputs(inputs),
                **self._here(self.host.beyond(inputs.input_ids)),
                **options,
            )

    def _warn_of_length(self, length: int) -> None:
        """Say so where a prompt is longer than anything that the base knows."""
        most = getattr(getattr(self.host.language_model, "config", None), "max_position_embeddings", None)
        if most and length > most:
            cause = f"the prompt has {length:,} positions, {self.host.model_type} was made for {most:,}"
            remedy = "ask about fewer frames or seconds, or in fewer words"
            warnings.warn(f"{cause}: its answer may be nonsense; {remedy}", stacklevel=2)

    def _copies(self, options: Mapping[str, Any]) -> dict[str, int]:
        """What makes generate() answer a row several times: options, or what its configs say."""
        configs = (options.get("generation_config"), self.base.generation_config)
        names = ("num_beams", "num_return_sequences")
        told = {name: [options.get(name), *(getattr(config, name, None) for config in configs)] for name in names}
        return {name: next(filter(None, counts), 1) for name, counts in told.items()}

    def _here(self, told: Any) -> Any:
        """A tensor, or several by name, where the base lies. (transformers moves masks of two dimensions only.)"""
        if isinstance(told, dict):
            return {name: self._here(each) for name, each in told.items()}
        return told.to(self.host.device)

    def _positions(self, inputs: Inputs) -> Tensor:
        counts = inputs.visual.frames.tolist()
        times = [row[:count] for row, count in zip(inputs.visual.times.tolist(), counts, strict=True)]
        return self.host.positions(inputs.input_ids, inputs.positions(), times).to(self.host.device)

    def _live(self, inputs: Inputs) -> tuple[Use, ...]:
        return () if id(self) in _off.get() else inputs.uses

    @contextmanager
    def _calling(self, inputs: Inputs) -> Iterator[None]:
        """Hold the patches of a call in place and open their LoRAs for its rows."""
        uses = self._live(inputs)
        gates = {use.attached.lora: use.strength for use in uses if use.attached.lora is not None}
        with ExitStack() as held:
            for use in uses:
                use.attached.begin()
                held.callback(use.attached.end)
            with running(Call({lora: strength for lora, strength in gates.items() if strength.any()})):
                yield

    def _outputs(self, inputs: Inputs) -> dict[str, Any]:
        """Packed visual rows (b v d), shorter ones behind zero rows; or all rows in line (1 v d) when the prompts hold
        no spare placeholders. As the base takes them."""
        fused = self.fused_tokens(inputs)
        newline: Sequence[Newline] = inputs.newline or self.host.newlines[:1] * len(fused)
        extra = beside(self._live(inputs), len(fused))
        rows = [self.host.pack(*row) for row in zip(fused, newline, extra, strict=True)]
        held = (inputs.input_ids == self.host.placeholder).sum(-1).tolist()
        lengths = [len(row) for row in rows]
        padded = held == [max(lengths)] * len(rows)
        if not padded and held != lengths:
            cause = f"the prompts hold {held} visual placeholders, the clips need {lengths}"
            raise ValueError(f"{cause}; call prepare() again")

        def arranged(rows: list[Tensor]) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_side="left") if padded else torch.cat(rows)[None]

        deep = None
        if inputs.visual.deep is not None:
            levels = inputs.visual.deep.to(self.host.device, self.host.dtype)
            deep = arranged([row[: len(own)].flatten(0, 1) for row, own in zip(levels, fused, strict=True)])
        return self.host.outputs(arranged(rows), deep)

    def _layouts(self, uses: Sequence[Use], rows: int) -> list[tuple[Newline, str]]:
        """Newline and prompt template of each row, as the patches that act on it want them."""
        return [layout(self.host, [use.attached for use in uses if use.acting[i]]) for i in range(rows)]

    def _visual_ids(
        self, clips: Sequence[ClipFeatures], uses: Sequence[Use], newlines: Sequence[Newline]
    ) -> list[list[int]]:
        with torch.no_grad():
            extra = beside(uses, len(clips))
        sizes = [[[len(group) for group in groups] for groups in row] for row in extra]
        rows = zip(clips, newlines, sizes, strict=True)
        return [self.host.visual_ids(clip.times.tolist(), newline, more) for clip, newline, more in rows]

    def _asked(self, patches: Names, rows: int) -> list[Use]:
        """The patches that some row asks for, as they are at this moment; what they perceive is not known yet."""
        with self._lock:
            wanted = self._wanted(patches, rows)
            return [
                Use(name, attached, report.weight, asking, {})
                for name, (attached, report) in self._applied.items()
                if (asking := torch.tensor([name in row for row in wanted])).any()
            ]

    def _wanted(self, patches: Names, rows: int) -> list[tuple[str, ...]]:
        """Names of patches per row; a row of None asks for all that are enabled."""
        if id(self) in _off.get():
            return [()] * rows
        enabled = tuple(name for name, report in self.patches.items() if report.enabled)
        same = patches is None or isinstance(patches, str) or all(isinstance(name, str) for name in patches)
        each: Sequence[Any] = [patches] * rows if same else patches or ()
        if len(each) != rows:
            raise ValueError(f"{len(each)} lists of patches for {rows} rows; give one per row, or names for all")
        wanted = [enabled if row is None else _names(row) for row in each]
        for name in {name for row in wanted for name in row}:
            self._found(name)
        return wanted

    def _found(self, name: str) -> tuple[Attached, PatchReport]:
        with self._lock:
            if name not in self._applied:
                raise PatchNotFound(name, "no patch of this name is applied", nearest(name, self._applied))
            return self._applied[name]

    def _features(self, clips: Sequence[ClipFeatures | Clip], senses: Sequence[SenseConfig]) -> list[ClipFeatures]:
        """Encode what is not encoded yet, each clip once."""
        fresh = {id(clip): clip for clip in clips if not isinstance(clip, ClipFeatures)}
        seen = dict(zip(fresh, self.encode(list(fresh.values()), senses), strict=True)) if fresh else {}
        features = [clip if isinstance(clip, ClipFeatures) else seen[id(clip)] for clip in clips]
        return features


def _perceived(asked: Sequence[Use], clips: Sequence[ClipFeatures]) -> tuple[Use, ...]:
    return tuple(replace(use, sides=sides_of(use.attached, clips, use.rows)) for use in asked)


def _names(row: Any) -> tuple[str, ...]:
    return (row,) if isinstance(row, str) else tuple(row)


def _times(clip: Clip) -> Tensor:
    if clip.times is None:
        raise SignalError("the clip's frames have no times; give Clip.from_frames(frames, times=seconds)")
    return clip.times
