"""One file per family of video LLMs, named like its `model_type`: the Hugging Face class, and `build` for the Base."""
