"""One file per family of video LLMs, named like its `model_type`: `MODEL` is the Hugging Face class, `build` the Base."""
