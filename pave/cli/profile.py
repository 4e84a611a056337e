"""The table of `pave profile`. In: a `Cost`. Out: human-readable text."""

from __future__ import annotations

from pave.evaluation.cost import Cost

NOTES = {0: "no network", None: "not counted"}  # for an encoder's FLOPs
LEGEND = """
  here:   matrix products, 2 operations per multiplication. Newlines are in the prompt; attention is causal; a fusion
          multiplies in its cheaper order; LoRA runs unmerged; the head reads one token.
  paper:  as the PAVE paper counts. No newlines; full attention; norms, softmax, additions and activations count; each
          layer of a fusion has an output projection; no vision tower, no encoder; LoRA is merged. A resampler, which
          the paper does not have, counts as in the other column.""".splitlines()


def table(cost: Cost) -> str:
    """The cost as text."""
    dead = sum(cost.dead_params.values())
    note = f"paper: includes {dead:,} of an unused v_linear" if dead else ""
    lines = [f"{cost.patch} on {cost.base} ({cost.dtype}); no weights were loaded", ""]
    lines.append(_line("parameters", "here", "paper", indent=0))
    if cost.resampler_params:
        lines.append(_line("resampler", *[f"{cost.resampler_params:,}"] * 2))
    for sense, count in cost.fusion_params.items():
        lines.append(_line(f"fusion, {sense}", f"{count:,}", f"{count + cost.dead_params[sense]:,}"))
    lines.append(_line("LoRA", f"{cost.lora_params:,}", f"{cost.lora_params:,}"))
    lines.append(_line("trainable", f"{cost.params:,}", f"{cost.params + dead:,}", note))
    state = "" if cost.trained else " approximately, once converted" if cost.released else " once trained"
    small = f"{cost.shrunk_bytes / 1e6:,.2f} MB after `pave patch shrink`"
    each = f"{cost.frames} key frames × {cost.visual // cost.frames} = "
    parts = [f"{'' if cost.visual % cost.frames else each}{cost.visual:,} visual"]
    counts = {"newline": cost.newlines, "around them": cost.around, "side": cost.beside, "text": cost.text}
    parts += [f"{count:,} {name}" for name, count in counts.items() if count]
    lines += ["", f"file    {cost.file_bytes / 1e6:,.2f} MB{state}, {small}"]
    unknown = "; text around key frames: not counted, the tokenizer is not available" if cost.around is None else ""
    lines += [f"tokens  {' + '.join(parts)} = {cost.prompt:,}{unknown}", ""]
    unit, name = (1e12, "TFLOPs") if cost.honest.total > 1e11 else (1e9, "GFLOPs")
    lines.append(_line(f"{name} of a prefill", "here", "paper", indent=0))
    rows = [
        ("vision, projector", cost.honest.vision, cost.paper.vision, "" if cost.honest.vision else "not counted"),
        *(
            (f"encoder, {sense}", counted, None, NOTES.get(counted, ""))
            for sense, counted in cost.honest.encoders.items()
        ),
        ("language model", cost.honest.language_model, cost.paper.language_model, ""),
        ("head", cost.honest.head, cost.paper.head, ""),
    ]
    tokens = {sense: f"{steps} × {h} × {w} side tokens" for sense, (steps, h, w) in cost.side.items()}
    if cost.resampler_params:
        rows.append(("resampler", cost.honest.resampler, cost.paper.resampler, ", ".join(tokens.values())))
    for name, counted in cost.honest.fusion.items():
        rows.append((f"fusion, {name}", counted, cost.paper.fusion[name], tokens.get(name, "")))
    rows.append(("LoRA", cost.honest.lora, cost.paper.lora, ""))
    rows.append(("total", cost.honest.total, cost.paper.total, ""))
    for label, here, paper, remark in rows:
        shown = (f"{count / unit:,.4f}" if count else "–" for count in (here, paper))
        lines.append(_line(label, *shown, note=remark))
    unit, name = (1e9, "GB") if cost.memory.total > 1e8 else (1e6, "MB")
    lines += [*LEGEND, "", f"{name} of memory, without activations"]
    memory = cost.memory
    for label, count in (
        ("base", memory.base),
        ("patch", memory.patch),
        ("keys and values", memory.cache),
        ("visual features", memory.features),
        ("total", memory.total),
    ):
        lines.append(_line(label, f"{count / unit:,.3f}"))
    return "\n".join(lines)


def _line(label: str, here: str, paper: str = "", note: str = "", *, indent: int = 2) -> str:
    return f"{' ' * indent + label:20}{here:>14}{paper:>14}   {note}".rstrip()
