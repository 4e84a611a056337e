"""Token rows in which all questions about a clip share its prefix, and what each of them attends to."""
