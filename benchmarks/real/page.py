"""The page of all figures, and its plot.

In: the results files. Out: `benchmarks/results/real.md` and `real.png`. Shows nothing that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from study import RESULTS, Study
from trainings import interval

CONTROLS = ("base", "without", "off", "shuffled", "patched")
PAGE, PLOT = RESULTS / "real.md", RESULTS / "real.png"


def rows(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Runs of each training, by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, run in study.runs.items():
        found.setdefault(key.rpartition(", seed ")[0], []).append(run)
    return dict(sorted(found.items()))


def spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


def table(found: Mapping[str, Sequence[Mapping[str, Any]]], figure: str) -> list[str]:
    """One line a training: the controls, then the patch."""
    lines = [
        f"| training | seeds | {' | '.join(CONTROLS)} | 95 % interval, seed 0 |",
        "|---" * (len(CONTROLS) + 3) + "|",
    ]
    for name, runs in found.items():
        if figure not in runs[0]["patched"]:
            continue
        sides = [[run[control][figure] for run in runs if control in run] for control in CONTROLS]
        cells = [spread(side) if side else "" for side in sides]
        asked = runs[0]["patched"]["pairs" if figure == "strict_pairs" else "asked"]
        wide = ""  # a word error rate is no share: it may be above 1
        if figure != "word_error_rate":
            low, high = interval(round(runs[0]["patched"][figure] * asked), asked)
            wide = f"{low:.3f} to {high:.3f} of {asked}"
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {wide} |")
    return [] if len(lines) == 2 else [*lines, ""]


def cost(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    columns = ("training", "steps × clips", "minutes of a core", "file", "base's tokens kept", "of unseen questions")
    lines = [f"| {' | '.join((*columns, 'without the gate', 'KL'))} |", "|---" * 8 + "|"]
    for name, runs in found.items():
        took = [run["core_seconds"] / 60 for run in runs if "core_seconds" in run]
        minutes = f"{mean(took):.1f}" if took else ""
        retained = [run["retention"] for run in runs]
        kept = spread([each["tokens"] for each in retained])
        unseen = [run["retention_unseen"]["tokens"] for run in runs if "retention_unseen" in run]
        others = spread(unseen) if unseen else ""
        ungated = spread([each.get("ungated", each["tokens"]) for each in retained])
        nats = spread([each["kl"] for each in retained])
        size = f"{runs[0]['patch_bytes'] / 1e6:.1f} MB"
        steps = f"{runs[0]['steps']} × {runs[0]['batch']}"
        lines.append(f"| {name} | {steps} | {minutes} | {size} | {kept} | {others} | {ungated} | {nats} |")
    return [*lines, ""]


def write(seeing: Study, trained: Study) -> None:
    """Write the page and the plot of what has been measured so far."""
    found = rows(trained)
    text = ["# Real weights, real recordings", "", "Written by `make real`; every figure is in `real_*.json`.", ""]
    for name, run in seeing.runs.items():
        if "top1" in run:
            text += [
                f"**{name}**: the thing in a new picture is the most likely of {run['choices']} names in "
                f"{run['top1']:.3f} of {run['pictures']} pictures, among the first five in {run['top5']:.3f}.",
                "",
                *(f"- {thing}: “{answer}”" for thing, answer in run["in_its_own_words"]),
                "",
            ]
        elif "word_error_rate" in run:
            text += [f"**{name}**: word error rate {run['word_error_rate']:.3f} on {run['asked']} prompts.", ""]
        elif "share" in run:
            seconds = f"{run['core_seconds_of_a_step']:.2f} seconds of a core with it, {run['without']:.2f} without"
            shown = f"{run['visual_tokens']} visual tokens a clip, {run['steps']} steps of each"
            text += [f"**{name}**: {run['share']:.0%} of a step; {seconds} ({shown}).", ""]
        elif "hears" in run:
            text += [f"**{name}**: how often it opens for messages that nobody had seen when it was made", ""]
            text += [
                f"- of a patch that {patch}: "
                + ", ".join(f"{part} {share:.2f}" for part, share in each["opens"].items())
                for patch, each in run.items()
            ]
            text += [""]
        elif "another clip" in run:
            changes = {key: each for key, each in run.items() if isinstance(each, dict)}
            text += [f"**{name}**: how many tokens of the base's answers to general questions stay the most likely", ""]
            text += [f"- {key}: {each['tokens']:.3f} (KL {each['kl']:.4f})" for key, each in changes.items()]
            text += [""]
    for title, figure in (
        ("Share of right answers", "accuracy"),
        ("Strict pairs: both sounds with the same frames", "strict_pairs"),
        ("Word error rate", "word_error_rate"),
    ):
        if lines := table(found, figure):
            text += [f"## {title}", "", *lines]
    if found:
        text += ["## Cost", "", *cost(found), f"![Right answers by training]({PLOT.name})", ""]
        draw(found)
    PAGE.write_text("\n".join(text), "utf-8")


def draw(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Plot each training's right answers, with and without what matters, lowest to highest seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 1 + 0.5 * len(found)))
    named: set[str] = set()  # in the legend
    for place, runs in enumerate(found.values()):
        for number, control in enumerate(CONTROLS):
            scores = [100 * run[control]["accuracy"] for run in runs if control in run]
            if scores:
                label = None if control in named else control
                named.add(control)
                axes.plot([min(scores), max(scores)], [place, place], color=f"C{number}", alpha=0.5)
                axes.plot(mean(scores), place, "o", color=f"C{number}", label=label)
    axes.set_yticks(range(len(found)), found)
    axes.set(xlim=(-2, 102), xlabel="% right")
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(PLOT, dpi=130)
    plt.close(figure)


def show(trained: Study) -> None:
    """The tables on a terminal."""
    found = rows(trained)
    for figure in ("accuracy", "strict_pairs", "word_error_rate"):
        for line in table(found, figure):
            print(line)
