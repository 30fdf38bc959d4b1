"""Requests that wait, and the thread that computes them, many at a time.

There is no timer: when the thread is free it takes what waits, so that a
request that finds it free does not wait at all, and batches grow with the load.
Requests whose clients have left are taken out of the queue. The same rule is
that of Text Embeddings Inference (Hugging Face, `queue.rs`); windows that are
sorted by length are those of infinity (`batch_handler.py`).
"""

import asyncio
from collections.abc import Callable, Hashable, Iterator, Sequence
import dataclasses
import math
import threading
import time
from typing import Any

# Rows that are taken at a time, in batches; those of like length share one.
_WINDOW = 4


class Full(Exception):
  """The queue has no room."""


@dataclasses.dataclass(eq=False)
class Job:
  """A request that waits.

  Attributes:
    key: Jobs of one key can be computed together.
    rows: How many it has.
    length: Of its longest row.
    work: What is to be computed.
    future: Gets the result, or an error.
    came: When.
  """

  key: Hashable
  rows: int
  length: int
  work: Any
  future: asyncio.Future
  came: float = dataclasses.field(default_factory=time.monotonic)


# The results of jobs of one key, or their errors, in their order.
Compute = Callable[[Sequence[Job]], Sequence[Any]]
# Told of each batch: its rows, seconds, and those that its jobs waited.
Observe = Callable[[int, float, Sequence[float]], None]


class Batcher:
  """A queue that is bounded in rows, and its thread."""

  def __init__(
    self,
    compute: Compute,
    *,
    batch_rows: int,
    max_waiting_rows: int,
    observe: Observe = lambda rows, seconds, waited: None,
  ):
    """Starts the thread.

    Args:
      compute: Called by the thread, one call at a time.
      batch_rows: How many rows it gets, unless one job has more.
      max_waiting_rows: Room of the queue.
      observe: Told what happens.
    """
    self._compute, self._observe = compute, observe
    self._batch_rows, self._room = batch_rows, max_waiting_rows
    self._waiting: dict[Job, None] = {}
    self.rows = 0  # that wait
    self._rate = 0.0  # rows a second, as of late
    self._stopped = False
    self._changed = threading.Condition()
    self._thread = threading.Thread(target=self._work, daemon=True)
    self._thread.start()

  def submit(self, key: Hashable, rows: int, length: int, work: Any) -> Job:
    """Lets a job wait; called from an event loop, which gets the result.

    Raises:
      Full: There is no room for so many rows.
    """
    future = asyncio.get_running_loop().create_future()
    job = Job(key, rows, length, work, future)
    with self._changed:
      if self.rows + rows > self._room:
        raise Full
      self._waiting[job] = None
      self.rows += rows
      self._changed.notify()
    return job

  def seconds(self) -> int:
    """After how many of them there may be room."""
    return max(1, math.ceil(self.rows / self._rate)) if self._rate else 1

  def drop(self, job: Job) -> None:
    """Takes a job out of the queue, if it still waits: nobody wants it."""
    with self._changed:
      if job in self._waiting:
        self._remove(job)
    job.future.cancel()

  def stop(self) -> None:
    """Ends the thread after what waits."""
    with self._changed:
      self._stopped = True
      self._changed.notify()
    self._thread.join()

  def _remove(self, job: Job) -> None:
    del self._waiting[job]
    self.rows -= job.rows

  def _work(self) -> None:
    while window := self._take():
      for batch in _batches(window, self._batch_rows):
        wanted = [job for job in batch if not job.future.cancelled()]
        if wanted:
          self._compute_batch(wanted)

  def _take(self) -> list[Job]:
    """The jobs of a window, sorted by length; empty when it is to end."""
    with self._changed:
      while not self._waiting:
        if self._stopped:
          return []
        self._changed.wait()
      first = next(iter(self._waiting))
      taken, rows = [], 0
      for job in self._waiting:
        if job.key != first.key:
          continue
        if taken and rows + job.rows > _WINDOW * self._batch_rows:
          break
        taken.append(job)
        rows += job.rows
      for job in taken:
        self._remove(job)
    return sorted(taken, key=lambda job: job.length)

  def _compute_batch(self, jobs: Sequence[Job]) -> None:
    start = time.monotonic()
    try:
      results = self._compute(jobs)
    except Exception as error:  # a bug, which the next batch may not have
      results = [error] * len(jobs)
    seconds = time.monotonic() - start
    rows = sum(job.rows for job in jobs)
    speed = rows / max(seconds, 1e-6)
    self._rate = 0.9 * self._rate + 0.1 * speed if self._rate else speed
    self._observe(rows, seconds, [start - job.came for job in jobs])
    try:
      jobs[0].future.get_loop().call_soon_threadsafe(_deliver, jobs, results)
    except RuntimeError:
      pass  # the loop has ended, and with it all who wait


def _deliver(jobs: Sequence[Job], results: Sequence[Any]) -> None:
  for job, result in zip(jobs, results):
    if job.future.done():  # nobody waits for it any more
      continue
    if isinstance(result, Exception):
      job.future.set_exception(result)
    else:
      job.future.set_result(result)


def _batches(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
  """Consecutive jobs of at most so many rows, or one that has more."""
  batch: list[Job] = []
  for job in jobs:
    if batch and sum(j.rows for j in batch) + job.rows > most:
      yield batch
      batch = []
    batch.append(job)
  if batch:
    yield batch
