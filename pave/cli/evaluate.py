"""The `pave eval` command: a base and a patch on questions about clips, side by side.

In: a file of questions, or the name of a benchmark and the folder of its files. Out: a table on stdout;
`evaluation.json`, `samples.jsonl` and `report.html` in a folder. It imports what it needs when it runs. Knows nothing
of how answers are made and measured (pave/evaluation).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pave.cli.data import FORMAT, MEDIA, data_set
from pave.cli.terminal import lines_of, quiet, remark, say

SIDES = "base, own, off, silent, shuffled, shifted"
METRICS = (
    "match, exact, f1, contains, em, em-refined, option, yes-no, bleu-1 to bleu-4, rouge-l, cider, wer; and meteor, "
    "spice and spider, which need Java; those of captions also as NAME-clean"
)
ASPECTS = "match, correctness, detail, context, temporal, consistency"


def evaluate(
    asked: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA|TASK", help="A file of questions in any format, a pattern, or a task with --data."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the files of TASK, as they are published.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the tasks and stop.")] = False,
    base: Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
    patch: Annotated[
        list[str] | None, typer.Option(metavar="PATCH", help="A name, a folder, a file or user/repo; may be repeated.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Group by this key of DATA; may be repeated. Default: channel, if any."),
    ] = None,
    side: Annotated[
        str, typer.Option(metavar="SIDES", help=f"What the side channels are, besides base, with commas: {SIDES}.")
    ] = "own",
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"With commas; groups show the first. Default: match,exact,f1, or those of TASK. {METRICS}.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also ask a language model: an endpoint like https://api.openai.com/v1."),
    ] = None,
    judge_model: Annotated[str, typer.Option(metavar="NAME", help="The judge's model.")] = "",
    judge_aspect: Annotated[
        str, typer.Option(metavar="NAMES", help=f"What it judges, with commas: {ASPECTS}.")
    ] = "match",
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where results go. Default: runs/eval-NAME.")
    ] = None,
    format: Annotated[str | None, FORMAT] = None,
    media: Annotated[Path | None, MEDIA] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Another key of a data set, such as turns=last."),
    ] = None,
    features: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Feature files of `pave encode`; may be repeated.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Key frames. Default: what the base was trained with.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens of an answer. Default: of the longest right one, or TASK's."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Questions at a time.")] = 32,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the shuffling and of the intervals.")] = 0,
    clips: Annotated[int, typer.Option(metavar="N", min=0, help="Clips that can be played in the report.")] = 24,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="'auto', 'float32', 'bfloat16', 'float16' or 'float64'.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="'auto', 'cpu', 'cuda', ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json instead of the table.")] = False,
) -> None:
    """Ask a base and a patched base every question of DATA, or of a published benchmark, and compare the answers.

    Both see the same frames. The table has 95 % intervals and the paired differences; the report plots them, and plays
    clips. After a kill, the same command goes on. `--side own,shuffled,silent` shows whether the sense is used.
    """
    quiet()
    if listed:
        from pave.tasks.known import lines

        say(*lines())
        return
    import json

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from pave.errors import UsageError
    from pave.evaluation import accuracy
    from pave.evaluation.judge import Judge
    from pave.evaluation.metrics.known import refuse_unknown
    from pave.evaluation.report import write_report
    from pave.evaluation.sides import sides_of
    from pave.model.patched import load

    if asked is None:
        raise UsageError(
            "what shall be evaluated? Give a file of questions, or a task of `pave eval --list` and --data"
        )
    task = _task(asked, data)
    judged = Judge(judge, judge_model, tuple(_named(judge_aspect))) if judge is not None else None
    if judged is None and (judge_model or judge_aspect != "match"):
        raise UsageError("--judge-model and --judge-aspect are for a judge; give its address with --judge URL")
    names = _named(side)
    sides = sides_of(["base", *names])  # pyright: ignore[reportArgumentType]
    if not patch and set(names) - {"base", "own"}:
        raise UsageError(f"--side {side} changes what a patch reads, and there is none; give --patch NAME")
    metrics = None if metric is None else _named(metric)
    refuse_unknown(metrics or ())
    if task and (format or media or option):
        raise UsageError(f"{task} has its own format and media; leave --format, --media and --option out")
    folder = to or Path("runs") / f"eval-{asked.stem}"
    model = load(base, dtype=dtype, device=device, frames=frames)
    for source in patch or []:
        remark(*lines_of(model.apply_patch(source)))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        tasks = {what: bar.add_task(what, total=None) for what in ("clips", "questions", *["judged"] * bool(judged))}
        found = accuracy.evaluate(
            model,
            data if task else data_set(asked, format, media, option or ()),  # pyright: ignore[reportArgumentType]
            task=task,
            side=sides if patch else "base",
            by=by or None,
            metrics=metrics,
            judge=judged,
            folder=folder,
            made=features or (),
            batch=batch,
            max_new_tokens=max_new_tokens,
            seed=seed,
            on_clip=lambda done, total: bar.update(tasks["clips"], completed=done, total=total),
            on_answers=lambda done, total: bar.update(tasks["questions"], completed=done, total=total),
            on_verdicts=lambda done, total: bar.update(tasks["judged"], completed=done, total=total),
        )
    report = write_report(found, folder, clips)
    say(*lines_of(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if as_json else found))
    remark(report)


def _named(names: str) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def _task(asked: Path, data: Path | None) -> str | None:
    """The name of the benchmark, if it is one. UsageError for one without its folder."""
    from pave.errors import UsageError
    from pave.tasks.known import names, task_of

    if data is not None:
        return task_of(str(asked)).name
    if str(asked) in names() and not asked.exists():
        source = task_of(str(asked)).data
        raise UsageError(f"{asked} is a published benchmark: name the folder of its files with --data, from {source}")
    return None
