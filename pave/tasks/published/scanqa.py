"""ScanQA (Azuma et al. 2022). Metrics as in the PAVE paper: exact matches after LEO's cleaning, and those of captions
on cleaned texts (tools/3d/scanqa_evaluator.py).
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="questions about scanned rooms",
    senses="depth",
    files=("ScanQA_v1.0_val.json", "ScanQA_val.json"),
    format="scanqa",
    questions=4675,
    metrics=("em", "em-refined", "cider-clean", "bleu-1-clean", "bleu-4-clean", "meteor-clean", "rouge-l-clean"),
    data="https://github.com/ATR-DBI/ScanQA (scans: http://www.scan-net.org)",
    licence="CC BY-NC-SA 3.0",
    split="val",
    prompt_of="PAVE",
)
