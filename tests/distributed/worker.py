"""A launcher whose processes add numbers together until one gets in trouble."""

import ctypes
import os
import signal
import time

from absl import flags
import jax
import numpy as np

from xlj import config as config_lib
from xlj.commands import processes
from xlj.distributed import exchange
from xlj.distributed import watch

_WHO = flags.DEFINE_integer("who", -1, "The process that gets in trouble.")
_WHAT = flags.DEFINE_enum(
  "what",
  "none",
  ["none", "raise", "refuse", "kill", "freeze", "sleep", "abort"],
  "The trouble.",
)
_STEPS = flags.DEFINE_integer("steps", 6, "Steps until the end.")
_TROUBLE_AT = 4


def main() -> None:
  names = exchange.gather("names", f"name {exchange.process_id()}")
  assert names == [f"name {i}" for i in range(exchange.num_processes())]
  mesh = jax.make_mesh((jax.device_count(),), ("d",))
  sharding = jax.NamedSharding(mesh, jax.P("d"))
  numbers = jax.make_array_from_process_local_data(
    sharding, np.ones(jax.local_device_count(), np.float32)
  )
  add = jax.jit(lambda x: x.sum())
  for step in range(1, _STEPS.value + 1):
    watch.note(f"taking step {step}")
    if step == _TROUBLE_AT and exchange.process_id() == _WHO.value:
      get_in_trouble(_WHAT.value)
    total = float(add(numbers))
    print(f"step {step}: {total}", flush=True)
    time.sleep(0.1)


def get_in_trouble(what: str) -> None:
  if what == "raise":
    raise RuntimeError("no more sums")
  if what == "refuse":
    raise config_lib.ConfigError("/data/collective_connection does not exist")
  if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
  if what == "freeze":
    os.kill(os.getpid(), signal.SIGSTOP)
  if what == "sleep":
    time.sleep(1000)
  if what == "abort":  # in another thread, while this one lets no Python run
    libc = ctypes.CDLL(None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    libc.signal(signal.SIGALRM, libc.abort)
    libc.alarm(1)
    ctypes.PyDLL(None).sleep(1000)


if __name__ == "__main__":
  processes.run_distributed(main)
