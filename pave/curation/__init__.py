"""Instructions about clips, written by a language model from captions."""
