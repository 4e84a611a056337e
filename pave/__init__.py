"""PAVE: give a frozen video LLM a new sense. `import pave` is light: torch comes with the first name that needs it."""
