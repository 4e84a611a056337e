"""A frozen video LLM with patches: one call for users, four named steps for researchers.

    model = pave.load("playroom")
    model.apply_patch("audio-playroom")
    model.ask("clip.mp4", "What do you hear?")

Read (`Clip.read`), `encode`, `prepare`, `generate` or `forward`: tensors in, tensors out. Patches enter through the
base's own `mm_encoder_outputs` argument and through hooks, so its class, names and weights never change.

b rows, t key frames, s visual tokens per key frame, d channels, v packed visual rows, l tokens of a row
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from pave.attached import Attached, PatchReport
from pave.base import Base, Newline, Visual, load_base
from pave.config import PatchConfig, SenseConfig
from pave.encoder import Encoder, load_encoder
from pave.errors import PatchError, PatchMismatch, PatchNotFound, SignalError, nearest
from pave.inputs import ClipFeatures, Inputs, Use, layout, sides_of, tokenise
from pave.lora import recompute_context, running
from pave.media import Clip
from pave.sidechannel import SideBatch

_off: ContextVar[frozenset[int]] = ContextVar("pave_patches_off", default=frozenset())  # ids of models


def load(
    base: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> PatchedModel:
    """Open a base: "playroom" (embedded, offline), a folder, or a Hub id. `frames`: key frames per clip."""
    return PatchedModel(load_base(base, dtype=dtype, device=device, quantize=quantize, frames=frames))


class PatchedModel:
    """A base and the patches that are applied to it."""

    def __init__(self, host: Base) -> None:
        self.host = host
        self._applied: dict[str, tuple[Attached, PatchReport]] = {}
        self._encoders: dict[str, Encoder] = {}
        self._lock = threading.RLock()

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself; a direct call of it is a call without patches."""
        return self.host.model

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's weights under its own names, whatever is attached."""
        return self.base.state_dict()

    @property
    def patches(self) -> Mapping[str, PatchReport]:
        """What is applied, in order."""
        with self._lock:
            return MappingProxyType({name: report for name, (_, report) in self._applied.items()})

    # Patches on and off

    def remove_patch(self, name: str) -> None:
        """Take a patch off; calls that are running with it end first. The base is then as if it had never been there."""
        with self._lock:
            attached, _ = self._found(name)
            del self._applied[name]
        attached.leave()

    def set_weight(self, name: str, weight: float) -> None:
        """How strongly a patch acts, from the next call on; 1 as trained, 0 not at all."""
        self._change(name, weight=checked_weight(weight))

    def enable(self, name: str) -> None:
        """Let a patch act again on questions that name no patches."""
        self._change(name, enabled=True)

    def disable(self, name: str) -> None:
        """Keep a patch applied, but use it only where a question names it."""
        self._change(name, enabled=False)

    @contextmanager
    def patches_off(self) -> Iterator[None]:
        """Within the block, and in this thread only, the base answers, bit for bit."""
        token = _off.set(_off.get() | {id(self)})
        try:
            yield
        finally:
            _off.reset(token)

    def _change(self, name: str, **fields: Any) -> None:
        with self._lock:
            attached, report = self._found(name)
            self._applied[name] = attached, replace(report, **fields)

    def _found(self, name: str) -> tuple[Attached, PatchReport]:
        with self._lock:
            if name not in self._applied:
                raise PatchNotFound(name, "no patch of this name is applied", nearest(name, self._applied))
            return self._applied[name]

    # A patch in training

    def attach(
        self,
        name: str,
        config: PatchConfig,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        trainable: bool = True,
        report: PatchReport | None = None,
    ) -> Attached:
        """Put a patch in: untrained (it changes nothing yet), or with `tensors`. Trainable: its weights stay float32
        and are cast at every call; otherwise they take the base's dtype once."""
        with self._lock:
            if name in self._applied:
                raise PatchError(name, "a patch of this name is applied already", "remove it, or give another name=")
            # Initial values are drawn from torch's global generator when they are kept, and only then.
            with torch.random.fork_rng(devices=[], enabled=tensors is not None):
                attached = Attached(config, self.host)
            if tensors is not None:
                attached.load(tensors)
            dtype = torch.float32 if trainable else self.host.dtype
            attached.to(device=self.host.device, dtype=dtype).requires_grad_(trainable).eval()
            attached.enter(self.host)
            self._applied[name] = attached, report or _report_of(name, attached)
        return attached

    def trainable(self, name: str) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of a patch by part, "fusion" and "lora"."""
        attached, _ = self._found(name)
        parts: dict[str, dict[str, nn.Parameter]] = {"fusion": {}, "lora": {}}
        for path, parameter in attached.named_parameters():
            parts[path.partition(".")[0]][path] = parameter
        return parts

    def calibrate(self, name: str, clips: Sequence[ClipFeatures]) -> None:
        """Scale the untrained fusions to the visual tokens of some clips."""
        tokens = torch.cat([rearrange(clip.tokens, "t s d -> (t s) d") for clip in clips])
        for fusion in self._found(name)[0].fusion.values():
            fusion.calibrate(tokens.float())

    @contextmanager
    def training(self, name: str) -> Iterator[None]:
        """Within the block the patch is in training mode (dropout); the base stays in eval mode."""
        attached, _ = self._found(name)
        attached.train()
        try:
            yield
        finally:
            attached.eval()

    def checkpoint_activations(self, enable: bool = True) -> None:
        """Recompute the language model's layers in the backward pass instead of keeping them. Hugging Face does this
        in train mode only, so the decoder's flag follows `enable`."""
        words = {"use_reentrant": False, "context_fn": recompute_context}
        if enable:
            on = getattr(self.base, "activation_checkpointing_enable", None) or self.base.gradient_checkpointing_enable
            on(words)
        else:
            off = (
                getattr(self.base, "activation_checkpointing_disable", None) or self.base.gradient_checkpointing_disable
            )
            off()
        self.host.language_model.train(enable)

    # Four steps: (Clip.read), encode, prepare, forward or generate

    def encoder(self, sense: SenseConfig) -> Encoder:
        """The frozen encoder of a sense; built once."""
        key = f"{sense.encoder} {sorted(sense.options.items())}"
        with self._lock:
            if key not in self._encoders:
                self._encoders[key] = load_encoder(sense.encoder, **sense.options)
            return self._encoders[key]

    @torch.no_grad()
    def encode(
        self, clips: Sequence[Clip], senses: Sequence[SenseConfig] | None = None, chunk: int | None = None
    ) -> list[ClipFeatures]:
        """What frozen networks see and hear in clips: one vision pass for all, one pass of each encoder per clip.
        `senses` defaults to those of the applied patches; `chunk` bounds the frames of one vision pass."""
        if senses is None:
            with self._lock:
                senses = [sense for attached, _ in self._applied.values() for sense in attached.config.senses.values()]
        encoders = {each.spec.preprocessing: each for each in map(self.encoder, senses)}
        visual = self.host.encode([self.host.pixels(clip) for clip in clips], [_times(clip) for clip in clips], chunk)
        features = []
        for i, clip in enumerate(clips):
            count = int(visual.frames[i])
            sides = {key: encoder.encode(clip) for key, encoder in encoders.items()}
            absent = {key: _why(clip, encoders[key]) for key, side in sides.items() if side is None}
            parts = (visual.vision[i, :count], visual.tokens[i, :count], visual.times[i, :count])
            features.append(ClipFeatures(*parts, sides, absent))
        return features

    def encode_clip(self, clip: Clip, senses: Sequence[SenseConfig] | None = None) -> ClipFeatures:
        """One clip, as CPU tensors for a cache."""
        return self.encode([clip], senses)[0].to("cpu")

    def prepare(
        self,
        clips: Sequence[ClipFeatures | Clip],
        questions: Sequence[str],
        *,
        patches: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> Inputs:
        """Rows of one batch: a question about a clip each. `patches`: names for all rows, or one list per row; None:
        all that are enabled. Patches and weights are those of this moment."""
        if len(clips) != len(questions) or not clips:
            raise ValueError(f"{len(clips)} clips and {len(questions)} questions; give one clip for every question")
        wanted = self._wanted(patches, len(clips))
        features = self._features(clips)
        with self._lock:
            names = [name for name in self._applied if any(name in row for row in wanted)]
            found = {name: self._applied[name] for name in names}
        uses = []
        for name, (attached, report) in found.items():
            rows = torch.tensor([name in row for row in wanted])
            uses.append(Use(name, attached, report.weight, rows, sides_of(attached, features)))
        layouts = [layout(self.host, [found[name][0] for name in names if name in row]) for row in wanted]
        ids, mask = tokenise(self.host, features, questions, layouts)
        return Inputs(ids, mask, _stack(features), tuple(uses), tuple(newline for newline, _ in layouts))

    def inputs(
        self,
        clips: Sequence[ClipFeatures],
        patches: Sequence[str],
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
    ) -> Inputs:
        """Rows that the caller has laid out himself, with `host.rows_of` placeholders for every clip."""
        found = {name: self._found(name) for name in patches}
        rows = torch.ones(len(clips), dtype=torch.bool)
        uses = tuple(Use(n, each, report.weight, rows, sides_of(each, clips)) for n, (each, report) in found.items())
        newline, _ = layout(self.host, [attached for attached, _ in found.values()])
        return Inputs(input_ids, attention_mask, _stack(clips), uses, (newline,) * len(clips), position_ids)

    def fused_tokens(self, inputs: Inputs) -> Tensor:
        """Visual tokens (b t s d) plus what each patch adds on the rows that sense something. All patches look at the
        base's own tokens; other rows keep theirs exactly."""
        visual = inputs.visual.to(self.host.device, self.host.dtype)
        total = visual.tokens
        for use in self._live(inputs):
            for sense, side in use.sides.items():
                rows = use.sensing & side.present.cpu()
                if rows.any():
                    update = use.attached.update(sense, visual, side) * use.weight
                    chosen = rearrange(rows.to(total.device), "b -> b 1 1 1")
                    total = total + update if rows.all() else torch.where(chosen, total + update, total)
        return total

    def forward(self, inputs: Inputs, *, labels: Tensor | None = None, logits_to_keep: int | Tensor = 0) -> ModelOutput:
        """One pass of the base with its patches: a Hugging Face output with `logits` (b l vocabulary)."""
        with self._calling(inputs):
            return self.base(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=inputs.attention_mask.to(self.host.device),
                position_ids=inputs.positions().to(self.host.device),
                mm_encoder_outputs=self.host.outputs(self._rows(inputs)),
                labels=None if labels is None else labels.to(self.host.device),
                logits_to_keep=logits_to_keep,
                use_cache=False,
            )

    @torch.no_grad()
    def generate(self, inputs: Inputs, **options: Any) -> Any:
        """The base's own generate(), with Hugging Face's options; returns what it returns, prompt included."""
        if inputs.attention_mask.dim() != 2:
            raise ValueError(
                f"generate needs a mask (b l), got {tuple(inputs.attention_mask.shape)}; one question per row"
            )
        options.setdefault("eos_token_id", self.host.stops)
        options.setdefault("pad_token_id", self.host.pad)
        with self._calling(inputs):
            return self.base.generate(
                input_ids=inputs.input_ids.to(self.host.device),
                attention_mask=inputs.attention_mask.to(self.host.device),
                mm_encoder_outputs=self.host.outputs(self._rows(inputs)),
                **options,
            )

    def _live(self, inputs: Inputs) -> tuple[Use, ...]:
        return () if id(self) in _off.get() else inputs.uses

    @contextmanager
    def _calling(self, inputs: Inputs) -> Iterator[None]:
        """Hold the patches of a call in place and open their LoRAs for its rows."""
        uses = self._live(inputs)
        gates = {use.attached.lora: use.gate() for use in uses if use.attached.lora is not None}
        with ExitStack() as held:
            for use in uses:
                use.attached.begin()
                held.callback(use.attached.end)
            with running({lora: gate for lora, gate in gates.items() if gate.weights.any()}):
                yield

    def _rows(self, inputs: Inputs) -> Tensor:
        """Packed visual rows (b v d), shorter ones behind zero rows; or all rows in line (1 v d) when the prompts hold
        no spare placeholders."""
        fused = self.fused_tokens(inputs)
        newline: Sequence[Newline] = inputs.newline or ("end",) * len(fused)
        counts = inputs.visual.frames.tolist()
        rows = [self.host.pack(fused[i, :count], newline[i]) for i, count in enumerate(counts)]
        held = (inputs.input_ids == self.host.placeholder).sum(-1).tolist()
        lengths = [len(row) for row in rows]
        if held == [max(lengths)] * len(rows):
            return pad_sequence(rows, batch_first=True, padding_side="left")
        if held == lengths:
            return torch.cat(rows)[None]
        raise ValueError(f"the prompts hold {held} visual placeholders, the clips need {lengths}; use prepare()")

    def _wanted(self, patches: Sequence[str] | Sequence[Sequence[str]] | None, rows: int) -> list[tuple[str, ...]]:
        """Names of patches per row."""
        if patches is None:
            enabled = tuple(name for name, report in self.patches.items() if report.enabled)
            return [enabled] * rows
        if isinstance(patches, str):
            patches = [patches]
        if all(isinstance(name, str) for name in patches):
            wanted = [tuple(map(str, patches))] * rows
        else:
            wanted = [tuple(row) for row in patches]
        if len(wanted) != rows:
            raise ValueError(f"{len(wanted)} lists of patches for {rows} rows; give one per row, or names for all")
        for name in {name for row in wanted for name in row}:
            self._found(name)
        return wanted

    def _features(self, clips: Sequence[ClipFeatures | Clip]) -> list[ClipFeatures]:
        """Encode what is not encoded yet, each clip once."""
        fresh = {id(clip): clip for clip in clips if isinstance(clip, Clip)}
        seen = dict(zip(fresh, self.encode(list(fresh.values())), strict=True)) if fresh else {}
        return [clip if isinstance(clip, ClipFeatures) else seen[id(clip)] for clip in clips]


def checked_weight(weight: float) -> float:
    """A finite number."""
    if not -1e3 < weight < 1e3:  # also refuses NaN
        raise ValueError(f"weight={weight} of a patch; 1 is as trained, 0 is off, useful values lie between 0 and 2")
    return float(weight)


def _stack(clips: Sequence[ClipFeatures]) -> Visual:
    return Visual.stack([(clip.vision, clip.tokens, clip.times) for clip in clips])


def _times(clip: Clip) -> Tensor:
    if clip.times is None:
        raise SignalError("the clip's frames have no times; give Clip.from_frames(frames, times=seconds)")
    return clip.times


def _why(clip: Clip, encoder: Encoder) -> str:
    """Why an encoder found nothing to read."""
    return f"absent: no {encoder.spec.sense} track"


def _report_of(name: str, attached: Attached) -> PatchReport:
    parts = {
        part: sum(p.numel() for n, p in attached.named_parameters() if n.startswith(part))
        for part in ("fusion", "lora")
    }
    return PatchReport(
        name=name,
        source="attached for training",
        sha256="",
        bytes=sum(value.nbytes for value in attached.state_dict().values()),
        params=sum(parts.values()),
        fusion_params=parts["fusion"],
        lora_params=parts["lora"],
        senses={sense: facts.encoder for sense, facts in attached.config.senses.items()},
        base_match="made for this base",
    )
