"""A frozen video LLM with patches: one call for users, and the steps behind it for researchers.

    model = pave.load("playroom")
    model.apply_patch("audio-playroom")
    model.ask("clip.mp4", "What do you hear?")

In: media and questions. Out: answers that say which patches gave them, and what was perceived. A model is three parts:
what is applied (applied.py), what frozen networks see and hear (perception.py), and the calls (call.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor, dtype
from transformers import PreTrainedModel

from pave.base import Host
from pave.config import PatchConfig, SenseConfig
from pave.encoder import Encoder
from pave.loading.base import Device, load_base
from pave.media.clip import Clip
from pave.model.answer import Answer, answers, pieces
from pave.model.applied import Applied, Names, checked_weight
from pave.model.applying import built, find_patch, fitted
from pave.model.call import Calls
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.layout import Layout
from pave.model.perception import Perception
from pave.model.rows import Rows, prepared
from pave.model.watch import MEMORY, Show
from pave.patch.attached import Attached
from pave.patch.base_match import base_match
from pave.patch.file import Patch
from pave.patch.report import PatchReport


def load(
    base: str | Path,
    *,
    dtype: str | dtype = "auto",
    device: Device | Mapping[str, Device] = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> PatchedModel:
    """Open a base: "playroom" (embedded, offline), a folder, or a Hub id.

    device: of all, or of each part by its path, as Hugging Face's device maps say it: "disk" is a place, too.
    quantize: "int8" or "nf4", for the linear layers of the language model. frames: key frames per clip."""
    return PatchedModel(load_base(base, dtype=dtype, device=device, quantize=quantize, frames=frames))


class PatchedModel:
    """A base, the patches that are applied to it, and answers."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.applied = Applied(host.language_model)
        self.perception = Perception(host)
        self.calls = Calls(host, self.applied, self.perception)

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself; a direct call of it is a call without patches."""
        return self.host.model

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's weights under its own names, whatever is attached."""
        return self.base.state_dict()

    # Questions

    def ask(
        self,
        clip: Any,
        question: str,
        *,
        patches: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        **signals: Any,
    ) -> Answer:
        """Ask one question about a clip: a path, a Clip, frames, or a picture.

        patches: names; None means all that are enabled. signals: further streams by name, as in `Clip.from_frames`;
        `audio=(samples, rate)` takes the place of the clip's own sound, `audio=None` drops it.
        """
        row = {"clip": clip, "question": question, "patches": patches, **signals}
        return self.ask_batch([row], max_new_tokens=max_new_tokens)[0]

    def ask_batch(self, rows: Rows, *, max_new_tokens: int = 32) -> list[Answer]:
        """Ask many questions at once: (clip, question), (clip, question, patches), or a mapping of clip, question,
        patches and signals. Rows may name different patches."""
        return answers(self.calls, prepared(self.calls, rows), max_new_tokens) if len(rows) else []

    def stream(
        self,
        clip: Any,
        question: str,
        *,
        patches: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        **signals: Any,
    ) -> Iterator[str]:
        """Ask one question; pieces of the answer come as they are made. Closing the iterator ends the generation."""
        row = {"clip": clip, "question": question, "patches": patches, **signals}
        return pieces(self.calls, prepared(self.calls, [row]).inputs, max_new_tokens)

    def watch(
        self,
        source: Any,
        *,
        rate: int | None = None,
        patches: Sequence[str] | None = None,
        last: float | None = None,
        memory: int = MEMORY,
    ) -> Show:
        """Watch pictures and sound as they come, and ask at any moment:

            with model.watch("kitchen.mp4") as show:
                for second in show:
                    ...
                    print(show.ask("What do you hear?"))

        source: a video file, which is read progressively; or an iterable of (frames, times, samples): pictures as in
            `Clip.from_frames`, their seconds, and the samples that follow on those before, the first of them at second
            0, at `rate` Hz. None stands for no pictures or no sound.
        patches: names of those that watch; None means all that are enabled, also when it is asked.
        last: seconds before a question that it is about; None: all that has come.
        memory: bytes that pictures may take, and each sense. What is more is thinned out, evenly over the past.

        After the whole of a file, `show.ask` answers as `ask(file)` does. What it reads is equal bit by bit for sound
        of the encoder's own rate until the first piece of it is finished, after 8 to 30 seconds, as the encoder says;
        then it is equal but for rounding, since an encoder is given other lengths. It is another thing once pictures
        or senses had to be thinned out, or a resampler did not wait any longer for one of its senses.
        Patches that read sound or dense frames can watch. For LanguageBind, `ask` spreads dense frames over the whole
        clip, as PAVE's authors do; here they come twice a second from the first picture on, so that what its patches
        see is nearly the same, not equal. Feed zeros for a time without sound: None leaves the sound's clock alone."""
        return Show(self.calls, source, rate=rate, patches=patches, last=last, memory=memory)

    # Patches on and off

    @property
    def patches(self) -> Mapping[str, PatchReport]:
        """What is applied, in order."""
        return self.applied.reports

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
        weight = checked_weight(patch.config, name, weight)
        fresh, facts = fitted(patch, found, self.perception, self.patches, strict)
        return self.applied.enter(name, fresh, weight=weight, **facts)

    def swap_patch(
        self, name: str, source: str | Path | Patch, *, revision: str | None = None, strict: bool = True
    ) -> PatchReport:
        """Put another patch in the place of `name`, which keeps its weight and its switch. Questions that have been
        prepared end with the version they began with; a compiled base compiles nothing anew for equal shapes."""
        patch, found = self.find_patch(source, revision)
        fresh, facts = fitted(patch, found, self.perception, self.patches, strict)
        return self.applied.swap(name, fresh, **facts)

    def find_patch(self, source: str | Path | Patch, revision: str | None = None) -> tuple[Patch, str]:
        """A patch by what it is called (catalogue, alias, folder, file, or `user/repo@revision` on the Hub), and so a
        plain LoRA in a folder of PEFT's; and a remark on how it was found."""
        return find_patch(source, revision, self.host)

    def remove_patch(self, name: str) -> None:
        """Take a patch off; calls that run with it end first. The base is then as if it had never been there."""
        self.applied.leave(name)

    def set_weight(self, name: str, weight: float) -> None:
        """How strongly a patch acts, from the next call on; 1 as trained, 0 not at all."""
        self.applied.set_weight(name, weight)

    def enable(self, name: str) -> None:
        """Let a patch act again on questions that name no patches."""
        self.applied.change(name, enabled=True)

    def disable(self, name: str) -> None:
        """Keep a patch applied, but use it only where a question names it."""
        self.applied.change(name, enabled=False)

    def patches_off(self) -> AbstractContextManager[None]:
        """Within the block, and in this thread only, the base answers, bit for bit."""
        return self.applied.off()

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
        match = base_match(config, self.host, source, strict=False)
        attached = built(config, tensors, self.host, source, trainable=trainable)
        self.applied.enter(name, attached, source=source, **{"base_match": match, **facts})
        return attached

    def attached(self) -> list[Attached]:
        """The modules of all applied patches, in order."""
        return self.applied.modules

    def export(self, name: str) -> Patch:
        """The patch as it is now, for `save`."""
        return self.applied.module(name).export()

    # The steps behind a question

    def encoder(self, sense: SenseConfig) -> Encoder:
        """The frozen encoder of a sense; built once."""
        return self.perception.encoder(sense)

    def encoders(self) -> list[Encoder]:
        """The frozen encoders of all applied patches, each once."""
        senses = [sense for attached in self.applied.modules for sense in attached.config.senses.values()]
        return list(self.perception.encoders(senses).values())

    def encode(
        self,
        clips: Sequence[Clip],
        senses: Sequence[SenseConfig | Encoder] | None = None,
        chunk: int | None = None,
    ) -> list[ClipFeatures]:
        """What frozen networks see and hear in clips: one vision pass for all, one pass of each encoder per clip.
        `senses` defaults to those of the applied patches; `chunk` bounds the frames of one vision pass."""
        return self.perception.encode(clips, self.encoders() if senses is None else senses, chunk)

    def encode_clip(self, clip: Clip, senses: Sequence[SenseConfig | Encoder] | None = None) -> ClipFeatures:
        """One clip, as CPU tensors for a cache."""
        return self.encode([clip], senses)[0].to("cpu")

    def prepare(
        self, clips: Sequence[ClipFeatures | Clip], questions: Sequence[str], *, patches: Names = None
    ) -> Inputs:
        """Rows of one batch: a question about a clip each. `patches`: names for all rows, or one list per row; None:
        all that are enabled. Patches and weights are those of this moment."""
        return self.calls.prepare(clips, questions, patches)

    def lay_out(self, clips: Sequence[ClipFeatures], patches: Names = None) -> Layout:
        """Rows whose texts you write yourself, around `layout.visual`, and hand to `layout.inputs`; `patches` as in
        `prepare`."""
        return self.calls.lay_out(clips, patches)

    def fused_tokens(self, inputs: Inputs) -> list[Tensor]:
        """Visual tokens (t s d) of each row, plus what patches add where they sense something."""
        return self.calls.fused_tokens(inputs)

    def forward(self, inputs: Inputs, *, labels: Tensor | None = None, logits_to_keep: int | Tensor = 0) -> Any:
        """One pass of the base with its patches: a Hugging Face output with `logits` (b l vocabulary)."""
        return self.calls.forward(inputs, labels, logits_to_keep)

    def generate(self, inputs: Inputs, **options: Any) -> Any:
        """The base's own generate(), with Hugging Face's options; returns what that returns, prompt included."""
        return self.calls.generate(inputs, **options)
