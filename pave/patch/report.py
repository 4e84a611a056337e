"""The report of an applied patch: its parts, its source, and whether it was made for this base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pave.patch.attached import Attached
from pave.text.shown import Lines

FUSING = ("carrier", "summary", "marker")  # parts that count as fusion: what stands for pictures, or is beside them
GATE = {
    "on": "questions that are not about the clip are left to the base",
    "off": "the patch acts on every question",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class PatchReport(Lines):
    """An applied patch: its parts, its source, and whether it was made for this base."""

    name: str
    source: str
    sha256: str
    bytes: int  # of the tensors
    params: int
    resampler_params: int
    fusion_params: int
    lora_params: int
    senses: Mapping[str, str]  # sense -> encoder
    base_match: str  # "exact", or the difference as text
    weight: float = 1.0
    enabled: bool = True
    gate: Literal["none", "on", "off"] = "none"  # on: questions that are not about the clip are left to the base
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, attached: Attached, **facts: Any) -> PatchReport:
        """The report of an applied patch; `facts`: fields that its modules do not hold."""
        sizes = Counter[str]()
        for path, parameter in attached.named_parameters():
            part = path.partition(".")[0]
            sizes["fusion" if part in FUSING else part] += parameter.numel()
        known = {
            "sha256": "",
            "bytes": sum(value.nbytes for value in attached.state_dict().values()),
            "gate": ("on" if attached.gated else "off") if attached.gate else "none",
            "senses": {sense: each.encoder for sense, each in attached.config.senses.items()},
        }
        parts = {f"{part}_params": sizes[part] for part in ("resampler", "fusion", "lora")}
        return cls(**{"name": name, "params": sum(sizes.values()), **parts, **known, **facts})

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that its modules do not hold, for `of`."""
        names = ("source", "sha256", "bytes", "base_match", "weight", "enabled", "remarks")
        return {name: getattr(self, name) for name in names}

    def lines(self) -> list[str]:
        senses = ", ".join(f"{sense} ({encoder})" for sense, encoder in self.senses.items()) or "no sense"
        state = "on" if self.enabled else "off"
        resampler = f"{self.resampler_params:,} resampler, " if self.resampler_params else ""
        return [
            f"patch {self.name}: {senses}; weight {self.weight:g}, {state}",
            f"  from {self.source}, sha256 {self.sha256[:16] or 'none yet'}",
            f"  {self.params:,} parameters ({resampler}{self.fusion_params:,} fusion, {self.lora_params:,} LoRA)"
            f", {self.bytes:,} bytes",
            *([f"  gate {self.gate}: {GATE[self.gate]}"] if self.gate != "none" else []),
            f"  base match: {self.base_match}",
            *(f"  note: {remark}" for remark in self.remarks),
        ]
