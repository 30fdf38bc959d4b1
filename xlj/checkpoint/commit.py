"""How processes agree about a save, so that no one waits for a failed one.

Orbax lets processes wait for each other twice in a save: when all have written,
and when process 0 has given the checkpoint its name. A process that fails would
leave the others waiting until the timeout. Here it says why in the key-value
store of the coordination service and joins the others where they wait; whoever
has waited looks for such a message.
"""

from collections.abc import Callable
from typing import Any

from xlj.checkpoint import errors
from xlj.distributed import exchange
from xlj.distributed import rendezvous

_PREFIX = "xlj/save"


class _OtherFailedError(Exception):
  """Another process could not do its part."""


class Commit:
  """The agreement on one save after the other."""

  def __init__(self, timeout: int):
    """Nothing is under way yet.

    Args:
      timeout: Seconds to wait for the others.
    """
    self._timeout = timeout
    self._number = 0  # of the save, the same in all processes
    self._joined = 0  # how often one waited in it
    self._waiting = False

  def begin(self, prepare: Callable[..., None], *args: Any) -> str:
    """Prepares a save in every process.

    Args:
      prepare: What to do.
      *args: Of that.

    Returns:
      Why some process could not, the same in all of them; else empty.
    """
    self._number, self._joined, self._waiting = self._number + 1, 0, False
    fault = ""
    try:
      prepare(*args)
    except Exception as error:
      fault = errors.reason_of_failed_save(error)
    return first_fault(exchange.gather("save", fault))

  def barrier(self, *, key: str, timeout_ms: int) -> None:
    """Waits for the others; Orbax calls it.

    Args:
      key: Orbax's name, not unique if a step is saved again.
      timeout_ms: Not used; see `__init__`.

    Raises:
      _OtherFailedError: If another process could not do its part.
    """
    del key, timeout_ms
    service = exchange.client()
    if service is None:
      return
    self._waiting = True
    self._join(service)
    found = dict(service.key_value_dir_get(f"{self._place()}/fault"))
    if found:
      raise _OtherFailedError("; ".join(found.values()))
    self._waiting = False

  def give_up(self, error: Exception) -> str:
    """Lets the others know that this process could not do its part.

    Args:
      error: Why.

    Returns:
      The reason as a text; that of another process if it failed first.
    """
    service = exchange.client()
    if service is None or self._waiting:
      return errors.reason_of_failed_save(error)
    me = exchange.process_id()
    reason = errors.reason_of_failed_save(error)
    text = f"process {me} ({rendezvous.who()}): {reason}"
    try:
      service.key_value_set(f"{self._place()}/fault/{me}", text)
      self._join(service)
    except Exception:  # they are gone, or too late: nothing is left to agree on
      pass
    return text

  def _join(self, service: Any) -> None:
    self._joined += 1
    place = f"{self._place()}/{self._joined}"
    service.wait_at_barrier(place, self._timeout * 1000)

  def _place(self) -> str:
    return f"{_PREFIX}/{self._number}"


def first_fault(faults: list[str]) -> str:
  """The first fault, and whose it is among several processes."""
  for process, text in enumerate(faults):
    if text:
      return f"process {process}: {text}" if len(faults) > 1 else text
  return ""
