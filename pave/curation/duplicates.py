"""Near-duplicates among texts: those that share most of their runs of five characters.

In: texts, one after another. Out: the name of an earlier text that one nearly repeats. Candidates come from MinHash and
locality-sensitive hashing (`datasketch`), so that a hundred thousand texts are not compared in pairs; each is then
compared exactly.
"""

from __future__ import annotations

from typing import Any

from pave.errors import UsageError

RUN = 5  # characters; words would not do for scripts without spaces
HASHES = 64
MARGIN = 0.8  # of the share at which candidates are looked for: a false one only costs time, a missed one stays


class Seen:
    """Texts so far. `similar`: the share of common runs (Jaccard) of two texts that are near-duplicates."""

    def __init__(self, similar: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH  # pyright: ignore[reportMissingImports]
        except ImportError:
            remedy = 'run pip install "pave[curate]", or keep near-duplicates with --option similar=null'
            raise UsageError(f"near-duplicates are found with datasketch, which is not installed; {remedy}") from None
        self.similar, self.kind = similar, MinHash
        self.index: Any = MinHashLSH(threshold=MARGIN * similar, num_perm=HASHES)
        self.texts: dict[str, str] = {}

    def twin(self, name: str, text: str) -> str | None:
        """The name of the text that this one nearly repeats; if there is none, it is remembered by its own."""
        text = " ".join(text.casefold().split())
        runs, hashed = _runs(text), self.kind(num_perm=HASHES)
        hashed.update_batch([run.encode() for run in sorted(runs)])
        shares = {found: _shared(runs, _runs(self.texts[found])) for found in sorted(self.index.query(hashed))}
        if shares and max(shares.values()) >= self.similar:
            return max(shares, key=lambda found: shares[found])
        self.index.insert(name, hashed)
        self.texts[name] = text
        return None


def _runs(text: str) -> set[str]:
    return {text[at : at + RUN] for at in range(max(1, len(text) - RUN + 1))}


def _shared(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)
