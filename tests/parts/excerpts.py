"""Excerpts of data sets in the layouts in which they are published; all words and names in them are ours.

    write_excerpt(tmp_path, "avsd")  # the file to read; further files of the format are beside it

`EXCERPTS`: for each layout the name of its file and its content, the format, and what must be understood: for each
record the clip and the questions with their answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from excerpt import Excerpt, asked, spoken, table
from published import PUBLISHED

KETTLE = [("What do you hear?", "A kettle."), ("Where?", "In a kitchen.")]
TEN = [(f"Is there a cup on shelf {i}?", "yes" if i % 2 else "no, it is empty") for i in range(10)]
FLAT = [text for turn in TEN for text in turn]
DIALOGUE = asked(*FLAT)
ROLES = {"roles": ("user", "assistant"), "keys": ("role", "content")}
LLAVA = [
    {"id": "7", "video": "a.mp4", "conversations": spoken("<video>\nWhat do you hear?", "A kettle.", *KETTLE[1])},
    {"id": "8", "video": "sub/b.mp4", "conversations": spoken("How many?\n<video>", "two")},
]
UNDERSTOOD = [("a.mp4", KETTLE), ("sub/b.mp4", [("How many?", "two")])]
MESSAGES = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *spoken("<video>What do you hear?", "A kettle.", *KETTLE[1], **ROLES),
        ],
        "videos": ["a.mp4"],
    },
    {"messages": spoken("<video>How many?", "two", **ROLES), "videos": ["sub/b.mp4"], "audios": ["b.wav"]},
]
PARTS = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "It rains."}]},
        ]
    }
]
SCENES = [
    {
        "answers": ["brown", "dark brown"],
        "object_ids": [8],
        "object_names": ["desk"],
        "question": "What colour is the desk?",
        "question_id": "train-scene0000-0",
        "scene_id": "scene0000_00",
    },
    {
        "answers": ["under the window"],
        "object_ids": [2],
        "object_names": ["sofa"],
        "question": "Where is the sofa?",
        "question_id": "train-scene0001-4",
        "scene_id": "scene0001_00",
    },
]
SITUATED = {
    "info": {"version": "1.0"},
    "license": {"name": "ours"},
    "data_subtype": "train",
    "task_type": "situated",
    "questions": [
        {
            "scene_id": "scene0000_00",
            "situation": "I sit at the desk.",
            "alternative_situation": ["I am at the desk.", "The desk is before me."],
            "question": "What is behind me?",
            "question_id": 220602000000,
        },
        {
            "scene_id": "scene0001_00",
            "situation": "I stand by the sofa.",
            "alternative_situation": [],
            "question": "Can I see the door?",
            "question_id": 220602000001,
        },
    ],
}
ANSWERS = {
    "info": {"version": "1.0"},
    "license": {"name": "ours"},
    "data_subtype": "train",
    "annotations": [
        {
            "scene_id": scene,
            "question_type": "N/A",
            "answer_type": "other",
            "question_id": number,
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": 1}],
            "rotation": {"_x": 0, "_y": 0, "_z": 0.5, "_w": 0.8},
            "position": {"x": 0.1, "y": -0.2, "z": 0},
        }
        for scene, number, answer in (("scene0001_00", 220602000001, "yes"), ("scene0000_00", 220602000000, "shelf"))
    ],
}
CHOICES = ["a kettle", "a train", "a bird", "rain"]
CHOSEN = "What makes the sound?\n- a kettle\n- a train\n- a bird\n- rain"
TAKES = {
    "year": "2024",
    "split": "train",
    "annotations": [
        {
            "take_uid": "u-1",
            "take_name": "cooking_1",
            "scenario_name": "Cooking",
            "video_paths": {"exo2": "takes/1/cam02.mp4", "ego": "takes/1/aria.mp4", "exo1": "takes/1/cam01.mp4"},
            "proficiency_score": "Late Expert",
        },
        {"take_uid": "u-2", "video_paths": {"ego": "takes/2/aria.mp4"}, "proficiency_score": "Novice"},
    ],
}
SKILL = "How skilled is the person at this activity? Answer with one of: Novice, Early Expert, Intermediate Expert, Late Expert."  # noqa: E501
ROWS = [["video", "question", "answer", "audio", "signals.imu", "kind"]]
ROWS += [
    ["a.mp4", "What, do you hear?", "A kettle.", "a.wav", "imu/a.npy", "sound"],
    ["b.mp4", "Where?", "Here", "", "", ""],
]
IN_ROWS = [("a.mp4", [("What, do you hear?", "A kettle.")]), ("b.mp4", [("Where?", "Here")])]
BOTH = {"audio": "a.wav", "imu": "imu/a.npy"}

EXCERPTS = {
    "llava list": Excerpt("llava", "train.json", LLAVA, UNDERSTOOD, facts={"id": "7"}),
    "llava lines": Excerpt("llava", "train.jsonl", LLAVA, UNDERSTOOD, lines=True),
    "llava lines in .json": Excerpt("llava", "train.json", LLAVA, UNDERSTOOD, lines=True),
    "llava of one line": Excerpt("llava", "train.json", LLAVA[1:], UNDERSTOOD[1:], lines=True),
    "llava image": Excerpt(
        "llava", "a.json", [{"image": "a.png", "conversations": spoken("<image>\n?", "x")}], [("a.png", [("?", "x")])]
    ),
    "llava-video-178k": Excerpt(
        "llava",
        "1_2_m_academic_oe_v0_1_qa_processed.json",
        [
            each | {"data_source": "1_2_m_academic_v0_1", "video": f"academic_source/{each['video']}"}
            for each in LLAVA * 3
        ],
        [(f"academic_source/{clip}", turns * 2) for clip, turns in UNDERSTOOD],
        options={"per_clip": 2},
        facts={"data_source": "1_2_m_academic_v0_1"},
    ),
    "sharegpt": Excerpt(
        "sharegpt",
        "sharegpt.json",
        [
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    *spoken("<video>What do you hear?", "A kettle.", *KETTLE[1]),
                ],
                "videos": ["a.mp4"],
            },
            {"conversations": spoken("How many?", "two", roles=("user", "assistant")), "videos": ["sub/b.mp4"]},
        ],
        UNDERSTOOD,
        facts={"system": {"from": "system", "value": "Be brief."}},
    ),
    "messages": Excerpt(
        "messages", "swift.jsonl", MESSAGES, UNDERSTOOD, lines=True, facts={"system": MESSAGES[0]["messages"][0]}
    ),
    "messages list": Excerpt("messages", "factory.json", MESSAGES[::-1], UNDERSTOOD[::-1], signals={"audio": "b.wav"}),
    "messages of parts": Excerpt("messages", "trl.json", PARTS, [("a.mp4", [("Why?", "It rains.")])]),
    "columns in CSV": Excerpt("table", "a.csv", table(ROWS), IN_ROWS, signals=BOTH, facts={"kind": "sound"}),
    "columns in CSV with semicolons": Excerpt("table", "a.csv", table(ROWS, ";"), IN_ROWS, signals=BOTH),
    "columns in TSV": Excerpt("table", "a.tsv", table(ROWS, "\t"), IN_ROWS, signals=BOTH),
    "columns with other names": Excerpt(
        "table",
        "a.csv",
        table([["clip", "prompt text", "reply"], ["a.mp4", "Why?", "It rains."]]),
        [("a.mp4", [("Why?", "It rains.")])],
        options={"columns": {"video": "clip", "question": "prompt text", "answer": "reply"}},
    ),
    "columns in lines": Excerpt(
        "table",
        "a.jsonl",
        [{"videos": ["a.mp4"], "query": "<video>Why?", "response": "It rains."}],
        [("a.mp4", [("Why?", "It rains.")])],
        lines=True,
    ),
    "captions": Excerpt(
        "table",
        "a.csv",
        table([["video", "caption"], ["a.mp4", "Rain on a roof."]]),
        [("a.mp4", [("Describe it.", "Rain on a roof.")])],
        options={"question": "Describe it."},
    ),
    "avsd of the challenge": Excerpt(
        "avsd",
        "test_set4DSTC7-AVSD.json",
        {
            "type": "test",
            "version": "0.1",
            "dialogs": [{"image_id": "AB12C", "caption": "a shelf", "summary": "cups", "dialog": DIALOGUE}],
        },
        [("AB12C.mp4", TEN)],
        facts={"caption": "a shelf"},
    ),
    "avsd": Excerpt(
        "avsd",
        "avsd_train.json",
        {
            "AB12C": {"data": DIALOGUE, "summary": "cups", "script": "s"},
            "XY34Z": {"data": asked(*FLAT[:8])},
        },
        [("AB12C.mp4", TEN), ("XY34Z.mp4", TEN[:4])],
    ),
    "avqa": Excerpt(
        "avqa",
        "train_qa.json",
        [
            {
                "id": 1,
                "video_name": "-abc_000030",
                "video_id": 41,
                "question_text": "What makes the sound?",
                "multi_choice": CHOICES,
                "answer": 1,
                "question_relation": "Sound",
                "question_type": "Come From",
            }
        ],
        [("-abc_000030.mp4", [(CHOSEN, "a train")])],
        facts={"question_relation": "Sound"},
    ),
    "music-avqa": Excerpt(
        "music-avqa",
        "avqa-train.json",
        [
            {
                "video_id": "00000272",
                "question_id": 0,
                "type": '["Audio", "Counting"]',
                "question_content": "Is the <Object> louder than the <LRer>?",
                "templ_values": '["flute", "left drum"]',
                "question_deleted": 0,
                "anser": "yes",
            },
            {
                "video_id": "sff00000001",
                "question_id": 1,
                "type": '["Visual", "Location"]',
                "question_content": "Where is it played?",
                "templ_values": "[]",
                "question_deleted": 0,
                "anser": "indoor",
            },
        ],
        [
            ("00000272.mp4", [("Is the flute louder than the left drum?", "yes")]),
            ("sff00000001.mp4", [("Where is it played?", "indoor")]),
        ],
        facts={"type": "Audio Counting", "modality": "Audio"},
    ),
    "scanqa": Excerpt(
        "scanqa",
        "ScanQA_v1.0_train.json",
        SCENES,
        [
            ("scene0000_00", [(SCENES[0]["question"], "brown")]),
            ("scene0001_00", [(SCENES[1]["question"], SCENES[1]["answers"][0])]),
        ],
        facts={"answers": ["brown", "dark brown"]},
    ),
    "scanqa as the authors evaluate": Excerpt(
        "scanqa",
        "ScanQA_val.json",
        [{"question_id": "000001", "scene_id": "scene0000_00", "text": "Which?", "answers": ["that"], "video": "v"}],
        [("scene0000_00", [("Which?", "that")])],
    ),
    "sqa3d": Excerpt(
        "sqa3d",
        "v1_balanced_questions_train_scannetv2.json",
        SITUATED,
        [
            ("scene0000_00", [("I sit at the desk. What is behind me?", "shelf")]),
            ("scene0001_00", [("I stand by the sofa. Can I see the door?", "yes")]),
        ],
        beside={"v1_balanced_sqa_annotations_train_scannetv2.json": ANSWERS},
    ),
    "ego-exo4d": Excerpt(
        "ego-exo4d",
        "proficiency_demonstrator_train.json",
        TAKES,
        [("takes/1/aria.mp4", [(SKILL, "Late Expert")]), ("takes/2/aria.mp4", [(SKILL, "Novice")])],
        signals={"views": ("takes/1/cam01.mp4", "takes/1/cam02.mp4")},
        facts={"take_uid": "u-1"},
    ),
    "pave-dataset": Excerpt(
        "pave-dataset",
        "scanqa_train_instruct.json",
        [
            {"id": "1", "video": "x/abc.mp4", "conversations": spoken("<image>\nWhy?", "It rains.")},
            {"id": "2", "video": "Scene0000_00_vh_clean", "conversations": spoken("<image>\nWho?", "I.")},
            {"id": "3", "video": "unknown", "conversations": spoken("<image>\nWho?", "I.")},
        ],
        [("real/abc.avi", [("Why?", "It rains.")]), ("frames/0", [("Who?", "I.")]), ("unknown", [("Who?", "I.")])],
        beside={"map.json": {"abc": "real/abc.avi", "Scene0000_00_": "frames/0"}},
        options={"format": "pave-dataset", "maps": {"videos": "map.json"}},
        facts={"video": "x/abc.mp4"},
    ),
    **PUBLISHED,
}


def write_excerpt(folder: Path, name: str, content: Any = None) -> Path:
    """The file of an excerpt in a folder, with those beside it; `content` replaces its own."""
    excerpt = EXCERPTS[name]
    content = excerpt.content if content is None else content
    for file, text in {**excerpt.beside, excerpt.file: content}.items():
        if isinstance(text, bytes):
            (folder / file).write_bytes(text)
        elif isinstance(text, str):
            (folder / file).write_text(text, "utf-8")
        elif excerpt.lines and file == excerpt.file:
            (folder / file).write_text("".join(json.dumps(each) + "\n" for each in text), "utf-8")
        else:
            (folder / file).write_text(json.dumps(text, indent=1), "utf-8")
    return folder / excerpt.file
