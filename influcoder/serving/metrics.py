"""What Prometheus reads, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest


class Metrics:
    """Counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        labels = ["path", "status"]
        self._requests = Counter("influcoder_requests", "Requests by path and status.", labels, registry=self._registry)
        self._seconds = Histogram("influcoder_request_seconds", "Seconds from request to response.", ["path"], registry=self._registry)
        self._queries = Histogram(
            "influcoder_batch_queries", "Queries searched together.", registry=self._registry, buckets=(1, 2, 4, 8, 16, 32, 64, 128)
        )
        self._rows = Counter("influcoder_rows_scanned", "Rows scored, for each query anew.", registry=self._registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, queries: int, rows: int) -> None:
        """Count a pass of so many queries over so many rows."""
        self._queries.observe(queries)
        self._rows.inc(queries * rows)

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
