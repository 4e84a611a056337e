"""Readers of data files: what people have, as questions about clips."""
