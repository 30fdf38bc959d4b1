"""Small real runs for tests: generated data, configs, launchers."""

import importlib
import importlib.util
import json
import multiprocessing
import os
from pathlib import Path
import runpy
import subprocess
import sys
import tempfile

import jax
import pytest

from xlj import config as config_lib
from xlj.synthetic import topics as synthetic
from xlj.training import train

ROOT = Path(__file__).parents[1]
SPEC = synthetic.Spec(
  num_labels=700,
  num_train=900,
  num_test=200,
  num_features=500,
  num_groups=4,
  topics_per_group=4,
)
# Of data that is never read: configs are decided by it.
FACTS = config_lib.DataFacts(
  num_rows=20_000,
  num_features=5_000,
  num_labels=30_000,
  labels_per_row=1.0,
  features_per_row=20.0,
  dense=False,
  kind="counts",
  fingerprint="x",
)

# Of `make_config`, for linear weights and biases alone.
LINEAR = {
  "family": "linear",
  "encoder__dim": 0,
  "encoder__embedding_dropout": None,
  "head__loss": "bce",
}


def make_data(directory):
  """Writes a small data set; returns its directory."""
  synthetic.generate(directory, SPEC)
  return directory


def make_config(data_dir, **overrides):
  """A config that trains in seconds; overrides are dotted names with __."""
  config = config_lib.base()
  config.data.dir = str(data_dir)
  config.data.validation = 0.05
  config.family = "network"
  config.encoder.dim = 16
  config.encoder.embedding_dropout = 0.3
  config.head.loss = "softmax"
  config.head.wide = True
  if overrides.get("head__type") != "mhs":  # its groups are its blocks
    config.head.blocks = 8
  config.train.batch_size = 64
  config.train.epochs = 2.0
  config.train.log_every = 1
  config.eval.batch_size = 64
  for name, value in overrides.items():
    *sections, field = name.split("__")
    section = config
    for key in sections:
      section = section[key]
    section[field] = value
  return config


def resolved(facts=FACTS, **fields):
  """The base config with fields of dotted names with __, decided by facts."""
  config = config_lib.base()
  named = {name.replace("__", "."): value for name, value in fields.items()}
  config.update_from_flattened_dict(named)
  return config_lib.resolve(config, facts)


def config_file(name):
  """The module of a file of configs."""
  path = ROOT / "configs" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def benchmark(name):
  """The module of a benchmark, which finds its neighbours."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module(name)


def records(workdir, kind):
  """Lines of metrics.jsonl of a kind, without the clock."""
  lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [
    {k: v for k, v in row.items() if k != "time"}
    for row in rows
    if row["kind"] == kind
  ]


def losses(workdir):
  """The loss of each step."""
  return [row["loss"] for row in records(workdir, "train")]


def launch(name, *args, devices=1, **kwargs):
  """Starts a launcher as a user would, in a process of its own."""
  env = dict(os.environ)
  env.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
  env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  env["PYTHONPATH"] = str(ROOT)
  path = ROOT / "launch" / f"{name}.py" if isinstance(name, str) else name
  command = [sys.executable, str(path), *args]
  return subprocess.Popen(
    command,
    env=env,
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    **kwargs,
  )


def finish(process, timeout=240):
  """Waits; returns (exit status, stdout, stderr)."""
  out, err = process.communicate(timeout=timeout)
  return process.returncode, out, err


# Its processes start from one that has imported all this.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def launch_to_end(name, *args):
  """Like `launch` and `finish`, without the seconds that imports take."""
  with tempfile.TemporaryDirectory() as directory:
    files = [Path(directory) / name for name in ("stdout", "stderr")]
    process = _FORKS.Process(target=_run_launcher, args=(name, args, files))
    process.start()
    process.join(240)
    process.kill()
    process.join()
    return process.exitcode, *(file.read_text() for file in files)


def _run_launcher(name, args, files):
  for descriptor, file in enumerate(files, 1):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
  path = str(ROOT / "launch" / f"{name}.py")
  sys.argv = [path, *map(str, args)]
  os.chdir(ROOT)
  runpy.run_path(path, run_name="__main__")


class Stopped(Exception):
  pass


def stop_after(steps, config, workdir):
  """Trains until a step raises, as if the process had died there."""
  seen = []
  jit = jax.jit

  def counting_jit(function, **options):
    compiled = jit(function, **options)
    if getattr(function, "__name__", "") != "train_step":
      return compiled

    def step(*args):
      seen.append(0)
      if len(seen) > steps:
        raise Stopped
      return compiled(*args)

    return step

  jax.jit = counting_jit
  try:
    with pytest.raises(Stopped):
      train.train(config, workdir)
  finally:
    jax.jit = jit
