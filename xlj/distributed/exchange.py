"""Short texts between processes, without the devices.

They go through the key-value store of JAX's coordination service, which runs in
process 0. All processes have to take part in each exchange, in the same order.
"""

from collections.abc import Sequence
import itertools
from typing import Any

from xlj.distributed import jax_private

_PREFIX = "xlj/gather"
_TIMEOUT_S = 24 * 3600  # a lost process is noticed elsewhere; see `watch`
_numbers = itertools.count()


class ProcessesDifferError(ValueError):
  """What has to be the same in all processes is not."""


def client() -> Any:
  """The client of the coordination service; None in a single process."""
  return jax_private.client()


def process_id() -> int:
  """Number of this process; known before any device is."""
  return jax_private.process_id()


def num_processes() -> int:
  """How many processes there are."""
  return jax_private.num_processes() if client() is not None else 1


def gather(name: str, text: str) -> list[str]:
  """Gives every process the text of every process.

  Args:
    name: What it is about, for messages of errors.
    text: That of this process, at most some kilobytes.

  Returns:
    The texts, by process.
  """
  service = client()
  if service is None:
    return [text]
  prefix = f"{_PREFIX}/{next(_numbers)}/{name}"
  service.key_value_set(f"{prefix}/{process_id()}", text)
  return [
    service.blocking_key_value_get(f"{prefix}/{other}", _TIMEOUT_S * 1000)
    for other in range(num_processes())
  ]


def check_same(name: str, text: str, hint: str) -> None:
  """Refuses to go on if the processes do not have the same text.

  Args:
    name: What it is.
    text: That of this process.
    hint: What to do about it.

  Raises:
    ProcessesDifferError: In all processes; it names those that differ from
      process 0.
  """
  texts = gather(name, text)
  others = [i for i, other in enumerate(texts) if other != texts[0]]
  if others:
    raise ProcessesDifferError(
      f"{name} of {processes(others)} differs from that of process 0; {hint}"
    )


def processes(numbers: Sequence[int]) -> str:
  """Names some processes, as in "processes 1, 3 and 4"."""
  *most, last = map(str, numbers)
  if not most:
    return f"process {last}"
  return f"processes {', '.join(most)} and {last}"
