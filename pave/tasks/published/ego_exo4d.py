"""Ego-Exo4D, proficiency of the demonstrator (Grauman et al. 2024): one of four levels, seen by the wearer's camera,
with the others as the signal `views`. The PAVE authors published no script for it.
"""

from __future__ import annotations

from pave.tasks.task import Task

TASK = Task(
    what="how skilled the camera's wearer is",
    senses="views",
    files=("annotations/proficiency_demonstrator_val.json", "proficiency_demonstrator_val.json"),
    format="ego-exo4d",
    questions=None,
    metrics=("match",),
    data="https://docs.ego-exo4d-data.org",
    licence="Ego-Exo4D licence, to be signed",
    split="val",
    by=("scenario_name",),
)
