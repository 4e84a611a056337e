"""The `pave ask` and `pave chat` commands: one question about a clip, or a dialogue.

In: a file and questions. Out: answers on stdout; on stderr what was read, what was wrong with the files, and whether an
answer was cut. Each command imports what it needs when it runs. Knows nothing of how answers are made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pave.cli.signals import signals_of
from pave.cli.terminal import Talk, lines_of, patch_names, quiet, remark, say, say_pieces
from pave.errors import PaveError, UsageError

if TYPE_CHECKING:
    from pave.model.answer import Answer
    from pave.model.chat import Chat
    from pave.model.patched import PatchedModel

MOST = 128  # tokens of an answer, as in Python
HELP = "/patches NAME … uses these from now on (none: the base alone), /new begins anew, /quit ends; all else is asked"

Base = Annotated[str, typer.Option(metavar="BASE", help="'playroom', a folder, or a Hub id.")]
Patches = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATCH",
        help="A name, a folder, a file or user/repo; may be repeated.",
        autocompletion=patch_names,
    ),
]
Signals = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="File or folder of another signal; repeat views=FILE for each camera."),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="Option of Hugging Face's generate, such as temperature=0.7; may be repeated."
    ),
]
AudioTrack = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Which sound of VIDEO, from 0. Default: the file's default.")
]
VideoTrack = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Which pictures of VIDEO, from 0. Default: the file's default.")
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="S", min=0.1, help="Time limit for reading VIDEO, in seconds. Default: by its length."),
]
Frames = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Key frames. Default: what the base was trained with.")
]
Most = Annotated[int, typer.Option(metavar="N", min=1, help="Maximum length of an answer, in tokens.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="'auto', 'float32', 'bfloat16', 'float16' or 'float64'.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="'auto', 'cpu', 'cuda', ...")]
Gate = Annotated[
    bool, typer.Option(help="Let a patch leave questions that are not about VIDEO to the base, if it has a gate.")
]


def ask(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video or an image.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in plain text.")],
    base: Base = "playroom",
    patch: Patches = None,
    signal: Signals = None,
    option: Options = None,
    audio_track: AudioTrack = None,
    video_track: VideoTrack = None,
    timeout: Timeout = None,
    frames: Frames = None,
    max_new_tokens: Most = MOST,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gate: Gate = True,
    conflict: Annotated[
        bool, typer.Option("--conflict", help="Also measure whether pictures and signals disagree; takes longer.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer and all facts about it as JSON.")] = False,
) -> None:
    """Ask a frozen video LLM about VIDEO."""
    quiet()
    signals, options = signals_of(signal or [], timeout), _options(option or [])
    model = _opened(base, patch or [], dtype, device, frames, gate)
    read = {"timeout": timeout or "auto", "audio_track": audio_track, "video_track": video_track, "conflict": conflict}
    answer = model.ask(video, question, max_new_tokens=max_new_tokens, **read, **signals, **options)
    _tell(answer, video.name, {})
    if conflict:
        score = "not measured: it takes pictures and a signal" if answer.conflict is None else f"{answer.conflict:.2f}"
        remark(f"conflict of pictures and signals: {score}")
    if as_json:
        say(*lines_of(json.dumps({"answer": str(answer), **vars(answer)}, indent=1)))
    else:
        say(*lines_of(answer))


def chat(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video or an image.")],
    base: Base = "playroom",
    patch: Patches = None,
    signal: Signals = None,
    option: Options = None,
    audio_track: AudioTrack = None,
    video_track: VideoTrack = None,
    timeout: Timeout = None,
    frames: Frames = None,
    max_new_tokens: Most = MOST,
    dtype: Dtype = "auto",
    device: Device = "auto",
    gate: Gate = True,
) -> None:
    """Ask about VIDEO again and again.

    Reads questions from the terminal, or one a line from stdin. VIDEO is read and encoded once. Type /help for what
    else can be typed.
    """
    quiet()
    signals, options = signals_of(signal or [], timeout), _options(option or [])
    model = _opened(base, patch or [], dtype, device, frames, gate)
    read: dict[str, Any] = {"timeout": timeout or "auto", "audio_track": audio_track, "video_track": video_track}
    with model.chat(video, **read, **signals) as dialogue:
        remark(HELP)
        _talk(model, dialogue, video.name, {"max_new_tokens": max_new_tokens, **options})


def _talk(model: PatchedModel, dialogue: Chat, name: str, options: Mapping[str, Any]) -> None:
    """Answer what is typed, until the end. An error ends a question, not the dialogue."""
    patches: list[str] | None = None
    told: dict[str, str] = {}
    for typed in _typed():
        verb, *words = typed.split() if typed.startswith("/") else ("", "")
        try:
            match verb:
                case "":
                    stream = dialogue.stream(typed, patches=patches, **options)
                    say_pieces(stream)
                    told = _tell(stream.answer, name, told)
                    if dialogue.recomputed:
                        remark(dialogue.recomputed)
                case "/patches":
                    model.applied.wanted(words, 1)  # refuses a name that is not applied
                    patches = words
                    remark(f"patches: {', '.join(words) or 'none'}")
                case "/new":
                    dialogue.history.clear()
                case "/quit":
                    return
                case _:
                    remark(HELP)
        except PaveError as error:
            remark(f"pave: {error}")


def _typed() -> Iterator[str]:
    """The lines that are typed, or that stdin has, without empty ones."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    with suppress(ImportError):
        import_module("readline")  # input() takes the arrow keys with it; Windows has its own
    with suppress(EOFError):
        while True:
            if line := input("> ").strip():
                yield line


def _opened(base: str, patches: Sequence[str], dtype: str, device: str, frames: int | None, gate: bool) -> PatchedModel:
    """The base with its patches, each of which is told."""
    from pave.model.patched import load

    model = load(base, dtype=dtype, device=device, frames=frames)
    for source in patches:
        remark(*lines_of(model.apply_patch(source, gate=gate)))
    return model


def _tell(answer: Answer, name: str, told: Mapping[str, str]) -> dict[str, str]:
    """Remarks on an answer: those of `told` are known already. Returns all that are known now."""
    known = {f"warning: {name}: {text}": "" for text in answer.warnings} | {**answer.signals}
    for what, state in known.items():
        if told.get(what) != state:
            remark(f"{what}: {state}" if state else what)
    if Talk.details:
        steps = ", ".join(f"{step} {seconds:.3f} s" for step, seconds in answer.timings.items())
        cached = f" ({answer.cached_tokens:,} of them kept from before)" if answer.cached_tokens else ""
        remark(f"{steps}; {answer.prompt_tokens:,} tokens{cached}, {answer.tokens} answered")
    if answer.finish_reason == "length":
        remark(f"warning: the answer was cut after {answer.tokens} tokens; allow more with --max-new-tokens")
    return {**told, **known}


def _options(given: Sequence[str]) -> dict[str, Any]:
    """Options of generate() by name, from NAME=VALUE, where a value is JSON or a text; checked before a base is
    opened."""
    found = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not (name and equals):
            raise UsageError(f"--option {each}: write NAME=VALUE, for example temperature=0.7")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = {"True": True, "False": False}.get(text, text)
    if "max_new_tokens" in found:
        raise UsageError("--option max_new_tokens: use --max-new-tokens")
    if found:
        from pave.model.options import answering

        answering(MOST, found)
    return found
