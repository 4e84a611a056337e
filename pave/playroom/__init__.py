"""The Playroom: a small synthetic world in which every claim can be proved offline, with real media files.

world      scenes, sounds and questions as exact distributions      draw, sound   pixels and samples of a scene
questions  what is asked, in which words, with which answer          writer        mp4 files and JSONL
base/      the embedded video LLM                                    pretrain      the script that made it
"""
