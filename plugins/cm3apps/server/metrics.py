"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from cm3apps.server.intake import Gate
    from cm3apps.server.pool import ModelPool
    from cm3apps.server.queueing import FairQueue

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


class Metrics:
    """Counters and gauges of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cm3_requests",
            "Answered requests; status 499: the client went away",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cm3_request_seconds",
            "From a request's arrival to the end of its answer",
            ["route"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._refused = Counter(
            "cm3_refused",
            "Requests and connections that were refused or ended, by the error's code: invalid_api_key, "
            "body_too_large, connections, slow_reader, ...",
            ["reason"],
            registry=self.registry,
        )
        self._results = Counter(
            "cm3_results",
            "Finished results: drawn, filled and edited pictures, captions, answers",
            ["sort"],
            registry=self.registry,
        )

    def watch(self, queue: FairQueue, pool: ModelPool, gate: Gate) -> None:
        """Show the state of the queue, of the models and of the memory for requests."""
        unsent = gate.unsent
        for name, help, value in (
            ("cm3_waiting_requests", "Requests that wait for their turn", lambda: queue.waiting),
            ("cm3_results_in_flight", "Results generated now", lambda: queue.in_flight),
            ("cm3_engine_requests", "Engine requests in flight", lambda: pool.num_requests),
            ("cm3_models_loaded", "Models in memory", lambda: len(pool.loaded)),
            ("cm3_model_loads", "Models loaded since the start", lambda: pool.loads),
            ("cm3_body_bytes", "Bytes of bodies in flight", lambda: gate.bodies.in_flight),
            ("cm3_pixels", "Pixels of sent pictures in flight", lambda: gate.pixels.in_flight),
            (
                "cm3_result_pixels",
                "Pixels of results that are drawn, or wait to be encoded",
                lambda: gate.results.in_flight,
            ),
            ("cm3_unsent_bytes", "Bytes of answers not read, in memory", lambda: unsent.in_memory),
            ("cm3_spooled_bytes", "Bytes of answers not read, in files", lambda: unsent.in_files),
        ):
            Gauge(name, help, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a request or a connection that was refused."""
        self._refused.labels(reason or "other").inc()

    def finished(self, sort: str) -> None:
        """Count a finished result."""
        self._results.labels(sort).inc()

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
