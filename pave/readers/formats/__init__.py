"""One file per published layout of questions, found by its name; nothing else is in this folder."""
