"""The platform that a program is traced for, here or not.

What is fastest, and what compilers have to be kept from, differs between CPUs
and accelerators, and some of it is decided while a program is traced.
"""

from collections.abc import Iterator
import contextlib
import contextvars

import jax

_elsewhere = contextvars.ContextVar("elsewhere", default="")


def current() -> str:
  """What programs are traced for: "cpu", "gpu" or "tpu"."""
  return _elsewhere.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
  """What is traced in here is for a platform that need not be there.

  Args:
    platform: "cpu", "gpu" or "tpu".

  Yields:
    Nothing. Trace functions that were not traced before: JAX keeps what it has
    traced.
  """
  token = _elsewhere.set(platform)
  try:
    yield
  finally:
    _elsewhere.reset(token)
