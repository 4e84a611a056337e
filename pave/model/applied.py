"""What is applied to a base: the patches in their order, how strongly each acts, and whether it is on.

In: patches whose modules are ready. Out: reports, and the patches that a call uses, as they are at this moment. Owns
the one lock of a model; a call holds no lock. Knows nothing of files, clips and prompts.
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

from pave.config import PatchConfig
from pave.errors import PatchError, PatchNotFound, UsageError, nearest
from pave.model.inputs import Use
from pave.patch.attached import Attached
from pave.patch.lora import Loras
from pave.patch.report import PatchReport

Names = str | Sequence[str] | Sequence[str | Sequence[str] | None] | None

_off: ContextVar[frozenset[int]] = ContextVar("pave_patches_off", default=frozenset())  # ids of `Applied`


class Applied:
    """The patches of one base, by name."""

    def __init__(self, language_model: nn.Module) -> None:
        self._loras = Loras(language_model)
        self._held: dict[str, tuple[Attached, PatchReport]] = {}
        self._lock = threading.RLock()

    # Patches on and off

    def enter(self, name: str, attached: Attached, **facts: Any) -> PatchReport:
        """Let a patch in, the last of all; `facts` are those of its report that its modules do not know."""
        with self._lock:
            self.refuse_taken(name)
            report = PatchReport.of(name, attached, **facts)
            attached.enter(self._loras)
            self._held[name] = attached, report
        return report

    def swap(self, name: str, fresh: Attached, **facts: Any) -> PatchReport:
        """Let a patch in in the place of `name`, whose weight and switch it takes over."""
        with self._lock:
            old, before = self.found(name)
            weight = checked_weight(fresh.config, name, before.weight)
            report = PatchReport.of(name, fresh, weight=weight, enabled=before.enabled, **facts)
            fresh.enter(self._loras)
            self._held[name] = fresh, report
        old.give_way()
        return report

    def leave(self, name: str) -> None:
        """Take a patch off; calls that run with it end first."""
        with self._lock:
            attached, _ = self.found(name)
            del self._held[name]
        attached.leave()

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of a patch's report, from the next call on."""
        with self._lock:
            attached, report = self.found(name)
            self._held[name] = attached, replace(report, **fields)

    def set_weight(self, name: str, weight: float) -> None:
        """How strongly a patch acts."""
        with self._lock:
            self.change(name, weight=checked_weight(self.module(name).config, name, weight))

    def refuse_taken(self, name: str) -> None:
        """PatchError where a patch has this name already."""
        if name in self._held:
            raise PatchError(name, "a patch of this name is applied already", "remove it, or give another name=")

    # What there is

    @property
    def reports(self) -> Mapping[str, PatchReport]:
        """The reports of all, in order."""
        with self._lock:
            return MappingProxyType({name: report for name, (_, report) in self._held.items()})

    @property
    def modules(self) -> list[Attached]:
        """The modules of all, in order."""
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
        """The patches that some row asks for, as they are at this moment; what they perceive is not known yet."""
        with self._lock:
            wanted = self.wanted(patches, rows)
            return [
                Use(name, attached, report.weight, asking, {})
                for name, (attached, report) in self._held.items()
                if (asking := torch.tensor([name in row for row in wanted])).any()
            ]

    def wanted(self, patches: Names, rows: int) -> list[tuple[str, ...]]:
        """Names of patches per row; a row of None asks for all that are enabled."""
        if id(self) in _off.get():
            return [()] * rows
        enabled = tuple(name for name, report in self.reports.items() if report.enabled)
        same = patches is None or isinstance(patches, str) or all(isinstance(name, str) for name in patches)
        each: Sequence[Any] = [patches] * rows if same else patches or ()
        if len(each) != rows:
            raise UsageError(f"{len(each)} lists of patches for {rows} rows; give one per row, or names for all")
        wanted: list[tuple[str, ...]] = [enabled if row is None else _tuple(row) for row in each]
        for name in {name for row in wanted for name in row}:
            self.found(name)
        return wanted

    def live(self, uses: tuple[Use, ...]) -> tuple[Use, ...]:
        """Those of a call's patches that act in this thread."""
        return () if id(self) in _off.get() else uses

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block, and in this thread only, no patch acts."""
        token = _off.set(_off.get() | {id(self)})
        try:
            yield
        finally:
            _off.reset(token)


def _tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def checked_weight(config: PatchConfig, name: str, weight: float) -> float:
    """A weight that this patch can have, or a UsageError."""
    if not isinstance(weight, Real) or not -1e3 < weight < 1e3:  # also refuses NaN
        raise UsageError(f"weight={weight!r} of patch {name}; 1 is as trained, 0 is off, useful ones lie within 0 to 2")
    if weight not in (0, 1) and config.fusion.combine != "add":
        raise UsageError(f"weight={weight}: {name} puts tokens beside the visual ones, which are there or not; 0 or 1")
    return float(weight)
