"""Excerpts of benchmarks in the layouts of their publishers; all words and names in them are ours.

`PUBLISHED`: for each benchmark what `EXCERPTS` (tests/parts/excerpts.py) has for every format.
"""

from __future__ import annotations

from excerpt import Excerpt, table

CHOSEN = "Answer with the option's letter from the given choices directly."


def lettered(question: str, *options: str) -> str:
    """A question as it is asked by default."""
    lines = [f"{letter}. {text}" for letter, text in zip("ABCDE", options, strict=False)]
    return "\n".join([question, *lines, CHOSEN])


def labelled(*options: str) -> list[str]:
    return [f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False)]


SOUNDS = ("a kettle", "a train", "a bird", "rain")
COLOURS = ("red", "blue", "green", "white", "black")
MME = [
    {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Law",
        "url": "https://films.example/1",
        "videoID": "aB-1",
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "What is heard first?",
        "options": labelled(*SOUNDS),
        "answer": "C",
    },
    {
        "video_id": "001",
        "duration": "long",
        "domain": "Sports",
        "sub_category": "Football",
        "url": "https://films.example/1",
        "videoID": "cD_2",
        "question_id": "002-1",
        "task_type": "OCR Problems",
        "question": "Which colour?",
        "options": labelled(*COLOURS[:4]),
        "answer": "A",
    },
]
SPANS = [
    {
        "video": "AB1.mp4",
        "question": "What is put down?",
        "candidates": ["The cup.", "The bag.", "The lid."],
        "answer": "The bag.",
        "start": 2.5,
        "end": 9,
    },
    {"video": "CD2.mp4", "question": "What opens?", "candidates": ["A door.", "A box."], "answer": "A box."},
]
FRAMES = [
    {"video": "ep_1", "question": "Why?", "candidates": ["It rains.", "It is late."], "answer": "It rains."}
    | {"start": 1.0, "end": 4}
]
LONG = [
    {
        "video": "needle_1.mp4",
        "duration": 400.5,
        "question": "What falls?",
        "candidates": "['a cup', \"a bird's nest\"]",
        "answer": "a bird's nest",
        "question_type": "findNeedle",
    },
    {
        "video": "plot_2.mp4",
        "duration": 300,
        "question": "Which?",
        "candidates": ["red", "blue", "red"],
        "answer": "red",
        "question_type": "plotQA",
    },
    {
        "video": "plot_3.mp4",
        "duration": 300,
        "question": "",
        "candidates": ["", ""],
        "answer": "",
        "question_type": "plotQA",
    },
    {
        "video": "plot_4.mp4",
        "duration": 300,
        "question": "Who?",
        "candidates": ["a boy", "a girl"],
        "answer": "a man",
        "question_type": "plotQA",
    },
]
SCHEMA = [
    {"q_uid": uid, "google_drive_id": "g", "question": f"What is done in {uid}?"}
    | {f"option {place}": f"{text} things are moved" for place, text in enumerate(COLOURS)}
    for uid in ("0074-a", "00b9-b", "0101-c")
]
NEXT = table(
    [
        ["video", "frame_count", "width", "height", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4"],
        ["2574", "719", "320", "240", "why did the boy run", "2", "8", "CW", *COLOURS],
        ["3690", "400", "640", "480", "where is this", "0", "1", "DL", *COLOURS],
    ]
)
PERCEPTION = {
    "video_10": {
        "metadata": {"split": "valid", "video_id": "video_10", "frame_rate": 29.9},
        "object_tracking": [],
        "mc_question": [
            {
                "id": 3,
                "question": "Is the cup full?",
                "options": ["yes", "no", "I cannot tell"],
                "answer_id": 1,
                "area": "Physics",
                "reasoning": "Descriptive",
                "tag": ["state"],
            },
            {"id": 4, "question": "Where?", "options": ["left", "right", "both"], "answer_id": 0, "area": "Memory"},
        ],
    },
    "video_11": {"metadata": {"split": "valid"}, "mc_question": []},
}
OMNI = [
    {
        "task type": "Action and Activity",
        "audio type": "speech",
        "question": "What are they doing?",
        "audio content": "A: Four letters. B: Ring!",
        "image content": "Two people on a bench.",
        "audio_path": "1_1.mp3",
        "image_path": "1_1.png",
        "index": 0,
        "answer": "a train",
        "options": list(SOUNDS),
    }
]
DAILY = [
    {
        "Question": "What is shown when the bell rings?",
        "Choice": labelled(*SOUNDS),
        "Answer": "D",
        "Type": "AV Event Alignment",
        "video_id": "G_x",
        "video_category": "Howto",
        "video_duration": "30s",
        "content_parent_category": "Home",
    }
]
WORLD = {
    "aBcD": {
        "video_id": "aBcD",
        "video_duration": "60s",
        "duration": "<1min",
        "domain": "Music",
        "sub_category": "Concert",
        "audio_class": ["Music"],
        "video_caption": "A band plays.",
        "task0": {
            "task_domain": "Recognition",
            "task_type": "Audio Counting",
            "question": "How many drums are heard?",
            "answer": "B",
            "candidates": labelled("one", "two", "three", "four"),
        },
        "task1": {
            "task_domain": "Reasoning",
            "task_type": "Video Emotions",
            "question": "Why do they smile?",
            "answer": "A",
            "candidates": labelled("they won", "they lost", "it rains", "no one does"),
        },
    }
}
HEARD = [
    {"video_id": "00191", "task": "Video-driven Audio Hallucination", "text": "Is the cat making sound in the audio?"}
    | {"label": "No"},
    {
        "video_id": "00191",
        "task": "AV Captioning",
        "text": "Describe it.",
        "label": "A cat sleeps while a clock ticks.",
    },
]
VIDEO = "A film of a kettle that boils."

PUBLISHED = {
    "videomme": Excerpt(
        "videomme",
        "test.jsonl",
        MME,
        [
            ("aB-1.mp4", [(lettered("What is heard first?", *SOUNDS), "C")]),
            ("cD_2.mp4", [(lettered("Which colour?", *COLOURS[:4]), "A")]),
        ],
        facts={"duration": "short", "task_type": "Counting Problem"},
        lines=True,
    ),
    "mvbench": Excerpt(
        "mvbench",
        "action_sequence.json",
        SPANS,
        [
            (
                "video/star/Charades_v1_480/AB1.mp4",
                [(lettered("What is put down?", "The cup.", "The bag.", "The lid."), "B")],
            ),
            ("video/star/Charades_v1_480/CD2.mp4", [(lettered("What opens?", "A door.", "A box."), "B")]),
        ],
        facts={"kind": "action_sequence"},
    ),
    "mvbench of pictures": Excerpt(
        "mvbench",
        "episodic_reasoning.json",
        FRAMES,
        [("video/tvqa/frames_fps3_hq/ep_1", [(lettered("Why?", "It rains.", "It is late."), "A")])],
    ),
    "mlvu": Excerpt(
        "mlvu",
        "2_needle.json",
        LONG,
        [
            ("needle_1.mp4", [(lettered("What falls?", "a cup", "a bird's nest"), "B")]),
            ("plot_2.mp4", [(lettered("Which?", "red", "blue", "red"), "C")]),
            ("plot_4.mp4", [(lettered("Who?", "a boy", "a girl"), "none")]),
        ],
        facts={"question_type": "findNeedle"},
    ),
    "egoschema": Excerpt(
        "egoschema",
        "questions.json",
        SCHEMA,
        [
            (f"{uid}.mp4", [(lettered(f"What is done in {uid}?", *(f"{c} things are moved" for c in COLOURS)), letter)])
            for uid, letter in (("0074-a", "D"), ("0101-c", "A"))
        ],
        beside={"subset_answers.json": {"0101-c": 0, "0074-a": 3}},
    ),
    "next-qa": Excerpt(
        "next-qa",
        "test.csv",
        NEXT,
        [
            ("2574.mp4", [(lettered("why did the boy run", *COLOURS), "C")]),
            ("3690.mp4", [(lettered("where is this", *COLOURS), "A")]),
        ],
        facts={"type": "CW", "kind": "C"},
    ),
    "perception-test": Excerpt(
        "perception-test",
        "mc_question_valid.json",
        PERCEPTION,
        [
            (
                "video_10.mp4",
                [
                    (lettered("Is the cup full?", "yes", "no", "I cannot tell"), "B"),
                    (lettered("Where?", "left", "right", "both"), "A"),
                ],
            )
        ],
        facts={"area": "Physics", "reasoning": "Descriptive"},
    ),
    "omnibench": Excerpt(
        "omnibench",
        "batch-5_1142_20240817.jsonl",
        OMNI,
        [("1_1.png", [(lettered("What are they doing?", *SOUNDS), "B")])],
        facts={"task type": "Action and Activity"},
        signals={"audio": "1_1.mp3"},
        lines=True,
    ),
    "daily-omni": Excerpt(
        "daily-omni",
        "qa.json",
        DAILY,
        [("G_x_video.mp4", [(lettered("What is shown when the bell rings?", *SOUNDS), "D")])],
        facts={"Type": "AV Event Alignment", "video_duration": "30s"},
    ),
    "worldsense": Excerpt(
        "worldsense",
        "worldsense_qa.json",
        WORLD,
        [
            (
                "aBcD.mp4",
                [
                    (lettered("How many drums are heard?", "one", "two", "three", "four"), "B"),
                    (lettered("Why do they smile?", "they won", "they lost", "it rains", "no one does"), "A"),
                ],
            )
        ],
        facts={"domain": "Music", "task_type": "Audio Counting"},
    ),
    "activitynet-qa": Excerpt(
        "activitynet-qa",
        "test_q.json",
        [
            {"video_name": "1QI", "question": "is the athlete tall", "question_id": "v_1QI_3"},
            {"video_name": "2AB", "question": "what moves", "question_id": "v_2AB_1"},
        ],
        [("v_1QI.mp4", [("is the athlete tall", "no")]), ("v_2AB.mp4", [("what moves", "2")])],
        beside={
            "test_a.json": [
                {"answer": 2, "type": 0, "question_id": "v_2AB_1"},
                {"answer": "no", "type": 3, "question_id": "v_1QI_3"},
            ]
        },
        facts={"kind": "yes or no"},
    ),
    "msrvtt-qa": Excerpt(
        "msrvtt-qa",
        "test_qa.json",
        [
            {"answer": "couch", "category_id": 14, "id": 158581, "question": "what is shown?", "video_id": 7010},
            {"answer": "dog", "category_id": 2, "id": 158582, "question": "who runs?", "video_id": 7012},
        ],
        [("video7010.mp4", [("what is shown?", "couch")]), ("video7012.mp4", [("who runs?", "dog")])],
        facts={"category_id": 14},
    ),
    "msvd-qa": Excerpt(
        "msvd-qa",
        "test_qa.json",
        [
            {"answer": "boy", "id": 31500, "question": "who sings?", "video_id": 1301},
            {"answer": "milk", "id": 31501, "question": "what is poured?", "video_id": 1303},
        ],
        [("-4ws_5_15.avi", [("who sings?", "boy")]), ("xY_1_9.avi", [("what is poured?", "milk")])],
        beside={"youtube_mapping.txt": "-4ws_5_15 vid1301\nzz_1_2 vid1302\nxY_1_9 vid1303\n"},
    ),
    "vatex": Excerpt(
        "vatex",
        "vatex_public_test_english_v1.1.json",
        [
            {"videoID": "aa_000010_000020", "enCap": [VIDEO, "Water boils."], "chCap": ["水开了。"]},
            {"videoID": "bb_000001_000011", "enCap": ["A dog barks."]},
        ],
        [
            ("aa_000010_000020.mp4", [("Describe the video in one sentence.", VIDEO)]),
            ("bb_000001_000011.mp4", [("Describe the video in one sentence.", "A dog barks.")]),
        ],
        facts={"answers": [VIDEO, "Water boils."]},
    ),
    "valor": Excerpt(
        "valor",
        "desc_test.json",
        [{"video_id": "x-2_30.000_40.000", "desc": VIDEO}, {"video_id": "y_1.000_11.000", "desc": "A dog barks."}],
        [
            ("x-2_30.000_40.000.mp4", [("Describe in one sentence what is seen and heard.", VIDEO)]),
            ("y_1.000_11.000.mp4", [("Describe in one sentence what is seen and heard.", "A dog barks.")]),
        ],
    ),
    "video-chatgpt": Excerpt(
        "video-chatgpt",
        "generic_qa.json",
        [{"video_name": "v_a1", "Q": "What happens?", "A": VIDEO}, {"video_name": "v_b2", "Q": "Who?", "A": "A man."}],
        [("v_a1.mp4", [("What happens?", VIDEO)]), ("v_b2.mp4", [("Who?", "A man.")])],
    ),
    "video-chatgpt in pairs": Excerpt(
        "video-chatgpt",
        "consistency_qa.json",
        [{"video_name": "v_a1", "Q1": "What happens?", "Q2": "What is shown?", "A": VIDEO}],
        [("v_a1.mp4", [("What happens?", VIDEO), ("What is shown?", VIDEO)])],
    ),
    "avhbench": Excerpt(
        "avhbench",
        "QA.json",
        HEARD,
        [("00191.mp4", [(each["text"], each["label"]) for each in HEARD])],
        facts={"task": "Video-driven Audio Hallucination"},
    ),
    "save-bench": Excerpt(
        "save-bench",
        "audiovisualmatching_combined.json",
        [
            {"image": ["sets/a.jpg", "sounds/b.wav"], "question": "Does the sound match?", "answer": "No"},
            {"image": ["sets/c.mp4", "sets/c.wav"], "question": "Does the sound match?", "answer": "Yes"},
            {"image": "d.jpg", "question": "Which?", "answer": ["red", "dark red"]},
            {"image_name": "e.mp4", "question": "Who?", "answer_candidates": ["a boy", "a girl"], "answer": "a girl"},
            {"image_name": ["f.mp4", "f.wav"], "conversation": [["Who?", "A man."], ["Where?", "Here."]]},
        ],
        [
            ("sets/a.jpg", [("Does the sound match?", "No")]),
            ("sets/c.mp4", [("Does the sound match?", "Yes")]),
            ("d.jpg", [("Which?", "red")]),
            ("e.mp4", [("Who?\n- a boy\n- a girl", "a girl")]),
            ("f.mp4", [("Who?", "A man."), ("Where?", "Here.")]),
        ],
        options={"format": "save-bench"},
        facts={"kind": "audiovisualmatching_combined"},
        signals={"audio": "sounds/b.wav"},
    ),
}
