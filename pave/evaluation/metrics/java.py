"""METEOR, SPICE and SPIDEr, which need Java: where it or a part is missing they are n/a, never 0.

In: answers, and the texts that are right. Out: `Measured`, from the programs that the package `pycocoevalcap` brings;
`Unavailable` says what is missing. Knows nothing of questions.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pave.evaluation.metrics.captions import cider
from pave.evaluation.metrics.measured import Measured, References, Texts, Unavailable
from pave.evaluation.metrics.ptb import tokenised

CORENLP = "stanford-corenlp-3.6.0.jar"  # which the package would fetch by itself, from a server without a checksum


def meteor(answers: Texts, references: References) -> Measured:
    """METEOR 1.5 (Denkowski and Lavie 2014). A set's value is not the mean of its answers': no interval."""
    value, each = _run("meteor", "Meteor", answers, references)
    found = Measured.mean(each)
    return Measured(found.parts, found.total, float(value))


def spice(answers: Texts, references: References) -> Measured:
    """SPICE, of the objects, attributes and relations that are named (Anderson et al. 2016)."""
    return Measured.mean([one["All"]["f"] for one in _run("spice", "Spice", answers, references)[1]])


def spider(answers: Texts, references: References) -> Measured:
    """SPIDEr: the mean of SPICE and CIDEr-D (Liu et al. 2017)."""
    return Measured.mean((spice(answers, references).each + cider(answers, references).each) / 2)


def _run(module: str, name: str, answers: Texts, references: References) -> tuple[float, Sequence[Any]]:
    """The value of all answers, and what is found for each."""
    if shutil.which("java") is None:
        raise Unavailable("no `java` on the PATH; install a Java runtime")
    try:
        scorer = import_module(f"pycocoevalcap.{module}.{module}")
    except ImportError as error:
        raise Unavailable(f"{error}; install it: pip install 'pave[captions]'") from None
    if module == "spice" and not (jar := Path(str(scorer.__file__)).with_name("lib") / CORENLP).is_file():
        raise Unavailable(f"no Stanford CoreNLP 3.6.0; put {CORENLP} and its models into {jar.parent}")
    found = {i: [tokenised(answer)] for i, answer in enumerate(answers)}
    rights = {i: [tokenised(each) for each in own] for i, own in enumerate(references)}
    try:
        return getattr(scorer, name)().compute_score(rights, found)
    except Exception as error:  # of a Java program that does not run here, such as SPICE, which needs Java 8
        raise Unavailable(f"{name} of pycocoevalcap failed: {type(error).__name__}: {error}") from None
