"""Which errors are other processes' fault."""

import dataclasses
import json
from pathlib import Path
import signal

import jax
import pytest

from xlj import config as config_lib
from xlj.checkpoint import errors
from xlj.data import errors as data_errors
from xlj.distributed import watch

LOST = jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")
GLOO = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")


def caused(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  "error", [LOST, GLOO, caused(errors.CheckpointError("not saved"), LOST)]
)
def test_errors_of_jax_about_others(error):
  assert watch.is_about_others(error)


@pytest.mark.parametrize(
  "error",
  [
    config_lib.ConfigError("/data/collective_x does not exist"),
    data_errors.DataError("/data/barrier.txt", "nothing", "a label"),
    errors.CheckpointError("/runs/aborted/checkpoints holds none"),
    ValueError("/data/nccl: not a number"),
    OSError("/data/connection does not exist"),
    KeyError("gloo"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ValueError(
      'NOT_FOUND: Error opening "zarr" driver: /data/collective'
      " [tensorstore_spec='{}']"
    ),
  ],
)
def test_errors_of_this_process(error):
  assert not watch.is_about_others(error)


def test_signs_of_life_are_checked():
  sign = watch.Sign("host, pid 1", "training", True, 3, 7)
  text = json.dumps(dataclasses.asdict(sign))
  assert watch.Sign.parsed(text) == sign
  for wrong in (
    "{", "[" * 100_000, "3", "{}", text.replace('"who"', '"whom"'),
    text.replace("3", '"a"'), text.replace("true", "1"),
  ):  # fmt: skip
    assert watch.Sign.parsed(wrong) is None


def test_a_thread_that_blocks_other_signals_too_is_seen_to_abort():
  assert not watch._is_aborting()
  signals = {signal.SIGABRT, signal.SIGUSR1}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
  try:
    assert watch._is_aborting() == Path("/proc/self/task").exists()
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_thread_that_blocks_all_signals_does_not_abort():
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
  try:
    assert not watch._is_aborting()
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
