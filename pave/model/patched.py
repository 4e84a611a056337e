"""A frozen video LLM with patches: one call for users, and its separate steps for researchers.

    model = pave.load("playroom")
    model.apply_patch("audio-playroom")
    model.ask("clip.mp4", "What do you hear?")

In: media and questions. Out: answers, with the patches used and the signals read. A model has three parts: the applied
patches (applied.py), the frozen networks (perception.py), and the calls (call.py).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, dtype
from transformers import PreTrainedModel

from pave.base import Host
from pave.config import PatchConfig, SenseConfig
from pave.encoder import Encoder
from pave.errors import UsageError
from pave.explaining.explanation import Explanation
from pave.loading.base import Device, load_base
from pave.media.clip import Clip
from pave.media.decoding import Timeout
from pave.model.answer import Answer, Stream, answers
from pave.model.applied import Applied, Names
from pave.model.applying import apply, built, find_patch, swap
from pave.model.call import Calls
from pave.model.chat import Chat
from pave.model.conflict import conflict_of
from pave.model.explain import explain
from pave.model.inputs import ClipFeatures, Inputs
from pave.model.kept import Kept
from pave.model.layout import History, Layout
from pave.model.options import MOST, answering
from pave.model.perception import Perception
from pave.model.rows import Rows, parted, prepared
from pave.model.watch import MEMORY, Show
from pave.patch.attached import Attached
from pave.patch.base_match import base_match
from pave.patch.file import Patch
from pave.patch.report import PatchReport
from pave.text.shown import shown


def load(
    base: str | Path,
    *,
    dtype: str | dtype = "auto",
    device: Device | Mapping[str, Device] = "auto",
    quantize: str | None = None,
    frames: int | None = None,
) -> PatchedModel:
    """Open a base: "playroom" (embedded, offline), a folder, or a Hub id.

    device: one for all, or a mapping as in Hugging Face's device maps, path -> device; "disk" offloads.
    quantize: "int8" or "nf4", for the linear layers of the language model. frames: key frames per clip."""
    return PatchedModel(load_base(base, dtype=dtype, device=device, quantize=quantize, frames=frames))


class PatchedModel:
    """A base with patches, ready to answer questions."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.applied = Applied(host.language_model)
        self.perception = Perception(host)
        self.calls = Calls(host, self.applied, self.perception)
        self.kept = Kept()  # by chats

    def __deepcopy__(self, memo: dict[int, Any]) -> PatchedModel:
        """A model with a base and patches of its own. UsageError if parts of the base are on disk."""
        if "disk" in getattr(self.base, "hf_device_map", {}).values():
            cause = "parts of the base are in files that are deleted with this model, so it cannot be copied"
            raise UsageError(f"{cause}; load it again with pave.load")
        model = PatchedModel(deepcopy(self.host, memo))
        for name, report in self.patches.items():
            model.applied.enter(name, self.applied.module(name).twin(model.host), **report.facts)
        return model

    def __reduce_ex__(self, protocol: Any) -> Any:
        remedy = "load it again with pave.load there, and apply patches from export(name).save(path)"
        raise UsageError(f"a model cannot be pickled, since its base holds hooks that cannot; {remedy}")

    def __repr__(self) -> str:
        base = self.host.repo or os.path.basename(str(self.base.name_or_path)) or "a model"
        size = sum(each.numel() for each in self.base.parameters())
        placed = f"{size / 1e6:,.1f} M parameters, {str(self.host.dtype).removeprefix('torch.')} on {self.host.device}"
        states = ((name, each.weight, "" if each.enabled else ", off") for name, each in self.patches.items())
        patches = [f"{name} (weight {weight:g}{off})" for name, weight, off in states]
        return shown(f"PatchedModel({base}: {self.host.model_type}, {placed}; {', '.join(patches) or 'no patches'})")

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself; calling it directly runs no patch, and a copy of it has none."""
        return self.host.model

    def base_state_dict(self) -> dict[str, Tensor]:
        """The base's weights under their original names; patches are not included."""
        return self.base.state_dict()

    # Questions

    def ask(
        self,
        clip: Any = None,
        question: str = "",
        *,
        patches: Sequence[str] | None = None,
        history: History = (),
        max_new_tokens: int = MOST,
        timeout: Timeout = "auto",
        audio_track: int | None = None,
        video_track: int | None = None,
        conflict: bool = False,
        **signals_and_options: Any,
    ) -> Answer:
        """Ask one question about a clip: a path, a Clip, its features, frames, or a picture; or about `audio=` alone.

        patches: names; None means all that are enabled.
        history: earlier turns of the dialogue, [(question, answer), …].
        timeout, audio_track, video_track: how a file is read, as in `Clip.read`.
        conflict: also whether pictures and signals contradict each other, as `Answer.conflict`: 0 to 1, or None if
        there is only one of them. The question is asked three more times: of each alone, and of neither.
        signals_and_options: further streams by name, as in `Clip.from_frames`; `audio=(samples, rate)` or the path of a
        file replaces the clip's own sound, `audio=None` drops it. And options of Hugging Face's `generate` by name,
        such as `temperature=0.7`, which turns sampling on; without any, answers are greedy.

        A file that is damaged, cut short or ambiguous: a `MediaWarning`, and `Answer.warnings`. An answer that is cut
        by `max_new_tokens`: `Answer.finish_reason` is "length".
        """
        signals, options = parted(self.calls, signals_and_options)
        row = {"clip": clip, "question": question, "patches": patches, "history": history, **signals}
        row |= {"audio_track": audio_track, "video_track": video_track}
        asked = prepared(self.calls, [row], timeout, answering(max_new_tokens, options))
        answer = answers(self.calls, asked)[0]
        if conflict:
            answer.conflict = conflict_of(self.calls, asked, question, history, answer)
        return answer

    def ask_batch(
        self, rows: Rows, *, max_new_tokens: int = MOST, timeout: Timeout = "auto", **options: Any
    ) -> list[Answer]:
        """Ask many questions in one batch: (clip, question), (clip, question, patches), or a mapping of clip, question,
        patches, history, audio_track, video_track and signals. Rows may name different patches. timeout: of each file.
        options: of Hugging Face's `generate`, for all rows."""
        checked = answering(max_new_tokens, options)
        if isinstance(rows, Collection) and not len(rows):
            return []
        return answers(self.calls, prepared(self.calls, rows, timeout, checked))

    def stream(
        self,
        clip: Any = None,
        question: str = "",
        *,
        patches: Sequence[str] | None = None,
        history: History = (),
        max_new_tokens: int = MOST,
        timeout: Timeout = "auto",
        audio_track: int | None = None,
        video_track: int | None = None,
        **signals_and_options: Any,
    ) -> Stream:
        """`ask`, but an iterator over the pieces of the answer as it is generated; then `answer` is all of it. Closing
        the stream stops the generation."""
        signals, options = parted(self.calls, signals_and_options)
        row = {"clip": clip, "question": question, "patches": patches, "history": history, **signals}
        row |= {"audio_track": audio_track, "video_track": video_track}
        return Stream(self.calls, prepared(self.calls, [row], timeout, answering(max_new_tokens, options)))

    def chat(
        self,
        clip: Any = None,
        *,
        patches: Sequence[str] | None = None,
        history: History = (),
        timeout: Timeout = "auto",
        audio_track: int | None = None,
        video_track: int | None = None,
        **signals: Any,
    ) -> Chat:
        """A dialogue about one clip, whose further questions cost little more than their own tokens:

            chat = model.chat("kitchen.mp4", patches=["audio-avsd"])
            chat.ask("What do you hear?")
            chat.ask("And before that?")

        The arguments are those of `ask`; without names, each question uses all patches that are enabled by then.
        Answers are those of `ask` with the same history. The clip is read, seen and encoded here, and keys and values
        are kept from question to question: in `kept`, whose `limit` (bytes) bounds what all chats of this model keep.
        """
        row = {"clip": clip, "patches": patches, "history": history, **signals}
        row |= {"audio_track": audio_track, "video_track": video_track}
        return Chat(self.calls, self.kept, row, timeout)

    def explain(
        self,
        clip: Any = None,
        question: str = "",
        *,
        patches: Sequence[str] | None = None,
        max_new_tokens: int = MOST,
        timeout: Timeout = "auto",
        audio_track: int | None = None,
        video_track: int | None = None,
        **signals: Any,
    ) -> Explanation:
        """`ask`, and see why: which side tokens each key frame read, and which seconds the answer depends on.

        A second is cited if the answer changes, or is less than half as likely, once it is silenced, and not once
        another second drawn by lot is. That takes a pass of the base for every half second, at most 63 for each sense;
        in clips longer than 32 s, windows are longer than a second. What matters for less than half a window is whole
        in one; an answer that depends on several moments at once may have none that it is cited for.

        Seconds of tokens without times (a scan) cannot be deleted, and tokens that a patch inserts into the prompt are
        not read by key frames: `Explanation.missing` says so."""
        row = {"clip": clip, "question": question, "patches": patches, **signals}
        row |= {"audio_track": audio_track, "video_track": video_track}
        return explain(self.calls, row, timeout, answering(max_new_tokens, {}))

    def watch(
        self,
        source: Any,
        *,
        rate: int | None = None,
        patches: Sequence[str] | None = None,
        last: float | None = None,
        memory: int = MEMORY,
        audio_track: int | None = None,
        video_track: int | None = None,
    ) -> Show:
        """Read pictures and sound incrementally, and ask at any moment:

            with model.watch("kitchen.mp4") as show:
                for second in show:
                    ...
                    print(show.ask("What do you hear?"))

        source: a video or sound file, which is read progressively; or an iterable of (frames, times, samples): pictures
            as in `Clip.from_frames`, their seconds, and samples at `rate` Hz that continue those of the previous chunk;
            the first sample is second 0. None means no pictures or no sound in this chunk.
        patches: names of the patches to run; None means all that are enabled, both now and when a question is asked.
        last: a question covers this many seconds before it; None: everything so far.
        memory: bytes for pictures, and for each sense. Beyond that, the past is thinned out evenly.
        audio_track, video_track: of a file, as in `Clip.read`; its sound is decoded only if a patch hears it, and there
            is no time limit.

        A stream that has only sound (a microphone, a sound file) can be asked about with patches that were trained for
        sound alone, as `ask("speech.wav", question)` can; the current second is then that of the sound. From the first
        picture on it is a film, whose sound may have begun earlier.

        After a whole file, `show.ask` answers as `ask(file)` does. Side tokens are bit-identical for sound at the
        encoder's own rate until its first piece is complete (8 to 30 seconds, depending on the encoder); after that
        they are equal up to rounding, since the encoder runs on other lengths. They differ once pictures or senses
        have been thinned out, or once a resampler has stopped waiting for one of its senses.
        Works with patches that read sound or dense frames. For LanguageBind, `ask` spreads dense frames over the whole
        clip, as the PAVE paper's authors do; here they are taken twice a second from the first picture on, so its
        tokens are similar, not equal. Pass zeros for silence: None does not advance the sound's clock."""
        tracks = {"audio_track": audio_track, "video_track": video_track}
        tracks = {name: number for name, number in tracks.items() if number is not None}
        return Show(self.calls, source, rate=rate, patches=patches, last=last, memory=memory, tracks=tracks)

    # Patches

    @property
    def patches(self) -> Mapping[str, PatchReport]:
        """Reports of the applied patches, in order."""
        return self.applied.reports

    def apply_patch(
        self,
        source: str | Path | Patch,
        *,
        name: str | None = None,
        revision: str | None = None,
        weight: float = 1.0,
        strict: bool = True,
        gate: bool = True,
    ) -> PatchReport:
        """Apply a patch: a name of the catalogue, `user/repo` on the Hub, a folder, a file, or a `Patch`.

        revision: branch, tag or commit on the Hub, as in `user/repo@revision`.
        strict: refuse a patch that was trained on other weights of the same dimensions.
        gate: whether its gate, if it has one, leaves questions that are not about the clip to the base.
        """
        return apply(self.applied, self.perception, source, name, revision, weight, strict, gate)

    def swap_patch(
        self, name: str, source: str | Path | Patch, *, revision: str | None = None, strict: bool = True
    ) -> PatchReport:
        """Replace the patch `name`; the new one takes over its weight, whether it is enabled, and whether its gate is
        used. Prepared questions finish with the old version; a compiled base is not recompiled for equal shapes."""
        return swap(self.applied, self.perception, name, source, revision, strict)

    def find_patch(self, source: str | Path | Patch, revision: str | None = None) -> tuple[Patch, str]:
        """A patch by its name, alias, folder, file or `user/repo@revision` on the Hub, or a LoRA in a PEFT folder; and
        a remark on how it was found."""
        return find_patch(source, revision, self.host)

    def remove_patch(self, name: str) -> None:
        """Remove a patch, after the running calls that use it have ended. Leaves no trace in the base."""
        self.applied.leave(name)

    def set_weight(self, name: str, weight: float) -> None:
        """Change the weight of a patch, from the next call on; 1 is as trained, 0 is off."""
        self.applied.set_weight(name, weight)

    def enable(self, name: str) -> None:
        """Use a patch again for questions that name no patches."""
        self.applied.change(name, enabled=True)

    def disable(self, name: str) -> None:
        """Keep a patch applied, but use it only for questions that name it."""
        self.applied.change(name, enabled=False)

    def patches_off(self) -> AbstractContextManager[None]:
        """Within the block, in this thread only, answers are those of the base, bit for bit."""
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
        """Apply a patch from its config: untrained (it changes nothing yet), or with `tensors`. Trainable weights stay
        float32 and are cast at every call; others are cast to the base's dtype once. facts: fields of the report."""
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

    # The steps of a question

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
        """Features of clips: one vision pass for all, one pass of each encoder per clip.
        `senses` defaults to those of the applied patches; `chunk` bounds the frames of one vision pass."""
        return self.perception.encode(clips, self.encoders() if senses is None else senses, chunk)

    def encode_clip(self, clip: Clip, senses: Sequence[SenseConfig | Encoder] | None = None) -> ClipFeatures:
        """One clip, as CPU tensors for a cache."""
        return self.encode([clip], senses)[0].to("cpu")

    def prepare(
        self,
        clips: Sequence[ClipFeatures | Clip],
        questions: Sequence[str],
        *,
        patches: Names = None,
        histories: Sequence[History] = (),
    ) -> Inputs:
        """Rows of one batch, each a question about a clip. `patches`: names for all rows, or one list per row; None:
        all that are enabled. `histories`: for each row, the questions and answers before its question. Later changes of
        patches and weights do not affect the result."""
        return self.calls.prepare(clips, questions, patches, histories)

    def lay_out(self, clips: Sequence[ClipFeatures], patches: Names = None) -> Layout:
        """Rows without texts: add token ids around `layout.visual` and pass them to `layout.inputs`. `patches` as in
        `prepare`."""
        return self.calls.lay_out(clips, patches)

    def fused_tokens(self, inputs: Inputs) -> list[Tensor]:
        """Visual tokens (t s d) of each row, plus the update of each patch that has a side channel there."""
        return self.calls.fused_tokens(inputs)

    def forward(
        self,
        inputs: Inputs,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: bool | None,
    ) -> Any:
        """One pass of the base with its patches: a Hugging Face output with `logits` (b l vocabulary), and `loss` with
        `labels` (b l), which has a gradient even where no row has the sense: zero.

        options: Hugging Face's output_hidden_states, output_attentions, output_router_logits, use_cache and
        return_dict; any other is a UsageError, as is one that the base ignores."""
        return self.calls.forward(inputs, labels, logits_to_keep, **options)

    def generate(self, inputs: Inputs, **options: Any) -> Any:
        """The base's own generate() with Hugging Face's options; returns its output, prompt included. An option that it
        does not have is a UsageError."""
        return self.calls.generate(inputs, **options)
