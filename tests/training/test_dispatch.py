"""The host hands out steps: it waits for no device, and can trace them."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
from xlj.ops import platform
from xlj.training import profiling
from xlj.training import train

STEPS = 100
# By which arrays of a device become the host's without being asked for by name.
IMPLICIT = ("__array__", "__float__", "__int__", "__bool__", "__index__")
IMPLICIT += ("item", "tolist", "__iter__")


class Watch:
  """Counts transfers that nobody asked for, in all threads."""

  def __init__(self, patch):
    self.to_host, self.to_device = [], 0
    self._on = self._asked = False
    kind = type(jnp.zeros(()))
    for name in IMPLICIT:
      patch.setattr(kind, name, self._noting(name, getattr(kind, name)))
    for name in ("asarray", "array"):  # which may read memory as it is
      patch.setattr(np, name, self._noting(name, getattr(np, name)))
    get = jax.device_get

    def device_get(tree):
      self._asked = True
      try:
        return get(tree)
      finally:
        self._asked = False

    patch.setattr(jax, "device_get", device_get)

  def _noting(self, name, method):
    def run(array, *args, **kwargs):
      unasked = self._on and not self._asked
      if unasked and isinstance(array, jax.Array):
        self.to_host.append((name, array.shape))
      return method(array, *args, **kwargs)

    return run

  def set(self, on):
    self._on = on
    jax.config.update("jax_transfer_guard", "disallow" if on else "allow")


@pytest.fixture
def watch(monkeypatch):
  made = Watch(monkeypatch)
  yield made
  made.set(False)


@pytest.mark.slow
def test_a_hundred_steps_transfer_nothing_unasked(
  watch, data_dir, tmp_path, use_mesh, monkeypatch
):
  use_mesh((2, 4))
  config = runs.make_config(
    data_dir,
    train__num_steps=STEPS + 1,
    train__log_every=10,
    eval__every=STEPS + 1,
    checkpoint__every=STEPS + 1,
    data__threads=2,
  )
  batches = train.batches.for_training

  def watched(*args, **kwargs):
    for i, batch in enumerate(batches(*args, **kwargs)):
      watch.set(0 < i < STEPS)  # the first step compiles, the last one saves
      yield batch

  monkeypatch.setattr(train.batches, "for_training", watched)
  train.train(config, tmp_path)
  assert len(runs.losses(tmp_path)) >= STEPS // 10
  assert not watch.to_host, watch.to_host[:5]


def test_a_transfer_is_seen(watch):
  a, b, add = jnp.arange(3.0), jnp.float32(2), jax.jit(jnp.add)
  add(a, jnp.ones(3))
  watch.set(True)
  jax.device_get(a)
  assert not watch.to_host
  with pytest.raises(Exception, match="Disallowed host-to-device"):
    add(a, np.ones(3, np.float32))
  np.asarray(a)
  float(b)
  assert watch.to_host == [("asarray", (3,)), ("__float__", ())]


@pytest.mark.slow
def test_a_trace_names_the_parts_of_a_step(data_dir, tmp_path, use_mesh):
  use_mesh((2, 4))
  config = runs.make_config(data_dir, train__num_steps=5)
  with profiling.steps(2, 3):
    train.train(config, tmp_path)
  (found,) = (tmp_path / profiling.DIRECTORY).glob("plugins/profile/*")
  (space,) = found.glob("*.xplane.pb")
  text = space.read_bytes()
  for name in (b"encoder", b"pass", b"update", b"collectives"):
    assert b"/" + name + b"/" in text, name
  (events,) = found.glob("*.trace.json.gz")
  with gzip.open(events) as file:
    names = {e.get("name") for e in json.load(file)["traceEvents"]}
  assert "step" in names


@pytest.mark.parametrize("text", ["10", "10:", "0:3", "7:3", "a:b", "1:2:3"])
def test_steps_of_a_trace_are_two_numbers(text):
  with pytest.raises(ValueError, match="first and the last step"):
    profiling.parse(text)


def test_options_of_gpus_are_known_to_the_compiler():
  assert profiling.parse("10:20") == (10, 20)
  with platform.tracing_for("gpu"):
    step = profiling.compiled_step(lambda a, b: (a + b, b))
  assert step(jnp.ones(3), jnp.ones(3))[0][0] == 2
