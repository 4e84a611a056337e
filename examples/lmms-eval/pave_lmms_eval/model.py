"""The model `pave` of lmms-eval: a base with patches.

In: lmms-eval's requests. Out: answers with their numbers of tokens, and losses of given answers. Questions are asked in
batches by `ask_batch`; those about one clip stand together, so that it is read and encoded once for each batch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import pave
from pave.errors import UsageError
from pave.model.options import answering
from pave.model.rows import prepared
from pave_lmms_eval.rows import cut, heard, options_of, row_of, turn

Row = dict[str, Any]
BETWEEN = "+"  # names of patches in one model argument


class Pave(lmms):
    """A base with patches, asked by lmms-eval's simple requests: a text and its visuals.

    base, frames, dtype, quantize: as in `pave.load`; patches: names, joined by +. device, batch_size: as lmms-eval's
    own options. Several processes (accelerate launch) have a device each."""

    is_simple = True

    def __init__(
        self,
        base: str = "playroom",
        patches: str = "",
        frames: int | None = None,
        dtype: str = "auto",
        quantize: str | None = None,
        device: str | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or not int(batch_size):
            raise UsageError(f"batch_size={batch_size!r} must be a whole number, 1 or more")
        self.batch_size = int(batch_size)
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        where: Any = device or (Accelerator().device if several else "auto")
        self.model = pave.load(base, dtype=dtype, device=where, quantize=quantize, frames=frames)
        for name in filter(None, patches.split(BETWEEN)):
            print(self.model.apply_patch(name))
        self.read = {encoder.spec.sense for encoder in self.model.encoders()}
        self.told: set[str] = set()

    @property
    def device(self) -> torch.device:
        return self.model.host.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        rows, options = [], []
        for text, given, visuals, place, task, split in (each.args for each in requests):
            doc = self.task_dict[task][split][place]
            rows.append(self._row(row_of(turn(visuals(doc), text), doc)))
            options.append(given)
        return self._answers(rows, options)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For each answer its loss, the mean over its tokens and the end, and whether the model would say it.

        lmms-eval calls it a log-likelihood, but takes the choice with the least, as its own models return a loss."""
        rows, targets = [], []
        for text, target, visuals, place, task, split in (each.args for each in requests):
            doc = self.task_dict[task][split][place]
            rows.append(self._row(row_of(turn(visuals(doc), text), doc)))
            targets.append(str(target(doc) if callable(target) else target).strip())
        found: list[tuple[float, bool]] = []
        for first in tqdm(range(0, len(rows), self.batch_size), disable=self.rank != 0, desc="Likelihoods"):
            part = slice(first, first + self.batch_size)
            found += self._losses(rows[part], targets[part])
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise UsageError("pave has no rounds that depend on its own answers; choose a task of single questions")

    def _row(self, row: Row) -> Row:
        row, unread = heard(row, self.read)
        self._tell(unread, "signal of the clips that no applied patch reads")
        return row

    def _tell(self, names: Sequence[str], what: str) -> None:
        """Warn of what is left out, once for each name."""
        for name in set(names) - self.told:
            self.told.add(name)
            logging.getLogger(__name__).warning("%s: %s; left out", name, what)

    def _answers(self, rows: Sequence[Row], options: Sequence[dict[str, Any]]) -> list[GenerationResult]:
        found: dict[int, GenerationResult] = {}
        keys = [json.dumps(each, sort_keys=True) for each in options]
        order = sorted(range(len(rows)), key=lambda i: (keys[i], str(rows[i].get("clip"))))
        bar = tqdm(total=len(rows), disable=self.rank != 0, desc="Answers")
        for key, group in groupby(order, keys.__getitem__):
            known, stops, others = options_of(json.loads(key))
            self._tell(others, "option of generation that pave does not have")
            places = list(group)
            for first in range(0, len(places), self.batch_size):
                part = places[first : first + self.batch_size]
                for place, answer in zip(part, self.model.ask_batch([rows[i] for i in part], **known), strict=True):
                    counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.tokens)
                    found[place] = GenerationResult(cut(answer, stops), counts)
                bar.update(len(part))
        bar.close()
        return [found[i] for i in range(len(rows))]

    @torch.no_grad()
    def _losses(self, rows: Sequence[Row], targets: Sequence[str]) -> list[tuple[float, bool]]:
        host = self.model.host
        asked = prepared(self.model.calls, rows, "auto", answering(1, {})).inputs
        said = [torch.tensor([*host.encode_text(text), host.end]) for text in targets]
        ids = pad_sequence(said, batch_first=True, padding_value=host.pad)
        real = pad_sequence([torch.ones_like(each) for each in said], batch_first=True)
        whole = [(asked.input_ids, ids), (asked.attention_mask, real)]
        input_ids, mask = (torch.cat([before, after.to(before)], 1) for before, after in whole)
        inputs = replace(asked, input_ids=input_ids, attention_mask=mask)
        logits = self.model.forward(inputs, logits_to_keep=ids.shape[1] + 1).logits[:, :-1].float().cpu()
        losses = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] * real
        right = (logits.argmax(-1) == ids) | (real == 0)
        return list(zip((losses.sum(-1) / real.sum(-1)).tolist(), right.all(-1).tolist(), strict=True))


class PaveChat(Pave):
    """The same by lmms-eval's chat requests, which have dialogues."""

    is_simple = False

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        rows, options = [], []
        for _, messages, given, place, task, split in (each.args for each in requests):
            doc = self.task_dict[task][split][place]
            rows.append(self._row(row_of(messages(doc), doc)))
            options.append(given)
        return self._answers(rows, options)
