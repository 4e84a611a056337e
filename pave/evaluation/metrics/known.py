"""The metrics by name.

In: names of metrics, answers, and the texts that are right. Out: `Measured`, or why there is none. Knows nothing of
questions and models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from pave.errors import UsageError, nearest
from pave.evaluation.metrics.answers import cleaned, contains, em, em_refined, exact, f1, match, wer
from pave.evaluation.metrics.captions import ORDER, bleu, cider, rouge_l
from pave.evaluation.metrics.java import meteor, spice, spider
from pave.evaluation.metrics.measured import Measured, References, Texts, Unavailable
from pave.evaluation.metrics.options import option, yes_no

Metric = Callable[[Texts, References], Measured]


def _clean(metric: Metric, answers: Texts, references: References) -> Measured:
    """A metric of texts that LEO's cleaning has been through, as ScanQA's captions metrics are computed."""
    return metric([cleaned(text) for text in answers], [[cleaned(text) for text in own] for own in references])


CAPTIONS: Mapping[str, Metric] = {
    **{f"bleu-{order}": partial(bleu, order) for order in range(1, ORDER + 1)},
    "rouge-l": rouge_l,
    "cider": cider,
    "meteor": meteor,
    "spice": spice,
    "spider": spider,
}
METRICS: Mapping[str, Metric] = {
    "exact": exact,
    "match": match,
    "contains": contains,
    "f1": f1,
    "em": em,
    "em-refined": em_refined,
    "option": option,
    "yes-no": yes_no,
    "wer": wer,
    **CAPTIONS,
    **{f"{name}-clean": partial(_clean, metric) for name, metric in CAPTIONS.items()},
}


def refuse_unknown(names: Iterable[str]) -> None:
    """UsageError for a name of no metric."""
    for name in names:
        if name not in METRICS:
            raise UsageError(f"no metric {name!r}; {nearest(name, METRICS)}")


def measure(name: str, answers: Texts, references: References) -> Measured | str:
    """A metric of answers; or, as a text, why it is not available here."""
    refuse_unknown([name])
    if not answers or len(answers) != len(references) or not all(references):
        raise UsageError(
            f"{len(answers)} answers and {len(references)} lists of references; give one reference or more for each"
        )
    try:
        return METRICS[name](answers, references)
    except Unavailable as lacking:
        return str(lacking)
