"""Being told to stop: SIGTERM, which schedulers send before they take a host.

With several processes all have to stop after the same step, whichever of them
was told; JAX's preemption service brings that about.
"""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils


class Stopping:
  """Takes notice of SIGTERM and Ctrl-C, as a context manager.

  A second signal of a kind acts as it does elsewhere, at once. With several
  processes JAX itself takes SIGTERM.

  Example:
    >>> with Stopping() as stopping:
    ...   for step in range(1, 11):
    ...     if stopping.after(step):
    ...       break
  """

  def __init__(self) -> None:
    """Takes no notice yet."""
    self._told = ""
    self._before: dict[signal.Signals, Any] = {}

  def __enter__(self) -> Stopping:
    """Begins to take notice."""
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._take)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Leaves the signals as they were."""
    for number in list(self._before):
      self._leave(number)

  def after(self, step: int) -> bool:
    """Whether to save and stop after this step; asked once for each.

    Args:
      step: The step that was taken.

    Returns:
      The same in all processes.
    """
    if jax.process_count() == 1:
      return bool(self._told)
    return multihost_utils.reached_preemption_sync_point(step)

  def _take(self, number: int, frame: Any) -> None:
    self._told = signal.Signals(number).name
    logging.info("%s: saving after this step, then stopping", self._told)
    self._leave(signal.Signals(number))

  def _leave(self, number: signal.Signals) -> None:
    signal.signal(number, self._before.pop(number))
