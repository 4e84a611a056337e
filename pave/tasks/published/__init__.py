"""One small file per benchmark, found by its name."""
