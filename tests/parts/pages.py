"""Pages in Markdown: their snippets, links and anchors.

A snippet is a fenced block of `python` or `sh`. A `text` block right behind it is what it prints, where `...` stands
for anything. A block with `title="NAME"` is a file. A comment before a snippet marks it: `<!-- not run: REASON -->`,
or `<!-- fails -->` for a command that ends with an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

RUN = ("python", "sh")
FENCE = re.compile(r'^```(?P<kind>\w*)(?: +title="(?P<title>[^"]+)")? *\n(?P<text>.*?)^```$', re.M | re.S)
MARK = re.compile(r"<!-- (not run|fails)(?:: *(.*?))? *-->\n+\Z")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    kind: str
    text: str
    title: str = ""
    mark: str = ""  # "", "not run" or "fails"
    reason: str = ""  # why it is not run
    printed: str | None = None  # what the page shows as its output


def pages() -> list[Path]:
    """The pages whose snippets are run."""
    return [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        mark = MARK.search(text, 0, match.start())
        words = (mark[1], mark[2] or "") if mark else ("", "")
        block = Block(
            text.count("\n", 0, match.start()) + 1, match["kind"], match["text"], match["title"] or "", *words
        )
        behind = found and found[-1].kind in RUN and not text[end : match.start()].strip()
        if behind and block.kind == "text":
            found[-1] = Block(**{**vars(found[-1]), "printed": block.text})
        else:
            found.append(block)
        end = match.end()
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks and spans of code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown viewers name them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(text))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", each.lower()).strip()) for each in plain}


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures that are not addresses on the web."""
    yield from (target for target in LINK.findall(prose(page)) if "://" not in target and "mailto:" not in target)


def shows(printed: str, output: str) -> bool:
    """Whether an output holds what the page shows of it."""
    parts = [re.escape(part.strip()) for part in re.split(r"\.\.\.|…", squeezed(printed))]
    return re.search(r".*?".join(parts), squeezed(output), re.S) is not None


def squeezed(text: str) -> str:
    """Without spaces at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
