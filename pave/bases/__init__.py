"""One file per family of video LLMs, named like its `model_type`; its `BASE` is a subclass of `pave.base.Host`."""
