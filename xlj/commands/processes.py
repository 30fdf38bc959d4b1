"""How a command runs as one of several processes, or as the only one."""

from collections.abc import Callable
import os
import sys
import traceback

from absl import flags
from absl import logging
import jax

from xlj.commands import launching
from xlj.distributed import exchange
from xlj.distributed import exit_status
from xlj.distributed import interruption
from xlj.distributed import start
from xlj.distributed import watch


def run_distributed(main: Callable[[], int | None]) -> None:
  """Runs `main` as `launching.run` does, as one of several processes.

  The flags below say which; without them, and outside of a cluster that is
  known (see `xlj.distributed.start`), it runs alone.

  Args:
    main: The command's function.
  """
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, any free port."
  )
  flags.DEFINE_integer("num_processes", None, "Processes of the job.", 1)
  flags.DEFINE_integer("process_id", None, "Number of this one, from 0.", 0)
  flags.DEFINE_float(
    "initialization_timeout", 300, "Seconds to wait for all processes.", 0
  )
  flags.DEFINE_float(
    "peer_timeout",
    60,
    "Seconds without a sign of life after which a process is lost.",
    1,
  )
  flags.DEFINE_float(
    "stall_timeout",
    1800,
    "Seconds without a step after which the job is stuck.",
    1,
  )
  _define_compilation_cache()
  launching.run(lambda: _as_one_of_many(main))


def run_alone(main: Callable[[], int | None]) -> None:
  """Runs `main` as `launching.run` does, always as the only process.

  Args:
    main: The command's function.
  """
  _define_compilation_cache()

  def alone() -> int | None:
    _keep_compiled(flags.FLAGS.compilation_cache)
    return main()

  launching.run(alone)


def _define_compilation_cache() -> None:
  flags.DEFINE_string(
    "compilation_cache",
    os.path.join(
      os.environ.get("XDG_CACHE_HOME") or "~/.cache",
      "xlj",
      "compiled",
    ),
    "Directory or bucket of compiled programs, so that the next start is"
    " faster; empty for none.",
  )


def _as_one_of_many(main: Callable[[], int | None]) -> int | None:
  values = flags.FLAGS
  start.initialize(
    values.coordinator_address,
    values.num_processes,
    values.process_id,
    initialization_timeout=values.initialization_timeout,
    peer_timeout=values.peer_timeout,
    stall_timeout=values.stall_timeout,
  )
  if exchange.process_id():
    logging.set_verbosity(logging.WARNING)  # process 0 speaks for all
  _keep_compiled(values.compilation_cache)
  try:
    status = main()
  except (Exception, KeyboardInterrupt) as error:
    if watch.is_watching():
      # JAX's errors about other processes may be plain ValueErrors.
      own = isinstance(error, launching.REFUSALS) and not watch.is_about_others(
        error
      )
      if interruption.happened():
        print(interruption.TEXT, file=sys.stderr, flush=True)
        status = exit_status.INTERRUPTED
      else:
        launching.say(str(error)) if own else traceback.print_exc()
        status = exit_status.REFUSED if own else exit_status.CRASHED
      watch.fail(error, status)
    raise
  watch.end()
  return status


def _keep_compiled(directory: str) -> None:
  """Keeps compiled programs, also small ones: there are many of them."""
  for name, value in {
    "jax_compilation_cache_dir": os.path.expanduser(directory) or None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
  }.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)
