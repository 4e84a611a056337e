"""The card of a patch on the Hub: its README with a reproducible example, and a check for private data.

In: a patch. Out: Markdown with YAML front matter, from the patch's own facts. Knows nothing of the Hub's client.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pave.errors import PatchError
from pave.patch.certificate import CONTROLS, standing
from pave.patch.filenames import HUB_NAME
from pave.text.shown import shown

if TYPE_CHECKING:
    from pave.config import BaseFacts
    from pave.patch.file import Patch

EMBEDDED = "playroom"  # the base that comes with PAVE
BASE = "path/of/the/base"  # in the example of a patch whose base is not on the Hub
COMMON = (  # the licences to choose from first
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "gpl-3.0",
    "other",
)
# The Hub refuses a card with any other name (huggingface.co/docs/hub/repositories-licenses).
OTHERS = """
afl-3.0 agpl-3.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nd-4.0 cc-by-sa-3.0
cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0
epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""
LICENCES = frozenset((*COMMON, *OTHERS.split()))

# Figures of `Patch.retention`, as text.
RETENTION = {
    "tokens": "share of tokens that stay the most likely",
    "kl": "mean KL divergence from the base, nats per token",
    "answers": "share of whole answers that stay",
    "left": "share of these questions that its gate leaves to the base",
    "ungated": "share of tokens that stay the most likely without the gate",
}
OURS = "<!-- This card was written by PAVE. Without this line, the next push leaves the card alone. -->"
# Private data: absolute paths, and prefixes of common access tokens.
PRIVATE = re.compile(
    r"(?:/home/|/root/|/Users/|/tmp/|/mnt/|[A-Z]:\\)[\w.\\/-]*|hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|AKIA[A-Z0-9]{12,}"
    r"|gh[pousr]_[A-Za-z0-9]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def card(patch: Patch, repo: str, example: Mapping[str, Any] | None = None) -> str:
    """README.md of a patch from its own facts. `example`: the result of `replay`."""
    config = patch.config
    base = public_base(config.base)
    facts: dict[str, Any] = {"library_name": "pave", "license": hub_licence(config.licence)}
    if HUB_NAME.fullmatch(base):
        facts |= {"base_model": base, "base_model_relation": "adapter"}
    facts |= {"pipeline_tag": "video-text-to-text", "tags": ["pave", "video-patch", *sorted(config.senses)]}
    if example:
        facts["pave_example"] = {
            key: shown(value) if isinstance(value, str) else value for key, value in example.items()
        }
    described = " ".join(config.description.split()) or "A patch for a frozen video LLM."
    lines = ["---", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).strip(), "---", OURS, ""]
    lines += [f"# {_plain(config.name)}", "", _plain(described), ""]
    lines += ["```python", "import pave", "", f"model = pave.load({_literal(base or BASE)})"]
    lines += [f"print(model.apply_patch({_literal(repo)}))", _ask(config.senses), "```", ""]
    if not base:
        lines += ["## The base", "", base_facts(config.base), ""]
    lines += ["| | |", "|---|---|", *(_row(name, value) for name, value in _facts(patch, base))]
    if figures := held_out(patch):
        lines += ["", "## Held-out questions", "", "Share answered correctly under teacher forcing, of questions that"]
        lines += ["training did not see.", "", "| questions | base | with the patch |", "|---|---|---|"]
        lines += [_row(key, f"{before:.3f}", f"{after:.3f}") for key, (before, after) in figures.items()]
    lines += listens(patch)
    if kept := patch.retention:
        lines += [
            "",
            "## What the base keeps",
            "",
            "Its own answers to questions that need no sense, asked about clips",
        ]
        lines += ["with the sense, with the patch and without.", "", "| | |", "|---|---|"]
        lines += [_row(RETENTION[name], f"{value:.3f}") for name, value in kept.items() if name in RETENTION]
    if example:
        made = f"pave playroom clips --clips 1 --seed {example['seed']} --split {example['split']}"
        asked = shlex.quote(str(example["question"]))
        ask = f"pave ask clips/{example['video']} {asked} --patch {repo}"
        lines += ["", "## Replay it", "", "```sh", made, ask, "```", ""]
        patched, alone = (_code(example[key]) for key in ("patched", "base"))
        lines += [f"The patched base answers `{patched}`, the base alone `{alone}`."]
    return "\n".join(lines) + "\n"


