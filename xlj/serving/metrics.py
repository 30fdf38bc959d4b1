"""What Prometheus is told."""

from collections.abc import Callable, Sequence
from typing import Any

from xlj.serving.packages import prometheus_client

_SECONDS = (
  *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
  *(1, 2.5, 5, 10, 30),
)
_ROWS = tuple(1 << i for i in range(12))


class Metrics:
  """Counters of one server."""

  def __init__(self, waiting_rows: Callable[[], int]):
    """Makes them.

    Args:
      waiting_rows: How many rows wait, when it is asked.
    """
    self.registry = prometheus_client.CollectorRegistry()
    prometheus_client.ProcessCollector(registry=self.registry)
    where = {"registry": self.registry}
    self._known: dict[tuple[str, int], tuple[Any, Any, Any]] = {}
    self._requests = prometheus_client.Counter(
      "xlj_requests",
      "Requests by path and status.",
      ["path", "status"],
      **where,
    )
    self._seconds = prometheus_client.Histogram(
      "xlj_request_seconds",
      "From the first byte of a body to the answer.",
      ["path"],
      buckets=_SECONDS,
      **where,
    )
    self._rows = prometheus_client.Counter(
      "xlj_rows",
      "Rows of requests by what became of them.",
      ["status"],
      **where,
    )
    waiting = prometheus_client.Gauge(
      "xlj_waiting_rows", "Rows that wait to be computed.", **where
    )
    waiting.set_function(waiting_rows)
    self._batch_rows = prometheus_client.Histogram(
      "xlj_batch_rows", "Rows computed at a time.", buckets=_ROWS, **where
    )
    self._batch_seconds = prometheus_client.Histogram(
      "xlj_batch_seconds", "Of a computation.", buckets=_SECONDS, **where
    )
    self._waited = prometheus_client.Histogram(
      "xlj_waiting_seconds",
      "From when a request is accepted to its computation.",
      buckets=_SECONDS,
      **where,
    )
    self._loads = prometheus_client.Counter(
      "xlj_reloads", "Models replaced, or not.", ["model", "outcome"], **where
    )

  def request(self, path: str, status: int, rows: int, seconds: float) -> None:
    """An answer has been given."""
    counted, timed, of_rows = self._children(path, status)
    counted.inc()
    timed.observe(seconds)
    if rows:
      of_rows.inc(rows)

  def _children(self, path: str, status: int) -> tuple[Any, Any, Any]:
    """Those of some labels; looking them up takes longer than counting."""
    found = self._known.get((path, status))
    if found is None:
      found = self._known[path, status] = (
        self._requests.labels(path, status),
        self._seconds.labels(path),
        self._rows.labels(status),
      )
    return found

  def batch(self, rows: int, seconds: float, waited: Sequence[float]) -> None:
    """A batch has been computed."""
    self._batch_rows.observe(rows)
    self._batch_seconds.observe(seconds)
    for one in waited:
      self._waited.observe(one)

  def reload(self, model: str, outcome: str) -> None:
    """Another model was to replace one."""
    self._loads.labels(model, outcome).inc()

  def text(self) -> bytes:
    """In the format of Prometheus."""
    return prometheus_client.generate_latest(self.registry)
