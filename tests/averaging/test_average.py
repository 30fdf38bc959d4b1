"""Averages of checkpoints, against means in float64."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import meshes
from tests import runs
from xlj import config as config_lib
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.averaging import average
from xlj.averaging import soups
from xlj.checkpoint import checkpointer
from xlj.checkpoint import errors
from xlj.checkpoint import reader
from xlj.checkpoint import steps
from xlj.config import splits
from xlj.data import pipeline
from xlj.evaluation import evaluate
from xlj.heads.dense import block_sample
from xlj.heads.dense import rows as rows_lib
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.ops import row_format
from xlj.ops import row_optimizer
from xlj.synthetic import topics as synthetic
from xlj.training import preparation
from xlj.training import train

# --- arithmetic ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", row_format.DTYPES)
def test_the_mean_of_stored_rows_is_that_of_their_values(dtype):
  rng = np.random.default_rng(0)
  rows = row_format.RowFormat(dtype)
  stored = jax.jit(rows.encode)

  def draw():
    values = rng.normal(size=(2, 16, 5)).astype(np.float32)
    values *= 2.0 ** rng.integers(-9, 9, (2, 16, 1))
    level = {"bias": values[1, :, 0], **stored(values[0])}
    where = jax.NamedSharding(mesh, sharding.LABELS)
    head = {"0": jax.device_put(level, where), "wide": jnp.asarray(values[1])}
    return {"encoder": {"w": jnp.ones(3)}, "head": head, "buffers": None}

  with meshes.mesh((2, 4)) as mesh:
    trees = [draw() for _ in range(3)]
    wanted = [
      np.asarray(rows.decode(tree["head"]["0"]), np.float64) for tree in trees
    ]
    bias = [np.asarray(tree["head"]["0"]["bias"]) for tree in trees]
    like = jax.eval_shape(lambda tree: tree, trees[0])
    mean = average.decode(trees[0])
    same = mean["head"]["0"]["rows"] is trees[0]["head"]["0"]["rows"]
    assert same == (dtype == "float32")  # or a third checkpoint is in memory
    for n, tree in enumerate(trees[1:], 2):
      mean = average.blend(mean, average.decode(tree), n)
    found = average.encode(mean, like)
    level = mean["head"]["0"]
    assert level["rows"].addressable_shards[0].data.shape == (2, 5)
    np.testing.assert_allclose(
      level["rows"], np.mean(wanted, 0), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(level["bias"], np.mean(bias, 0), rtol=1e-5)
    # What is stored is one rounding of the mean, not one each time.
    jax.tree.map(
      np.testing.assert_array_equal,
      {k: v for k, v in found["head"]["0"].items() if k != "bias"},
      stored(level["rows"]),
    )
    wanted_types = {name: like[name] for name in found}
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, found, wanted_types)
  assert all(jax.tree.leaves(same))


def test_whole_numbers_are_those_of_the_first():
  def tree(value):
    head = {
      # float32 has no such numbers.
      "wide_starts": np.array([[0, 2**24 + 1, 2**31 - 1]], np.int32),
      "wide_columns": np.array([[5, 2**16 - 1]], np.uint16),
      "wide": np.full((1, 2), value, np.float32),
    }
    return jax.tree.map(jnp.asarray, {"encoder": {}, "head": head})

  like, mean = tree(0), average.decode(tree(1))
  for n, value in ((2, 2), (3, 6)):
    mean = average.blend(mean, average.decode(tree(value)), n)
  found = average.encode(mean, like)
  jax.tree.map(np.testing.assert_array_equal, found, tree(3))
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), found, like
  )


def test_an_optimizer_goes_on_with_what_belongs_to_the_new_rows():
  def state(value):
    row = row_optimizer.RowState(*(np.full(2, value + i) for i in range(3)))
    return {"0": row, "1": block_sample.State(row, np.full(4, value))}

  found = average.continued(state(10), state(20))
  want = row_optimizer.RowState(np.full(2, 10), np.full(2, 21), np.full(2, 22))
  jax.tree.map(
    np.testing.assert_array_equal,
    found,
    {"0": want, "1": block_sample.State(want, np.full(4, 20))},
  )
  # Those of other heads hold nothing that is derived from weights.
  assert average.continued((1, 2), (3, 4)) == (1, 2)


# --- directories --------------------------------------------------------------


def make_config(data_dir, **more):
  fields = {
    "head__wide": False,
    "data__validation": 0.2,
    "checkpoint__every": 5,
    "eval__every": 5,  # or the best of others is kept as well
    "checkpoint__keep": 4,
    "train__num_steps": 20,
    "optim__encoder__learning_rate": 0.02,
    "optim__head__learning_rate": 0.02,
  }
  return runs.make_config(data_dir, **(fields | more))


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
  """A complete run with checkpoints of steps 5, 10, 15, 20."""
  workdir = tmp_path_factory.mktemp("trained") / "run"
  train.train(make_config(data_dir), workdir)
  return workdir


def read(workdir, step):
  """The model of a checkpoint, on one device."""
  config = config_lib.load(workdir / config_lib.FILE)
  with jax.set_mesh(meshes.make((1, 1))):
    abstract = model_lib.Model(config).abstract().model
    directory = steps.resolve(workdir / checkpointer.DIRECTORY)
    found, _ = reader.read(directory, step, {"model": abstract})
  return jax.tree.map(np.asarray, found["model"])


def mean_of(trees):
  """Their mean in float64, buffers of the first."""
  mean = {
    name: jax.tree.map(
      lambda *a: np.mean(np.asarray(a, np.float64), 0),
      *(tree[name] for tree in trees),
    )
    for name in ("encoder", "head")
  }
  return mean | {"buffers": trees[0]["buffers"]}


def negated(model):
  """More than the opposite of what was learned."""
  return model | {"encoder": jax.tree.map(lambda a: -9 * a, model["encoder"])}


def variant(trained, workdir, newest, change=None, **fields):
  """Another run: as if it had ended at `newest`, with other weights."""
  shutil.copytree(trained, workdir)
  directory = workdir / checkpointer.DIRECTORY
  for path in directory.iterdir():
    if int(path.name) > newest:
      shutil.rmtree(path)
  config = config_lib.load(workdir / config_lib.FILE)
  config.update_from_flattened_dict(fields)
  (workdir / config_lib.FILE).write_text(config_lib.to_json(config))
  if change is not None:
    with jax.set_mesh(mesh_lib.make_mesh()):
      abstract = model_lib.Model(config).abstract()
      with checkpointer.Checkpointer(directory, keep=9) as keeper:
        step, model, training, facts = keeper.restore_newest(
          abstract.model, abstract.training
        )
        keeper.save(step, change(model), training, facts)
  return workdir


@pytest.mark.slow
def test_the_last_ones_of_a_run_make_a_run(trained, data_dir, tmp_path):
  recipe = soups.make_soup([trained], tmp_path / "out", last=3)
  assert [c["step"] for c in recipe["candidates"]] == [20, 15, 10]
  assert json.loads((tmp_path / "out" / soups.FILE).read_text()) == recipe
  run = predictor.load(tmp_path / "out")
  assert run.step == 20
  wanted = mean_of([read(trained, step) for step in (20, 15, 10)])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    run.state,
    wanted,
  )
  # The run is complete: nothing is left to train, and nothing is refused.
  assert train.train(make_config(data_dir), tmp_path / "out")
  assert (tmp_path / "out" / "report.html").exists()
  # Without a number, all of them.
  assert [c.step for c in soups.find([trained])] == [20, 15, 10, 5]


def with_other_pairs(model):
  """As if others had met."""
  columns = model["head"]["wide_columns"]
  head = model["head"] | {"wide_columns": columns[:, ::-1]}
  return model | {"head": head}


@pytest.mark.slow
def test_linear_runs_of_the_same_pairs_make_a_run(data_dir, tmp_path):
  paths = [tmp_path / "0", tmp_path / "1"]
  for i, path in enumerate(paths):
    config = make_config(
      data_dir, **runs.LINEAR | {"head__wide": True, "train__shuffle": i}
    )
    for part in (config.optim.encoder, config.optim.head):
      part.learning_rate = None
    train.train(config, path)
  soups.make_soup(paths, tmp_path / "out")
  found = predictor.load(tmp_path / "out").state
  first, second = (read(path, 20) for path in paths)
  assert np.abs(first["head"]["wide"] - second["head"]["wide"]).max() > 0.1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    found,
    mean_of([first, second]),
  )
  for name in rows_lib.PAIRS[:2]:
    assert found["head"][name].dtype == first["head"][name].dtype
    np.testing.assert_array_equal(found["head"][name], first["head"][name])
  other = variant(paths[1], tmp_path / "other", 5, with_other_pairs)
  with pytest.raises(errors.CheckpointError, match="head/wide_columns differs"):
    soups.make_soup([paths[0], other], tmp_path / "never")


def precision(workdir, model):
  """P@1 on the held-out rows, of a model in numpy on one device."""
  run = predictor.load(workdir, which="last")
  data = splits.open_split(run.config)
  _, rows = pipeline.holdout(
    data.num_rows, float(run.config.data.validation), run.config.seed
  )
  run.state = jax.tree.map(
    lambda a, like: jax.device_put(np.asarray(a, like.dtype), like.sharding),
    model,
    run.state,
  )
  _, ids = run.topk(data.features.take(rows), 1)
  right = data.labels.take(rows).to_scipy().toarray()
  return 100 * np.mean(right[np.arange(len(rows)), ids[:, 0]] != 0)


@pytest.mark.slow
def test_a_greedy_soup_leaves_out_what_spoils_it(trained, tmp_path):
  rate = {"optim.head.learning_rate": 0.5}
  spoiled = variant(trained, tmp_path / "spoiled", 15, negated, **rate)
  # With the same weights again the score does not fall.
  paths = spoiled, trained, variant(trained, tmp_path / "other", 15, **rate)
  recipe = soups.make_soup(paths, tmp_path / "out", mode="greedy", last=2)
  assert recipe["metric"] == "P@1" and recipe["split"] == "held out"
  models, scores = {}, {}
  for found in recipe["candidates"]:
    key = found["workdir"], found["step"]
    models[key] = read(type(trained)(key[0]), key[1])
    scores[key] = precision(trained, models[key])
    assert found["score"] == pytest.approx(scores[key])
  assert len(models) == 6
  ranked = [(c["workdir"], c["step"]) for c in recipe["candidates"]]
  assert [scores[key] for key in ranked] == sorted(scores.values())[::-1]
  kept, best = [], -1.0
  for key, found in zip(ranked, recipe["candidates"]):
    score = precision(trained, mean_of([models[k] for k in (*kept, key)]))
    assert found["score_with"] == pytest.approx(score)
    assert found["kept"] == (score >= best)
    if score >= best:
      kept, best = [*kept, key], score
  assert 1 < len(kept) < 6 and (str(spoiled), 15) not in kept
  assert recipe["score"] == pytest.approx(best)
  out = predictor.load(tmp_path / "out")
  assert precision(trained, out.state) == pytest.approx(best)
  # The first run's, though its newest checkpoint is not in it.
  assert out.step == 15 and out.config.optim.head.learning_rate == 0.5


def permuted(model):
  """The same rows under other label ids."""
  ids = model["buffers"]["label_ids"]
  swapped = jax.device_put(np.asarray(ids)[::-1].copy(), ids.sharding)
  return model | {"buffers": model["buffers"] | {"label_ids": swapped}}


@pytest.mark.parametrize(
  "change, fields, message",
  [
    (None, {"seed": 1}, "other cannot be .* seed: 0 in the first, 1 here"),
    (None, {"encoder.dim": 8}, "encoder.dim: 16 in the first, 8 here"),
    (permuted, {}, "other, step 5 .* buffers/label_ids differs; label ids"),
  ],
)
def test_runs_that_do_not_go_together_are_refused(
  trained, tmp_path, change, fields, message
):
  other = variant(trained, tmp_path / "other", 5, change, **fields)
  with pytest.raises(
    (config_lib.ConfigError, errors.CheckpointError), match=message
  ):
    soups.make_soup([trained, other], tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_arrays_of_another_shape_are_refused(trained, tmp_path, monkeypatch):
  other = variant(trained, tmp_path / "other", 5)
  path = other / checkpointer.DIRECTORY / "5" / "meta" / "metadata"
  document = json.loads(path.read_text())
  document.pop("seal")
  document["arrays"]["model"]["head/rows"]["shape"][1] = 3
  path.write_text(json.dumps(steps.seal(document)))
  with pytest.raises(errors.CheckpointError, match="step 5 .* head/rows is"):
    soups.make_soup([trained, other], tmp_path / "out")


@pytest.mark.parametrize(
  "workdirs, options, message",
  [
    (["run", "gone"], {}, "gone/config.json does not exist"),
    (["run", "run"], {}, "run is given more than once"),
    (["run"], {"last": 1}, "there is one checkpoint, .*run, step 20, and"),
    (["run"], {"last": -1}, "last is -1"),
    (["run"], {"mode": "best"}, "mode is 'best'"),
    (["run"], {"mode": "greedy", "metric": "P@7"}, "eval.metric is 'P@7'"),
    (["run"], {"output": "run"}, "run is not empty"),
  ],
)
def test_what_cannot_be_averaged_is_refused(
  trained, tmp_path, workdirs, options, message
):
  paths = [trained.parent / name for name in workdirs]
  output = trained.parent / options.pop("output", "never")
  with pytest.raises(config_lib.ConfigError, match=message):
    soups.make_soup(paths, output, **options)
  assert not (trained.parent / "never").exists()


def test_without_held_out_rows_a_split_has_to_be_named(
  trained, data_dir, tmp_path
):
  run = variant(trained, tmp_path / "run", 20, **{"data.validation": 0.0})
  with pytest.raises(config_lib.ConfigError, match="no rows were held out"):
    soups.make_soup([run], tmp_path / "out", mode="greedy")
  other = dataclasses.replace(runs.SPEC, seed=9)
  synthetic.generate(tmp_path / "data", other)
  with pytest.raises(config_lib.ConfigError, match="data.fingerprint is"):
    soups.make_soup(
      [trained],
      tmp_path / "out",
      mode="greedy",
      data_dir=str(tmp_path / "data"),
    )


def test_runs_of_another_order_hold_out_the_same_rows(data_dir):
  first, second = (
    preparation.prepare(make_config(data_dir, train__shuffle=i))
    for i in range(2)
  )
  np.testing.assert_array_equal(first[1].valid_rows, second[1].valid_rows)
  batches = [data.batches(config)[0] for config, data in (first, second)]
  assert set(batches[0]) != set(batches[1])


@pytest.mark.slow
@pytest.mark.parametrize(
  "fields",
  [
    {"head__wide": True},
    {"head__dtype": "bfloat16", "head__correction": "kahan"},
    {"head__type": "mhc", "head__groups": (16,), "head__dtype": "float8"},
  ],
  ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_an_unfinished_run_goes_on_from_its_average(data_dir, tmp_path, fields):
  config = make_config(data_dir, **fields)
  config.predict.propensity_power = 0.0
  runs.stop_after(17, config, tmp_path / "run")
  recipe = soups.make_soup([tmp_path / "run"], tmp_path / "out", mode="greedy")
  assert [c["step"] for c in recipe["candidates"]].count(15) == 1
  assert predictor.load(tmp_path / "out").step == 15
  assert train.train(config, tmp_path / "out")
  steps_seen = [row["step"] for row in runs.records(tmp_path / "out", "train")]
  assert steps_seen == list(range(16, 21))
  assert predictor.load(tmp_path / "out", which="last").step == 20


@pytest.mark.slow
def test_the_launcher_averages_and_refuses(trained, tmp_path):
  arguments = f"--workdirs={trained}", f"--output={tmp_path / 'out'}"
  process = runs.launch("average", *arguments, "--mode=greedy", devices=2)
  status, _, err = runs.finish(process)
  assert status == 0, err
  assert "Scored 4 of 4: P@1 of" in err and "is the average of" in err
  assert 0 < evaluate.evaluate(tmp_path / "out")["P@1"] <= 100
  status, _, err = runs.finish(runs.launch("average", *arguments))
  assert status == 2
  assert (
    err.strip().splitlines()[-1].endswith("is not empty; use another output")
  )
