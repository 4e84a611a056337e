"""Published benchmarks: which questions, prompt and metrics each has."""
