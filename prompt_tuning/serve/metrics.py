"""What the server counts, for Prometheus."""

import functools
from collections.abc import Callable

import jax
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["CONTENT_TYPE_LATEST", "Metrics", "compilations"]

COMPILED = "/jax/core/compile/backend_compile_duration"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One server's counts; several servers of a process each have their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = functools.partial(Counter, namespace="prompt_tuning", registry=self.registry)
        histogram = functools.partial(Histogram, namespace="prompt_tuning", registry=self.registry)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = counter("requests", "Requests answered", ["route", "status"])
        self.seconds = histogram("request_seconds", "From a request's first byte to its answer's last", ["route"], buckets=SECONDS)  # fmt: skip # noqa: E501
        self.texts = counter("texts", "Texts in calls of the model, being written in one after another", ["work"])
        self.batches = histogram("batch_texts", "Texts of a batch", ["work"], buckets=EXAMPLES)
        self.model_seconds = counter("model_seconds", "Seconds that the model was at work", ["work"])
        self.positions = counter("positions", "Positions that the model computed, and those that held something", ["work", "kind"])  # fmt: skip # noqa: E501
        self._before = compilations()
        self.gauge("compilations", "Programs compiled since the server was ready; more than 0 is a bug", lambda: compilations() - self._before)  # fmt: skip # noqa: E501

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A number that is looked up when it is asked for."""
        Gauge(name, about, namespace="prompt_tuning", registry=self.registry).set_function(value)

    def ready(self) -> None:
        """From here on nothing should compile."""
        self._before = compilations()

    def batch(self, work: str, texts: int, held: int, computed: int, seconds: float) -> None:
        """One call of the model: `work` is rank, read or write."""
        self.texts.labels(work).inc(texts)
        self.batches.labels(work).observe(texts)
        self.model_seconds.labels(work).inc(seconds)
        self.positions.labels(work, "held").inc(held)
        self.positions.labels(work, "computed").inc(computed)

    def request(self, route: str, status: int, seconds: float) -> None:
        """One request, by the route's pattern: never by what stood in it."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)


@functools.cache
def _compiled() -> list[int]:
    count = [0]

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        count[0] += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    return count


def compilations() -> int:
    """Programs that this process compiled since this was first called."""
    return _compiled()[0]
