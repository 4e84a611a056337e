"""AVSD of DSTC7 (Alamri et al. 2019): the last question of a dialogue about a Charades video, after the others with
their true answers. The file is the one that the PAVE authors evaluate (scripts/avsd_eval.sh), with one reference each.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="a dialogue about sound and pictures at home",
    senses="sound",
    files=("mock_test_set4DSTC10-AVSD_from_DSTC7_singref.json", "test_set4DSTC7-AVSD.json"),
    format="avsd",
    questions=1710,
    metrics=("cider", "bleu-1", "bleu-2", "bleu-3", "bleu-4", "meteor", "rouge-l"),
    data="https://video-dialog.com (videos: https://prior.allenai.org/projects/charades)",
    licence="not stated",
    turns="last",
    prompt_of="PAVE",
)