def listens(patch: Patch) -> Iterator[str]:
    """What shows that the patch uses its senses, as lines of Markdown."""
    if not patch.config.senses:
        return
    found = standing(patch)
    yield from ("", "## Does it use its sense?", "")
    given = found.certificate
    if given is None or found.kind == "void":
        yield f"Not certified: {_plain(found.why)}."
        return
    verdict, data = "Certified" if given.passes else "**Not certified**", given.data
    yield f"{verdict}: `{_code(given.metric)}` is {given.own:.3f} with each clip's own signal, on {data.questions:,}"
    yield f"questions about {data.clips:,} clips. Its gain over controls, with {given.level:.0%} intervals over clips:"
    yield from ("", "| instead of its own signal | gain |", "|---|---|")
    for name, gain in given.gains.items():
        aside = "" if name in given.counting else "; does not count, as no question asks when"
        yield _row(f"{name}: {CONTROLS[name]}", f"{gain}{aside}")
    for name, why in given.not_run.items():
        yield _row(f"{name}: {CONTROLS[name]}", f"not run: {why}")
    again = "" if data.playroom else " DATA"
    yield from ("", f"`pave patch certify PATCH{again} --check` measures it again, on the set with sha256")
    yield f"`{_code(data.sha256[:16])}`. A certificate is a claim, not a signature."


def _facts(patch: Patch, base: str) -> Iterator[tuple[str, str]]:
    config, fusion, lora = patch.config, patch.config.fusion, patch.config.lora
    yield "base", f"{base or config.base.model_type}, weights {config.base.fingerprint[:12] or 'not recorded'}"
    yield "key frames", f"{config.base.frames} of {config.base.tokens_per_frame} visual tokens"
    for name, each in config.senses.items():
        licence = f"; its weights: {each.licence}" if each.licence else ""
        yield f"sense {name}", f"{each.encoder} {json.dumps(each.options)}" + licence
    if config.resampler:
        yield "resampler", str(config.resampler)
    yield "fusion", f"{fusion.kind}, width {fusion.width}, {fusion.heads} heads" if config.senses else "none"
    yield "LoRA", f"r={lora.r}, alpha={lora.lora_alpha:g}" if lora else "none"
    yield "licence", config.licence or "unknown"
    yield "file", f"{patch.nbytes:,} bytes of tensors, sha256 {patch.sha256[:16]}"
    yield from ((f"trained: {key}", str(value)) for key, value in config.training.items())


def public_base(base: BaseFacts) -> str:
    """Where everyone gets the base: a repo of the Hub or the embedded one. Empty for a base in a local folder."""
    return base.repo if base.repo == EMBEDDED or HUB_NAME.fullmatch(base.repo) else ""


def base_facts(base: BaseFacts) -> str:
    """What a base that is not on the Hub must be like, as text."""
    return (
        f"This patch was made on a base that is not on the Hub. It needs a `{_code(base.model_type)}` of {base.dim} "
        f"channels ({base.vision_dim} before the projector) with {base.tokens_per_frame} visual tokens for each key "
        f"frame, and a language model whose weights have the fingerprint `{_code(base.fingerprint) or 'not recorded'}`;"
        " `apply_patch` checks them."
    )


def held_out(patch: Patch) -> dict[str, tuple[float, float]]:
    """Share of held-out questions right without and with the patch, by kind of question, if training recorded it."""
    found = (patch.certificate or {}).get("held_out") or patch.config.training.get("held_out")
    figures = {}
    for key, each in found.items() if isinstance(found, Mapping) else ():
        pair = [each.get(side) if isinstance(each, Mapping) else None for side in ("base", "patched")]
        if all(isinstance(share, int | float) and 0 <= share <= 1 for share in pair):
            figures[str(key)] = (pair[0], pair[1])
    return figures


def hub_licence(licence: str) -> str:
    """The Hub's short name of a licence."""
    if licence.lower() in LICENCES:
        return licence.lower()
    return "other" if licence and not licence.startswith("unlicensed") else "unknown"


def _ask(senses: Iterable[str]) -> str:
    """A question in Python; sound and dense frames are in the clip itself, other signals are passed."""
    question = "What do you hear?" if "audio" in senses else "What happens here?"
    given = "".join(f", {sense}=..." for sense in senses if sense not in ("audio", "fast"))
    return f'print(model.ask("clip.mp4", "{question}"{given}))'


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(value: object) -> str:
    """A value as plain text of one line: it begins no code, no table cell, no link and no tag."""
    return re.sub(r"[\\`|<>\[\]]", r"\\\g<0>", shown(value))


def _code(value: object) -> str:
    """A value on one line, to be set between backticks."""
    return shown(value).replace("`", "'")


def _literal(text: str) -> str:
    """A text as a literal of Python."""
    return json.dumps(shown(text), ensure_ascii=False)


def refuse_private(text: str, source: str) -> None:
    """Raise if the text of a patch contains local paths or secrets; source: its file."""
    found = sorted({match[0] for match in PRIVATE.finditer(text)})
    home = str(Path.home())
    if len(home) > 1 and home in text:
        found.append(home)
    if found:
        shown = ", ".join(
            each if each.startswith(("/", home)) or ":\\" in each else f"{each[:6]}…" for each in found[:3]
        )
        raise PatchError(source, f"its card or config contains private data ({shown})", "remove it from the recipe")
