"""Applying a patch: found by its name, loaded, checked against the base, and added to what is applied.

In: a catalogue name, an alias, a folder, a file, `user/repo@revision`, or a patch in memory. Out: the report of the
applied patch; or a PatchError, before anything has changed. Knows nothing of clips and prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pave.ambient import neutral
from pave.base import Host
from pave.config import PatchConfig, SenseFacts
from pave.encoder import EncoderSpec, missing
from pave.errors import EncoderError, PatchMismatch
from pave.hub.locate import locate, refuse_revision
from pave.model.applied import Applied, checked_weight
from pave.model.perception import Perception
from pave.patch.attached import Attached
from pave.patch.base_match import base_match
from pave.patch.file import Patch
from pave.patch.filenames import is_peft
from pave.patch.peft import load_peft
from pave.patch.report import PatchReport
from pave.text.shown import quoted

RETAINED = 0.9  # of a patch's retention: below, it says so


@neutral()
def apply(
    applied: Applied,
    perception: Perception,
    source: str | Path | Patch,
    name: str | None,
    revision: str | None,
    weight: float,
    strict: bool,
    gate: bool,
) -> PatchReport:
    """Apply a patch under `name`, or under its own; see `PatchedModel.apply_patch`."""
    patch, remark = find_patch(source, revision, perception.host)
    name = name or patch.config.name
    weight = checked_weight(patch.config, name, weight)
    applied.refuse_taken(name)  # again in `enter`, under the lock; here before the base is hashed
    attached, facts = _fitted(patch, remark, perception, applied.reports, strict, gate)
    return applied.enter(name, attached, weight=weight, **facts)


@neutral()
def swap(
    applied: Applied,
    perception: Perception,
    name: str,
    source: str | Path | Patch,
    revision: str | None,
    strict: bool,
) -> PatchReport:
    """Replace the patch `name`; see `PatchedModel.swap_patch`."""
    patch, remark = find_patch(source, revision, perception.host)
    old = applied.module(name)
    gate = old.gated or not old.config.gate  # unless the caller has kept it open
    attached, facts = _fitted(patch, remark, perception, applied.reports, strict, gate)
    return applied.swap(name, attached, **facts)


def find_patch(source: str | Path | Patch, revision: str | None, host: Host) -> tuple[Patch, str]:
    """A patch by its name, path or repository, or a LoRA in a PEFT folder; and a remark on how it was found."""
    if isinstance(source, Patch):
        refuse_revision(source.source, "is a patch in memory", revision)
        return source, ""
    place = locate(source, revision, host.dim, host.model_type)
    if is_peft(place.path):
        return replace(load_peft(place.path, host), source=place.source), place.remark
    return place.load(), place.remark


def _fitted(
    patch: Patch, remark: str, perception: Perception, applied: Mapping[str, PatchReport], strict: bool, gate: bool
) -> tuple[Attached, dict[str, Any]]:
    """The modules of a patch, and the facts for its report. Hashing the base's weights is slow, so it comes last."""
    base = perception.host
    attached = Attached.of(patch, base)
    attached.gated = attached.gated and gate
    match = base_match(patch.config, base, patch.source, strict)
    remarks = [
        *filter(None, [remark]),
        *_remarks(patch.config, patch.source, perception, applied),
        *_forgets(patch, gate),
    ]
    facts = {"source": patch.source, "sha256": patch.sha256, "bytes": patch.nbytes}
    return attached, {"base_match": match, "remarks": tuple(remarks), **facts}


def _forgets(patch: Patch, gate: bool) -> Iterator[str]:
    """A remark on a patch that changes too many answers that it should not. `gate`: whether its gate is used."""
    whole = patch.retention.get("tokens", 1.0)
    if (tokens := whole if gate else patch.retention.get("ungated", whole)) < RETAINED:
        remedy = "train the patch again with train.keep=1" if gate or whole < RETAINED else "leave out gate=False"
        yield (
            f"it keeps only {tokens:.0%} of what the base says where no sense is needed (share of tokens); ask such "
            f"questions with patches=(), or {remedy}"
        )


@neutral()
def built(
    config: PatchConfig, tensors: Mapping[str, Tensor] | None, host: Host, source: str, *, trainable: bool
) -> Attached:
    """Modules of a config: untrained, so that they change nothing yet, or with `tensors`."""
    attached = Attached(config, host, blank=tensors is not None)
    if tensors is not None:
        attached.load({name: value.clone() if trainable else value for name, value in tensors.items()}, source)
    return attached.ready(trainable=trainable)


def _differences(facts: SenseFacts, spec: EncoderSpec) -> list[str]:
    """What an encoder has another value of than the one that a patch was trained with."""
    found = [(key, getattr(facts, key), getattr(spec, key)) for key in ("dim", "grid")]
    if spec.preprocessing != facts.preprocessing:  # of equal ones, a patch may leave out what is by default
        found += [(f"option {key}", facts.options.get(key, "none"), value) for key, value in spec.options.items()]
        found += [("revision", facts.revision, spec.revision)]
        different = any(there != here for _, there, here in found)
        found += [] if different else [("preprocessing", facts.preprocessing[:12], spec.preprocessing[:12])]
    return [f"{key} {quoted(there)} there, {quoted(here)} here" for key, there, here in found if there != here]


def _remarks(
    config: PatchConfig, source: str, perception: Perception, applied: Mapping[str, PatchReport]
) -> tuple[str, ...]:
    """Remarks for the report. PatchMismatch if an encoder has changed since the patch was trained; if an encoder is
    missing, the patch can still read precomputed features."""
    remarks = []
    for sense, facts in config.senses.items():
        if problem := missing(facts.encoder):
            remarks.append(f"{sense} is read only from ClipFeatures that hold its SideTokens: {problem}")
            continue
        try:
            spec = perception.encoder(facts).spec
        except EncoderError as error:
            remedy = "use the version of PAVE that trained it, or another patch"
            raise PatchMismatch(source, f"the encoder of its {sense} cannot be built ({error})", remedy) from None
        if chosen := facts.options.keys() - spec.options.keys():
            cause = f"its {sense} sets {', '.join(sorted(chosen))} of {facts.encoder}, which only its user may"
            raise PatchMismatch(source, cause, "do not use this patch, or remove the option from its config")
        if differences := _differences(facts, spec):
            cause = f"its {sense} was trained on another {facts.encoder}: {'; '.join(differences)}"
            raise PatchMismatch(source, cause, "use the version of PAVE that trained it, or train it again")
        remarks += perception.encoder(facts).lacking()
    frames = perception.host.frames
    if config.base.frames != frames:
        remarks.append(f"trained with {config.base.frames} key frames, this base uses {frames}")
    known = {report.sha256: report.gate for report in applied.values()}
    below = config.training.get("on_top_of")
    for name, sha256 in below.items() if isinstance(below, dict) else ():
        if sha256 not in known:
            remarks.append(f"trained on top of {name} (sha256 {str(sha256)[:16]}), which is not applied")
        elif known[sha256] == "on":
            remarks.append(f"trained on top of {name} without its gate; apply that with gate=False to have it so")
    return tuple(remarks)
