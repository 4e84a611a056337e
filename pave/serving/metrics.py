"""Figures of a server for Prometheus. None of them holds what was asked or answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

TYPE = "text/plain; version=0.0.4"
SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("pave_requests", "Requests, by route and status", ["path", "status"], registry=own)
        self.seconds = Histogram("pave_request_seconds", "Seconds of an answer", buckets=SECONDS, registry=own)
        self.first = Histogram("pave_first_token_seconds", "Seconds to the first text", buckets=SECONDS, registry=own)
        self.read = Histogram(
            "pave_read_seconds", "Seconds of fetching, decoding, encoding", buckets=SECONDS, registry=own
        )
        self.rows = Histogram("pave_batch_rows", "Rows of the batch, whenever it changes", buckets=ROWS, registry=own)
        self.tokens = Counter("pave_generated_tokens", "Tokens of answers", registry=own)
        self.prompt_tokens = Counter("pave_prompt_tokens", "Tokens of prompts", registry=own)
        self.cached_tokens = Counter("pave_cached_tokens", "Tokens of prompts not computed anew", registry=own)
        self.cancelled = Counter("pave_cancelled", "Requests whose client went away", registry=own)
        self.running = Gauge("pave_running", "Requests in the batch", registry=own)
        self.waiting = Gauge("pave_waiting", "Requests that are read or wait", registry=own)

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)


class Merged(Collector):
    """The figures of several servers, each with its name as the label `replica`."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.families: dict[str, Metric] = {}
        for name, text in texts.items():
            for family in text_string_to_metric_families(text):
                merged = self.families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "replica": name}, sample.value)

    def collect(self) -> Iterable[Metric]:
        return self.families.values()

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)
