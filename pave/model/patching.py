"""Patches of a model: applied, reported on, weighed, trained, exported, and taken off again without a trace.

In: a patch by name, folder, file or value; or a config to train. Out: a report, or the trainable parameters. LoRA is
never merged into the base (merging and unmerging in bfloat16 changes weights). Knows nothing of media and questions.

t key frames, s visual tokens per key frame, d channels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from pave.config import PatchConfig
from pave.encoder import missing
from pave.errors import PatchError, PatchMismatch
from pave.hub.locate import locate, refuse_revision
from pave.model.inputs import ClipFeatures
from pave.model.steps import Steps
from pave.patch import filenames
from pave.patch.attached import Attached
from pave.patch.base_match import base_match, refuse_misfit
from pave.patch.file import Patch
from pave.patch.lora import recompute_context
from pave.patch.peft import load_peft
from pave.patch.report import PatchReport


class Patching(Steps):
    """A base and the patches that go in and come off."""

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's weights under its own names, whatever is attached."""
        return self.base.state_dict()

    # Patches on and off

    def apply_patch(
        self,
        source: str | Path | Patch,
        *,
        name: str | None = None,
        revision: str | None = None,
        weight: float = 1.0,
        strict: bool = True,
    ) -> PatchReport:
        """Put a patch in: a name of the catalogue, `user/repo` on the Hub, a folder, a file, or a `Patch`.

        revision: branch, tag or commit on the Hub, as in `user/repo@revision`.
        strict: refuse a patch that was made for other weights of the same dimensions.
        """
        patch, found = self.find_patch(source, revision)
        name = name or patch.config.name
        facts = {"weight": checked_weight(patch.config, name, weight), **self._vetted(patch, found, strict)}
        self.attach(name, patch.config, self._weights(patch), trainable=False, source=patch.source, **facts)
        return self.patches[name]

    def swap_patch(
        self, name: str, source: str | Path | Patch, *, revision: str | None = None, strict: bool = True
    ) -> PatchReport:
        """Put another patch in the place of `name`, which keeps its weight and its switch. Questions that have been
        prepared end with the version they began with; a compiled base compiles nothing anew for equal shapes."""
        patch, found = self.find_patch(source, revision)
        facts = self._vetted(patch, found, strict)
        fresh = self._built(patch.config, self._weights(patch), patch.source, trainable=False)
        with self._lock:
            old, before = self._found(name)
            checked_weight(patch.config, name, before.weight)
            report = PatchReport.of(
                name, fresh, source=patch.source, weight=before.weight, enabled=before.enabled, **facts
            )
            fresh.enter(self._loras)
            self._applied[name] = fresh, report
        old.give_way()
        return report

    def find_patch(self, source: str | Path | Patch, revision: str | None = None) -> tuple[Patch, str]:
        """A patch by what it is called (catalogue, alias, folder, file, or `user/repo@revision` on the Hub), and so a
        plain LoRA in a folder of PEFT's; and a remark on how it was found."""
        if isinstance(source, Patch):
            refuse_revision(source.source, "is a patch in memory", revision)
            return source, ""
        place = locate(source, revision, self.host.dim, self.host.model_type)
        if filenames.is_peft(place.path):
            return replace(load_peft(place.path, self.host), source=place.source), place.remark
        return place.load(), place.remark

    def _weights(self, patch: Patch) -> dict[str, Tensor]:
        """A patch's tensors as the model will use them, or in more bits."""
        return patch.weights(self.host.dtype if patch.config.fusion.precision == "base" else torch.float32)

    def _vetted(self, patch: Patch, found: str, strict: bool) -> dict[str, Any]:
        """Facts of a patch for its report, once it is known to be sound and to belong here."""
        refuse_misfit(patch, self.host)
        match = base_match(patch.config, self.host, patch.source, strict)
        remarks = (*([found] if found else []), *self._remarks(patch.config, patch.source))
        return {"base_match": match, "remarks": remarks, "sha256": patch.sha256, "bytes": patch.nbytes}

    def remove_patch(self, name: str) -> None:
        """Take a patch off; calls that run with it end first. The base is then as if it had never been there."""
        with self._lock:
            attached, _ = self._found(name)
            del self._applied[name]
        attached.leave()

    def set_weight(self, name: str, weight: float) -> None:
        """How strongly a patch acts, from the next call on; 1 as trained, 0 not at all."""
        self._change(name, weight=checked_weight(self._found(name)[0].config, name, weight))

    def enable(self, name: str) -> None:
        """Let a patch act again on questions that name no patches."""
        self._change(name, enabled=True)

    def disable(self, name: str) -> None:
        """Keep a patch applied, but use it only where a question names it."""
        self._change(name, enabled=False)

    def _change(self, name: str, **fields: Any) -> None:
        with self._lock:
            attached, report = self._found(name)
            self._applied[name] = attached, replace(report, **fields)

    def _remarks(self, config: PatchConfig, source: str) -> tuple[str, ...]:
        """What a user should know; an encoder that has become another one since the training is refused. Without its
        encoder, a patch still reads features that somebody brings along."""
        remarks = []
        for sense, facts in config.senses.items():
            if lacking := missing(facts.encoder):
                remarks.append(f"{lacking}; {sense} is perceived only where ClipFeatures hold it as SideTokens")
                continue
            spec = self.encoder(facts).spec
            if spec.dim != facts.dim or spec.preprocessing != facts.preprocessing:
                cause = f"its {sense} was trained on {facts.encoder} {facts.revision} ({facts.dim} channels)"
                remedy = f"this one is {spec.revision} ({spec.dim} channels); use the version of PAVE that trained it"
                raise PatchMismatch(source, cause, remedy)
        if config.base.frames != self.host.frames:
            remarks.append(f"trained with {config.base.frames} key frames, this base looks at {self.host.frames}")
        here = {report.sha256 for report in self.patches.values()}
        below = config.training.get("on_top_of")
        for name, sha256 in below.items() if isinstance(below, dict) else ():
            if sha256 not in here:
                remarks.append(f"trained on top of {name} (sha256 {str(sha256)[:16]}), which is not applied here")
        return tuple(remarks)

    # A patch in training

    def attach(
        self,
        name: str,
        config: PatchConfig,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        trainable: bool = True,
        source: str = "memory",
        **facts: Any,
    ) -> Attached:
        """Put a patch in: untrained (it changes nothing yet), or with `tensors`. Trainable: its weights stay float32
        and are cast at every call; otherwise they take the base's dtype once. `facts`: what the report shall say."""
        if "base_match" not in facts:
            facts["base_match"] = base_match(config, self.host, source, strict=False)
        with self._lock:
            if name in self._applied:
                raise PatchError(name, "a patch of this name is applied already", "remove it, or give another name=")
            attached = self._built(config, tensors, source, trainable=trainable)
            attached.enter(self._loras)
            self._applied[name] = attached, PatchReport.of(name, attached, source=source, **facts)
        return attached

    def _built(
        self, config: PatchConfig, tensors: Mapping[str, Tensor] | None, source: str, *, trainable: bool
    ) -> Attached:
        """A patch that is ready to come in."""
        attached = Attached(config, self.host, blank=tensors is not None)
        if tensors is not None:
            attached.load({name: value.clone() if trainable else value for name, value in tensors.items()}, source)
        return attached.ready(trainable=trainable)

    def trainable(self, name: str) -> dict[str, dict[str, nn.Parameter]]:
        """The parameters of a patch by part: "resampler", "fusion" and "lora"."""
        parts: dict[str, dict[str, nn.Parameter]] = {"resampler": {}, "fusion": {}, "lora": {}}
        for path, parameter in self._found(name)[0].named_parameters():
            parts[path.partition(".")[0]][path] = parameter
        return parts

    def calibrate(self, name: str, clips: Sequence[ClipFeatures]) -> None:
        """Fit the untrained fusions, or the resampler before them, to what is seen and heard in some clips."""
        tokens = torch.cat([rearrange(clip.tokens, "t s d -> (t s) d") for clip in clips]).float()
        attached = self._found(name)[0]
        heard = {}
        for sense, facts in attached.config.senses.items():
            sides = [side for clip in clips if (side := clip.sides[facts.preprocessing]) is not None]
            found = [side.x[side.valid] for side in sides] or [tokens.new_zeros(0, facts.dim)]
            heard[sense] = torch.cat(found).float()
        if attached.resampler is not None:
            attached.resampler.calibrate(heard)
        for read in attached.fusion:
            fusion: Any = attached.fusion[read]
            fusion.calibrate(tokens, heard.get(read, tokens.new_zeros(0, 0)))  # a resampler has scaled what it makes

    @contextmanager
    def training(self, name: str) -> Iterator[None]:
        """Within the block the patch is in training mode (dropout); the base stays in eval mode."""
        attached = self._found(name)[0].train()
        try:
            yield
        finally:
            attached.eval()

    def export(self, name: str) -> Patch:
        """The patch as it is now, for `save`."""
        attached, _ = self._found(name)
        tensors = {path: value.detach().cpu().clone() for path, value in attached.state_dict().items()}
        return Patch(attached.config, tensors)

    def checkpoint_activations(self, enable: bool = True) -> None:
        """Recompute the language model's layers in the backward pass instead of keeping them. Hugging Face does so in
        train mode only, so the decoder's flag follows `enable`."""
        base: Any = self.base
        kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # the name before 5.23
        if enable:
            words = {"use_reentrant": False, "context_fn": recompute_context}
            getattr(base, f"{kind}_checkpointing_enable")(words)
        else:
            getattr(base, f"{kind}_checkpointing_disable")()
        self.host.language_model.train(enable)


def checked_weight(config: PatchConfig, name: str, weight: float) -> float:
    """A weight that this patch can have, or a ValueError."""
    if not isinstance(weight, Real) or not -1e3 < weight < 1e3:  # also refuses NaN
        raise ValueError(f"weight={weight!r} of patch {name}; 1 is as trained, 0 is off, useful ones lie within 0 to 2")
    if weight not in (0, 1) and config.fusion.combine != "add":
        raise ValueError(f"weight={weight}: {name} puts tokens beside the visual ones, which are there or not; 0 or 1")
    return float(weight)
