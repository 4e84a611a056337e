"""The card of a patch on the Hub: its README with a reproducible example, and a check for private data.

In: a patch. Out: Markdown with YAML front matter, from the patch's own facts. Knows nothing of the Hub's client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pave.errors import PatchError
from pave.patch.filenames import HUB_NAME
from pave.text.shown import shown

if TYPE_CHECKING:
    from pave.patch.file import Patch

OURS = "<!-- This card was written by PAVE. Without this line, the next push leaves the card alone. -->"
# Private data: absolute paths, and prefixes of common access tokens.
PRIVATE = re.compile(
    r"(?:/home/|/root/|/Users/|/tmp/|/mnt/|[A-Z]:\\)[\w.\\/-]*|hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def card(patch: Patch, repo: str, example: Mapping[str, Any] | None = None) -> str:
    """README.md of a patch from its own facts. `example`: the result of `replay`."""
    config, fusion, lora = patch.config, patch.config.fusion, patch.config.lora
    base = config.base.repo or config.base.model_type
    # The Hub accepts short names of licences only.
    licence = config.licence.lower() if re.fullmatch(r"[\w.+-]+", config.licence) else "unknown"
    facts: dict[str, Any] = {"library_name": "pave", "license": licence}
    if HUB_NAME.fullmatch(config.base.repo):
        facts |= {"base_model": config.base.repo, "base_model_relation": "adapter"}
    facts |= {"pipeline_tag": "video-text-to-text", "tags": ["pave", "video-patch", *sorted(config.senses)]}
    if example:
        facts["pave_example"] = {
            key: shown(value) if isinstance(value, str) else value for key, value in example.items()
        }
    rows = [
        ("base", f"{base}, weights {config.base.fingerprint[:12] or 'not recorded'}"),
        ("key frames", f"{config.base.frames} of {config.base.tokens_per_frame} visual tokens"),
        *((f"sense {name}", f"{each.encoder} {json.dumps(each.options)}") for name, each in config.senses.items()),
        *([("resampler", str(config.resampler))] if config.resampler else []),
        ("fusion", f"{fusion.kind}, width {fusion.width}, {fusion.heads} heads" if config.senses else "none"),
        ("LoRA", f"r={lora.r}, alpha={lora.lora_alpha:g}" if lora else "none"),
        ("licence", config.licence or "unknown"),
        ("file", f"{patch.nbytes:,} bytes of tensors, sha256 {patch.sha256[:16]}"),
        *((f"trained: {key}", value) for key, value in config.training.items()),
    ]
    lines = ["---", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).strip(), "---", OURS, ""]
    described = " ".join(config.description.split()) or "A patch for a frozen video LLM."
    lines += [f"# {config.name}", "", _plain(described), ""]
    lines += ["```python", "import pave", "", f"model = pave.load({_literal(base)})"]
    lines += [f"print(model.apply_patch({_literal(repo)}))"]
    lines += ['model.ask("clip.mp4", "What do you hear?")', "```", "", "| | |", "|---|---|"]
    lines += [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]
    if example:
        made = f"pave playroom clips --clips 1 --seed {example['seed']} --split {example['split']}"
        ask = f'pave ask clips/{example["video"]} "{example["question"]}" --patch {repo}'
        lines += ["", "## Replay it", "", "```sh", made, ask, "```", ""]
        patched, alone = (shown(example[key]).replace("`", "'") for key in ("patched", "base"))
        lines += [f"The patched base answers `{patched}`, the base alone `{alone}`."]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    """A value as plain text of one line: it begins no code, no table cell, no link and no tag."""
    return re.sub(r"[\\`|<>\[\]]", r"\\\g<0>", shown(value))


def _literal(text: str) -> str:
    """A text as a literal of Python."""
    return json.dumps(shown(text), ensure_ascii=False)


def refuse_private(text: str, repo: str) -> None:
    """Raise if the text contains local paths or secrets."""
    found = sorted({match[0] for match in PRIVATE.finditer(text)})
    home = str(Path.home())
    if len(home) > 1 and home in text:
        found.append(home)
    if found:
        shown = ", ".join(
            each if each.startswith(("/", home)) or ":\\" in each else f"{each[:6]}…" for each in found[:3]
        )
        raise PatchError(repo, f"its card or config contains private data ({shown})", "remove it from the recipe")
