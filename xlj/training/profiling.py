"""How steps are compiled, and traces of some of them.

A trace is a directory that xprof and TensorBoard open, with a file that
Perfetto opens; operations in it are named by the scopes `encoder`, `pass`,
`update` and `collectives`.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from pathlib import Path
from typing import Any

from absl import logging
import jax

from xlj.ops import platform

DIRECTORY = "profile"
# What compilers of a platform are told of a step: on GPUs, to begin collectives
# early and do other work until they end. TPUs do so without being told.
OPTIONS: dict[str, dict[str, Any]] = {
  "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
}
_wanted: contextvars.ContextVar[tuple[int, int] | None] = (
  contextvars.ContextVar("wanted", default=None)
)


def compiled_step(step: Callable[..., Any]) -> Any:
  """A training step as it is compiled here, its state donated."""
  options = OPTIONS.get(platform.current())
  return jax.jit(step, donate_argnums=0, compiler_options=options)


def parse(text: str) -> tuple[int, int]:
  """The first and the last step of `FIRST:LAST`.

  Args:
    text: Two numbers of steps, from 1.

  Returns:
    Them.

  Raises:
    ValueError: That is no such text.
  """
  first, colon, last = text.partition(":")
  numbers = [int(part) for part in (first, last) if part.isdecimal()]
  if not colon or len(numbers) < 2 or not 1 <= numbers[0] <= numbers[1]:
    raise ValueError(
      f"--profile_steps={text}: give the first and the last step, from 1, such"
      " as 10:20"
    )
  return numbers[0], numbers[1]


@contextlib.contextmanager
def steps(first: int, last: int) -> Iterator[None]:
  """Runs that are trained in here write a trace of some steps.

  Args:
    first: Number of the first of them, from 1.
    last: Number of the last one.

  Yields:
    Nothing.
  """
  token = _wanted.set((first, last))
  try:
    yield
  finally:
    _wanted.reset(token)


class Profile:
  """Writes the trace of a run, if one is wanted; see `steps`."""

  def __init__(self, workdir: Path):
    """Of a run in `workdir`; nothing begins yet."""
    self._first, self._last = _wanted.get() or (0, 0)
    self._directory = workdir / DIRECTORY
    self._runs = False

  def __enter__(self) -> "Profile":
    """Returns itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Ends the trace if it still runs."""
    self._stop()

  def of(self, step: int) -> contextlib.AbstractContextManager[Any]:
    """What a step is taken in: begins the trace when it is due.

    Args:
      step: Number of the step.

    Returns:
      A context.
    """
    if self._first <= step <= self._last and not self._runs:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # much larger, and of no use
      jax.profiler.start_trace(self._directory, profiler_options=options)
      self._runs = True
    if not self._runs:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("step", step_num=step)

  def end(self, step: int, metrics: Any) -> None:
    """Ends the trace after the last step, once devices are through with it.

    Args:
      step: Number of the step.
      metrics: What it returned.
    """
    if self._runs and step >= self._last:
      jax.block_until_ready(metrics)
      self._stop()

  def _stop(self) -> None:
    if self._runs:
      self._runs = False
      jax.profiler.stop_trace()
      logging.info(
        "A trace of steps %d to %d is in %s, for xprof, TensorBoard and"
        " Perfetto",
        *(self._first, self._last, self._directory),
      )
