"""The patches applied to a base, in order: the weight of each, and whether it is enabled.

In: patches whose modules are ready. Out: reports, and a snapshot of the patches that a call uses. Owns the only lock
of a model; a call holds no lock. Knows nothing of files, clips and prompts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pave.config import NAMED, PatchConfig
from pave.errors import PatchError, PatchNotFound, UsageError, nearest
from pave.model.inputs import Use
from pave.patch.attached import Attached
from pave.patch.lora import Loras
from pave.patch.report import PatchReport
from pave.text.shown import quoted

Names = str | Sequence[str] | Sequence[str | Sequence[str] | None] | None

_off: ContextVar[frozenset[int]] = ContextVar("pave_patches_off", default=frozenset())  # ids of `Applied`


class Applied:
    """The patches of one base, by name."""

    def __init__(self, language_model: nn.Module) -> None:
        self.language_model, self._loras = language_model, Loras(language_model)
        self._held: dict[str, tuple[Attached, PatchReport]] = {}
        self._lock = threading.RLock()

    # Changes

    def enter(self, name: str, attached: Attached, **facts: Any) -> PatchReport:
        """Append a patch; `facts` are the fields of its report that its modules do not provide."""
        with self._lock:
            self.refuse_taken(name)
            report = PatchReport.of(name, attached, **facts)
            attached.enter(self._loras)
            self._held[name] = attached, report
        return report

    def swap(self, name: str, fresh: Attached, **facts: Any) -> PatchReport:
        """Replace the patch `name`; the new one takes over its weight, and whether it is enabled."""
        with self._lock:
            old, before = self.found(name)
            weight = checked_weight(fresh.config, name, before.weight)
            report = PatchReport.of(name, fresh, weight=weight, enabled=before.enabled, **facts)
            fresh.enter(self._loras)
            self._held[name] = fresh, report
        old.give_way()
        return report

    def leave(self, name: str) -> None:
        """Remove a patch, after the running calls that use it have ended."""
        with self._lock:
            attached, _ = self.found(name)
            del self._held[name]
        attached.leave()  # outside the lock, since it waits for running calls

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of a patch's report; takes effect from the next call on."""
        with self._lock:
            attached, report = self.found(name)
            self._held[name] = attached, replace(report, **fields)

    def set_weight(self, name: str, weight: float) -> None:
        """Change the weight of a patch."""
        with self._lock:
            self.change(name, weight=checked_weight(self.module(name).config, name, weight))

    def refuse_taken(self, name: str) -> None:
        """Raise PatchError if no patch may have this name, or if one of this name is applied."""
        if not (isinstance(name, str) and NAMED.fullmatch(name.lower())):
            remedy = "use up to 96 letters a to z, digits, dots, dashes and underscores, a letter or digit first"
            raise PatchError(quoted(name), "cannot be the name of a patch", remedy)
        if name in self._held:
            raise PatchError(name, "a patch of this name is already applied", "remove it, or pass another name=")

    # State

    @property
    def reports(self) -> Mapping[str, PatchReport]:
        """The reports of all patches, in order."""
        with self._lock:
            return MappingProxyType({name: report for name, (_, report) in self._held.items()})

    @property
    def modules(self) -> list[Attached]:
        """The modules of all patches, in order."""
        with self._lock:
            return [attached for attached, _ in self._held.values()]

    def found(self, name: str) -> tuple[Attached, PatchReport]:
        """A patch and its report."""
        with self._lock:
            if name not in self._held:
                raise PatchNotFound(name, "no patch of this name is applied", nearest(name, self._held))
            return self._held[name]

    def module(self, name: str) -> Attached:
        """The modules of one patch."""
        return self.found(name)[0]

    # What a call uses

    def uses(self, patches: Names, rows: int) -> list[Use]:
        """A snapshot of the patches that some row requests; their `sides` are filled in later."""
        with self._lock:
            requested = self.wanted(patches, rows)
            return [
                Use(name, attached, report.weight, rows_of_name, {})
                for name, (attached, report) in self._held.items()
                if (rows_of_name := torch.tensor([name in row for row in requested])).any()
            ]

    def wanted(self, patches: Names, rows: int) -> list[tuple[str, ...]]:
        """Names of patches per row; None for a row means all enabled patches."""
        if id(self) in _off.get():
            return [()] * rows
        enabled = tuple(name for name, report in self.reports.items() if report.enabled)
        same = patches is None or isinstance(patches, str) or all(isinstance(name, str) for name in patches)
        each: Sequence[Any] = [patches] * rows if same else patches or ()
        if len(each) != rows:
            raise UsageError(
                f"got {len(each)} lists of patches for {rows} rows; pass one list per row, or names for all rows"
            )
        requested: list[tuple[str, ...]] = [enabled if row is None else _tuple(row) for row in each]
        for name in {name for row in requested for name in row}:
            self.found(name)
        return requested

    def live(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        """A call's patches as modules of this base, or none within `off()`."""
        return () if id(self) in _off.get() else tuple(map(self._here, uses))

    def _here(self, use: Use) -> Use:
        """A patch of another model or process as the one of equal content here; PatchNotFound if there is none."""
        if use.attached.host is not None and use.attached.host.language_model is self.language_model:
            return use
        content = use.attached.content
        own = next((attached for attached in self.modules if attached.content == content), None)
        if own is None:
            cause = "these inputs were prepared by another model, with a patch that is not applied to this one"
            raise PatchNotFound(use.name, cause, "apply the same patch here, or prepare the inputs with this model")
        return replace(use, attached=own)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable all patches within the block, in this thread only."""
        token = _off.set(_off.get() | {id(self)})
        try:
            yield
        finally:
            _off.reset(token)


def _tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def checked_weight(config: PatchConfig, name: str, weight: float) -> float:
    """The weight as a float; UsageError if this patch cannot have it."""
    if not isinstance(weight, Real) or not -1e3 < weight < 1e3:  # also refuses NaN
        raise UsageError(f"weight={weight!r} of patch {name}: must be a number within ±1000; 1 is as trained, 0 is off")
    if weight not in (0, 1) and config.fusion.combine != "add":
        raise UsageError(f"weight={weight}: {name} inserts tokens (combine: {config.fusion.combine}); use 0 or 1")
    return float(weight)
