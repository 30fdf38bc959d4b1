"""What spherical losses are worth beside others, after the same time.

  python benchmarks/spherical_quality.py --config=ptb.py --data_dir=DIR
  python benchmarks/spherical_quality.py --config=xmc.py:citeulike_tags \\
    --data_dir=DIR --family=embedding

Every contestant has the same encoder, is trained for --seconds of processor
time (of this process, reading and steps: starting and compiling do not count),
and is scored on held-out rows of the training split. Label rows start at
random, rates are constant after a warm-up of 50 steps. A number in a name is
the learning rate of label rows.
"""

import argparse
import json
import pathlib
import runpy
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.data import pipeline
from xlj.evaluation import evaluator
from xlj.model import batches
from xlj.model import model as model_lib
from xlj.training import preparation

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SPHERICAL = {
  "head.type": "spherical",
}


def spherical(loss: str, rate: float, **fields: Any) -> dict[str, Any]:
  """Fields of a spherical loss in factored form."""
  rates = {"head.loss": loss, "optim.head.learning_rate": rate}
  return SPHERICAL | rates | fields


CONTESTANTS: dict[str, dict[str, Any]] = {
  "softmax": {"head.loss": "softmax"},
  "bce": {"head.loss": "bce"},
  "mhp": {"head.type": "mhp", "head.loss": "softmax", "data.max_labels": 1},
  "sampled": {"head.type": "mhs", "head.loss": "softmax"},
  "z_loss 3": spherical("z_loss", 3.0),
  "z_loss 30": spherical("z_loss", 30.0),
  "taylor 1": spherical("taylor_softmax", 1.0),
  "taylor 10": spherical("taylor_softmax", 10.0),
  "spherical 1": spherical("spherical_softmax", 1.0),
  "gramian 1": spherical("gramian", 1.0),
}


def main() -> None:
  options = parse()
  logging.set_verbosity(logging.ERROR)
  records = []
  for name in options.only.split(",") if options.only else CONTESTANTS:
    config = make_config(options, CONTESTANTS[name])
    with jax.set_mesh(mesh_lib.make_mesh()):
      records.append({"name": name, **train(config, options.seconds)})
    shown = (
      f"{k} {v:,.2f}" for k, v in records[-1].items() if not isinstance(v, str)
    )
    print(f"{name:>12}: {', '.join(shown)}", flush=True)
  if options.json:
    options.json.write_text(json.dumps(records, indent=1) + "\n")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--config", default="xmc.py", help="file:argument")
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--cache_dir", default="", help="of the memory maps")
  parser.add_argument("--family", help="other than the config's")
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--only", help="names, with commas; by default all")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  return parser.parse_args()


def make_config(
  options: argparse.Namespace, fields: dict[str, Any]
) -> ml_collections.ConfigDict:
  """The config of a contestant."""
  name, _, argument = options.config.partition(":")
  config = runpy.run_path(str(CONFIGS / name))["get_config"](argument)
  if options.family:  # What a set says of linear models is not meant.
    data = config.data
    config = config_lib.base()
    config.data = data
    config.family = options.family
    config.head.wide = False
  common = {
    "data.dir": options.data_dir,
    "data.cache_dir": options.cache_dir,
    "data.validation": 0.02,
    "predict.propensity_power": 0.0,
    "optim.warmup": 0.005,
    "optim.decay": "constant",
    "train.num_steps": 10_000,
  }
  if fields.get("head.type") != "mhp":
    common["head.init"] = "normal"
  config.update_from_flattened_dict(common | fields)
  return config


def train(config: ml_collections.ConfigDict, seconds: float) -> dict[str, Any]:
  """Trains for that long, and scores."""
  config, data = preparation.prepare(config)
  model = model_lib.Model(config)
  judge = evaluator.Evaluator(
    model,
    data.split,
    data.weighting,
    data.order,
    batch_size=config.eval.batch_size,
    num_labels=config.data.num_labels,
    ks=config.eval.ks,
    rows=data.valid_rows,
    per_label=False,
  )
  counts = data.stats.label_counts
  if counts is not None:
    counts = data.order.by_head_id(counts).astype(np.int32)
  idf = np.ones(config.data.num_features, np.float32)
  ids = data.order.data_ids
  state = model.init(
    sharding.replicate(jax.random.key(config.seed)),
    None if ids is None else model.by_row(ids, -1),
    None if counts is None else model.by_row(counts, 0),
    sharding.replicate(idf),
  )
  stream = pipeline.train_batches(
    data.split,
    data.weighting,
    batch_size=config.train.batch_size,
    seed=config.seed,
    rows=data.rows,
    process=batches.this_process(),
    num_threads=0,
  )
  step = jax.jit(model.train_step, donate_argnums=0)
  used = count = 0
  while used < seconds:
    inputs = batches.to_inputs(next(stream), data.order)
    begin = time.process_time()
    state, metrics = step(state, sharding.put_batch(inputs))
    jax.block_until_ready(metrics)
    if count:  # The first one compiles.
      used += time.process_time() - begin
    count += 1
  scores = judge.run(state.model).compute()
  kept = {k: v for k, v in scores.items() if k.startswith("P@")}
  return {"steps": count, **kept, **judge.loss(state.model)}


if __name__ == "__main__":
  main()
