"""The Playroom: a small synthetic world in which every claim can be tested offline, with real media files.

world      scenes and sounds as exact distributions                  draw, sound   pixels and samples of a scene
questions  questions, answers and best possible scores               writer        mp4 files and JSONL
base/      the embedded video LLM                                    pretrain      the script that trained it
"""
