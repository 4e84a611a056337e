"""A patch as a module for other people's training loops: plain PyTorch, Hugging Face's Trainer, Lightning.

In: a model with a patch in training. Out: an `nn.Module` whose parameters are the patch's and whose forward takes
`Inputs`. Knows nothing of recipes, optimisers and files.

b rows, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pave.ambient import neutral
from pave.errors import UsageError
from pave.media.clip import Clip
from pave.model.call import bound
from pave.model.inputs import ClipFeatures, Inputs, refuse_other
from pave.model.layout import refuse_questions, refuse_uneven
from pave.model.patched import PatchedModel
from pave.packing.rows import Turn, collate, pack
from pave.patch.attached import Attached
from pave.training.gate import fit
from pave.training.trainee import calibrate, checkpoint_activations

CHECKPOINTING = {"use_reentrant": False, "every_n_layers": 1, "offload": False}  # what the Trainer passes on


def patch_module(model: PatchedModel, name: str) -> PatchModule:
    """The patch `name` of a model as a module to train. Its parameters, and the names in its `state_dict`, are those of
    the patch file; the base is not part of it, and its `to()` does not move the base.

    UsageError for a patch whose weights are frozen, as after apply_patch, and for a model that is not of pave.load."""
    if not isinstance(model, PatchedModel):
        raise UsageError(f"the model is a {type(model).__name__}; pass the one that pave.load returned")
    attached = model.applied.module(name)
    if not any(each.requires_grad for each in attached.parameters()):
        remedy = "apply it with model.attach(name, patch.config, patch.weights()), or without weights to start anew"
        raise UsageError(f"{name}: its weights are frozen; {remedy}")
    return PatchModule(model, name, attached)


class PatchModule(nn.Module):
    """A patch in training. In train() mode its dropout is active; the frozen base is always in eval mode."""

    def __init__(self, model: PatchedModel, name: str, attached: Attached) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.patch = (attached,)  # in a tuple, since a submodule would prefix the names of its parameters
        for part, child in attached.named_children():
            self.add_module(part, child)
        self.train(attached.training)

    @property
    def attached(self) -> Attached:
        """The patch's modules inside the model."""
        return self.patch[0]

    @neutral()
    def batch(
        self, clips: Sequence[Clip | ClipFeatures], questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Inputs, Tensor]:
        """Rows of clips with a question and its answer each, and labels (b l): the answers' tokens and the end of the
        turn. Encode clips once with model.encode, not in every epoch. UsageError for a text that the base does not
        take."""
        host, rows = self.model.host, []
        refuse_uneven(clip=clips, question=questions, answer=answers)
        refuse_questions(host, questions)  # before the clips are encoded
        for answer in answers:
            host.refuse_text(answer, "answer")
        layout = self.model.lay_out(self.encoded(clips))
        for visual, template, question, answer in zip(layout.visual, layout.templates, questions, answers, strict=True):
            before, after = host.prompt(question, template)
            rows.append(pack([*before, *visual], [Turn(after, [*host.encode_text(answer), host.end])]))
        tokens = collate(rows, host.pad)
        labels = tokens.pop("labels")
        return layout.inputs(**tokens), labels

    def encoded(self, clips: Sequence[Clip | ClipFeatures]) -> list[ClipFeatures]:
        """Features of clips for all patches of the model; those already encoded as they are."""
        return self.model.perception.features(clips, self.model.encoders())

    @neutral()
    def calibrate(self, clips: Sequence[Clip | ClipFeatures]) -> None:
        """Fit the scales of an untrained patch to some clips that have its senses; without it, learning takes several
        times as long. A patch with trained weights has its scales."""
        calibrate(self.attached, self.encoded(clips))

    @neutral()
    def fit_gate(self, questions: Sequence[str], kept: Sequence[str] = ()) -> float:
        """Fit the gate of the patch, at any time: it opens for `questions`, all that it was trained on, and for others
        about clips, and leaves those that need no clip to the base. `kept`: examples of these, if not the built-in
        ones. Returns the share of them that it leaves to the base. UsageError for a patch whose config has no gate, and
        without questions."""
        gate = self.attached.gate
        if gate is None:
            raise UsageError(f"{self.name}: its config has gate=False; attach it with gate=True")
        if isinstance(questions, str) or isinstance(kept, str) or not questions:
            raise UsageError("questions is empty, or one text; give a list of all questions that the patch learned")
        refuse_questions(self.model.host, [*questions, *kept])
        perception = self.model.perception
        encoders = perception.encoders(self.attached.config.senses.values()).values()
        return fit(gate, perception, encoders, questions, kept)["left_to_base"]

    def forward(self, inputs: Inputs, labels: Tensor | None = None) -> Any:
        """Hugging Face's output for rows prepared with this patch: `logits` (b l vocabulary), and with `labels` (b l)
        the `loss`, auxiliary losses of a resampler included. Both give every parameter a gradient, zero
        where no row has the sense. UsageError for inputs that do not use the patch."""
        refuse_other(inputs)
        if self.name not in (use.name for use in inputs.uses):
            used = ", ".join(use.name for use in inputs.uses) or "none"
            cause = f"these inputs do not use the patch {self.name} (they use {used})"
            raise UsageError(f"{cause}; enable it, or name it when you prepare them")
        apart = {str(each.device) for each in self.parameters()} - {str(self.model.host.device)}
        if apart:
            cause = f"the patch {self.name} is on {apart.pop()}, its base on {self.model.host.device}"
            raise UsageError(f"{cause}; load the base there: pave.load(..., device=...)")
        self.attached.aux_losses = {}
        uses = tuple(replace(use, attached=self.attached) if use.name == self.name else use for use in inputs.uses)
        outputs = self.model.forward(replace(inputs, uses=uses), labels=labels)
        outputs.logits = bound(outputs.logits, list(self.parameters()))
        if outputs.loss is not None and self.training:
            outputs.loss = sum(self.attached.aux_losses.values(), outputs.loss)
        return outputs

    def train(self, mode: bool = True) -> PatchModule:
        """Dropout of the patch; the base stays in eval mode."""
        self.attached.train(mode)
        return super().train(mode)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **options: Any) -> None:
        """Recompute the base's layers in the backward pass, as Hugging Face's Trainer asks for. UsageError for options
        other than use_reentrant=False."""
        for name, value in {**(gradient_checkpointing_kwargs or {}), **options}.items():
            if name not in CHECKPOINTING or value != CHECKPOINTING[name]:
                raise UsageError(f"activation checkpointing: {name}={value!r} is not supported; leave it out")
        checkpoint_activations(self.model)

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: Any = None, **options: Any) -> None:
        """The same, under the name of transformers 5.23 and later."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Store activations again."""
        checkpoint_activations(self.model, False)

    activation_checkpointing_disable = gradient_checkpointing_disable

    def __deepcopy__(self, memo: Any) -> PatchModule:
        """The patch with weights of its own, on the same base: for averages of weights, and for comparing runs."""
        return PatchModule(self.model, self.name, self.attached.twin())

    def __reduce_ex__(self, protocol: Any) -> Any:
        cause = f"{self.name}: a patch module belongs to its model and cannot be pickled"
        raise UsageError(f"{cause}; save its state_dict(), or model.export({self.name!r}).save(path)")
