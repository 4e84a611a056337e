"""Reference values of the metrics, from the programs that they must equal. Not a test.

    python -m venv ref && ref/bin/pip install pycocoevalcap==1.2 jiwer==4.0.0      # and a Java runtime
    ref/bin/python tests/golden/make_captions.py LEO_FILE

In: tests/golden/captions_given.json, answers and references written by us, and texts of many kinds. LEO_FILE holds the
authors' function `clean_answer` (embodied-generalist, data/data_utils.py at 477dc44). Out: captions_found.json, with
the tokens of every text by the tokenizer of Stanford CoreNLP 3.4.1, and every metric of every answer and of all.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import jiwer  # pyright: ignore[reportMissingImports]
from pycocoevalcap.bleu.bleu import Bleu  # pyright: ignore[reportMissingImports]
from pycocoevalcap.cider.cider import Cider  # pyright: ignore[reportMissingImports]
from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]
from pycocoevalcap.rouge.rouge import Rouge  # pyright: ignore[reportMissingImports]
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent


def tokens(texts: list[str]) -> list[str]:
    found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    return [found[i][0] for i in range(len(texts))]


def clean_answer(file: Path) -> Any:
    """The authors' function alone: their file imports what is not here."""
    tree = ast.parse(file.read_text("utf-8"))
    named = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name == "clean_answer"]
    named[0].decorator_list = []
    scope: dict[str, Any] = {"re": re}
    exec(compile(ast.Module([named[0]], []), str(file), "exec"), scope)
    return scope["clean_answer"]


def main() -> None:
    given = json.loads((HERE / "captions_given.json").read_text("utf-8"))
    answers, references = given["answers"], given["references"]
    clean = clean_answer(Path(sys.argv[1]))
    found: dict[str, Any] = {"texts": {kind: tokens(texts) for kind, texts in given["texts"].items()}}
    split = {i: [each] for i, each in enumerate(tokens(answers))}
    rights = {i: tokens(own) for i, own in enumerate(references)}
    values: dict[str, dict[str, Any]] = {}
    whole, each = Bleu(4).compute_score(rights, split, verbose=0)
    values |= {f"bleu-{i + 1}": {"all": whole[i], "each": list(each[i])} for i in range(4)}
    for name, scorer in (("rouge-l", Rouge()), ("cider", Cider()), ("meteor", Meteor())):
        whole, each = scorer.compute_score(rights, split)
        values[name] = {"all": float(whole), "each": [float(value) for value in each]}
    firsts = [own[0] for own in references]
    rates = [jiwer.wer(right, answer) for right, answer in zip(firsts, answers, strict=True)]
    values["wer"] = {"all": jiwer.wer(firsts, answers), "each": rates}
    cleaned = [
        (clean(answer), [clean(right) for right in own]) for answer, own in zip(answers, references, strict=True)
    ]
    hits = [answer in own for answer, own in cleaned]
    values["em"] = {"all": sum(hits) / len(hits), "each": [float(hit) for hit in hits]}
    joined = [("".join(answer.split()), ["".join(right.split()) for right in own]) for answer, own in cleaned]
    hits = [bool(answer) and any(answer in right or right in answer for right in own) for answer, own in joined]
    values["em-refined"] = {"all": sum(hits) / len(hits), "each": [float(hit) for hit in hits]}
    found |= {"answers": list(split.values()), "cleaned": [answer for answer, _ in cleaned]}
    found |= {"cleaning": [clean(text) for text in given["cleaning"]], "metrics": values}
    (HERE / "captions_found.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
