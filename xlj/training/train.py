"""The training loop: data, model, steps, validation, checkpoints."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path

from absl import logging
import jax
import ml_collections
import numpy as np

from xlj import config as config_lib
from xlj import files
from xlj import mesh as mesh_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.checkpoint import probe
from xlj.config import encoders
from xlj.config.heads import oltr
from xlj.data import statistics
from xlj.data import weighting as weighting_lib
from xlj.distributed import exchange
from xlj.distributed import stopping
from xlj.distributed import watch
from xlj.evaluation import evaluator
from xlj.model import batches
from xlj.model import model as model_lib
from xlj.model import state as state_lib
from xlj.report import goodput
from xlj.report import machine
from xlj.report import progress
from xlj.report import recorded
from xlj.report import report
from xlj.runs import directory
from xlj.runs import label_corrections
from xlj.runs import ownership
from xlj.training import closed_form
from xlj.training import closing
from xlj.training import dual
from xlj.training import first_stage
from xlj.training import noisy_labels
from xlj.training import not_finite
from xlj.training import preparation
from xlj.training import profiling
from xlj.training import room


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> bool:
  """Trains a model, or continues the run that `workdir` holds.

  A checkpoint is saved each `checkpoint.every` steps, at the end, and where a
  validation, each `eval.every` steps, finds the best `eval.metric` so far: "the
  best" is that of all validations.

  As one of several processes (see `xlj.distributed`), all of them call it with
  the same config and a directory that they share.

  Args:
    config: A config (see `xlj.config.base`); fields left None are decided
      from the data.
    workdir: Directory of the run: config, checkpoints, metrics, report.

  Returns:
    Whether the run is complete; False if it was told to stop (see
    `xlj.distributed.stopping`), and has saved a checkpoint to continue from.

  Raises:
    ConfigError: If the config cannot be run, or is not that of the run that
      `workdir` holds, or another process is writing into it.
    DataError: If the data cannot be read.
    FloatingPointError: If the loss is not finite.
    CheckpointError: If the last step cannot be saved, or no checkpoint of the
      run that is to be continued can be read.
    ProcessesDifferError: If processes do not have the same config or data.
  """
  workdir = directory.resolve(workdir)
  mesh = mesh_lib.make_mesh(tuple(config.mesh.shape) or None)
  with contextlib.ExitStack() as stack:
    owner = stack.enter_context(ownership.owning(workdir))
    place = config.checkpoint.dir or str(workdir)
    if "://" not in place and Path(place).resolve() != workdir.resolve():
      stack.enter_context(ownership.owning(Path(place).absolute()))
    return _train(config, workdir, mesh, owner)


def _train(
  config: ml_collections.ConfigDict,
  workdir: Path,
  mesh: jax.sharding.Mesh,
  owner: ownership.Owner,
) -> bool:
  """The same, in a directory that nobody else writes into."""
  clock = goodput.Clock(recorded.read_json(workdir / goodput.GOODPUT_FILE))
  config, data = preparation.prepare(config, workdir)
  exchange.check_same(
    "the config, resolved with the data,",
    config_lib.to_json(config),
    "start all with the same flags and data",
  )
  exchange.check_same(
    "the order of labels",
    data.order.fingerprint(),
    "give all the same software, or name a file in head.order",
  )
  split = data.split
  directory.claim(
    *(workdir, config, data.order, data.names, split.numbering),
    None if split.encoding is None else split.encoding.featurizer,
  )
  probe.probe(directory.checkpoints(workdir, config))
  with jax.set_mesh(mesh):
    model = model_lib.Model(config)
    with directory.keeper(workdir, config, model) as keeper:
      complete = _loop(model, keeper, config, data, workdir, owner, clock)
      if jax.process_index() == 0:
        _report(workdir)  # while the last checkpoint is saved
  if jax.process_index() == 0:
    facts = preparation.facts(data.split)
    said = closing.text(workdir, config, facts, keeper.latest_step() or 0)
    logging.info("%s", said)
  return complete


def _report(workdir: Path) -> None:
  """Writes the report; a run does not end badly for want of it."""
  path = workdir / recorded.MACHINE_FILE
  try:
    facts = machine.with_peak(recorded.read_json(path), jax.local_devices())
    files.write_text(path, json.dumps(facts, indent=2) + "\n")
    report.write_report(workdir)
  except OSError as error:
    logging.warning("The report is not renewed: %s", error)


def _start(
  model: model_lib.Model,
  keeper: checkpointer.Checkpointer,
  config: ml_collections.ConfigDict,
  data: preparation.Data,
) -> tuple[model_lib.State, frozenset[int]]:
  """The newest checkpoint's state, or a fresh one, and the steps skipped."""
  watch.note("starting", timed=False)
  found = None
  if keeper.latest_step() is not None:
    abstract = model.abstract()
    found = keeper.restore_newest(abstract.model, abstract.training)
  if found is not None:
    step, *trees, facts = found
    logging.info("Continuing from the checkpoint of step %d", step)
    state = model_lib.State(*trees, step=sharding.replicate(np.int32(step)))
    return state, frozenset(facts.get("skipped", ()))
  ids, counts = data.order.data_ids, data.stats.label_counts
  if counts is not None:
    counts = data.order.by_head_id(counts).astype(np.int32)
  state = model.init(
    sharding.replicate(jax.random.key(config.seed)),
    None if ids is None else model.by_row(ids, -1),
    None if counts is None else model.by_row(counts, 0),
    sharding.replicate(_idf(config, data.weighting)),
  )
  if preparation.pairs_field(config):
    pairs = preparation.find_pairs(config, data)
    state = model.with_pairs(state, *pairs.arrays)
  before = first_stage.Stage(None, None, None)
  if config.train.start_from:
    own_ids = state.model["buffers"].get("label_ids")
    before = first_stage.load(config, own_ids)
  elif config.encoder.pretrained:
    weights = sharding.replicate(encoders.pretrained_weights(config))
    before = before._replace(encoder=weights)
  if before.encoder is not None:
    begin = functools.partial(first_stage.start, model)
    state = jax.jit(begin, out_shardings=model.shardings(), donate_argnums=0)(
      state, before
    )
  if before.rows is not None and "keys" not in model.head.can:
    return state, frozenset()  # its label rows have been trained
  if config.head.init == "ridge":
    logging.info("Starting at the ridge regression of labels on features")
    state = closed_form.start(model, config, data, state)
  elif config.head.init == "label_text":
    logging.info("Starting at the texts of the labels")
    data = preparation.of_label_texts(data, "head.init='label_text'")
    state = _centring(model, config, data, model.start_at_centroids)(state)
  elif config.head.init == "centroid" or "memory" in model.head.can:
    logging.info("Starting at the centroids of the labels' examples")
    state = _centring(model, config, data, model.start_at_centroids)(state)
  return state, frozenset()


def _idf(
  config: ml_collections.ConfigDict, weighting: weighting_lib.Weighting | None
) -> np.ndarray:
  """Inverse document frequencies `[F]` to keep with the model."""
  if weighting is None or weighting.idf is None:
    return np.ones(config.data.num_features, np.float32)
  return weighting.idf


def _weighted_as_learned(
  data: preparation.Data, state: model_lib.State
) -> preparation.Data:
  """Data whose features weigh what they did when the run began.

  After an edit of labels (see `xlj.labels`) a run may go on with other data.
  """
  if data.weighting is None or data.weighting.idf is None:
    return data
  idf = sharding.whole(state.model["buffers"]["idf"])
  weighting = dataclasses.replace(data.weighting, idf=idf)
  return dataclasses.replace(data, weighting=weighting)


def _centring(
  model: model_lib.Model,
  config: ml_collections.ConfigDict,
  data: preparation.Data,
  use: Callable[[jax.Array, model_lib.State], model_lib.State],
) -> Callable[[model_lib.State], model_lib.State]:
  """What uses the sums of the embeddings of each label's examples.

  Args:
    model: The model.
    config: Its config.
    data: Of training.
    use: A state from the sums and the state.

  Returns:
    A function of the state, which is donated: a pass over the examples.
  """
  add = jax.jit(model.add_to_centroids, donate_argnums=0)
  # The sums may be wider than anything that could take their place.
  finish = jax.jit(use, out_shardings=model.shardings(), donate_argnums=1)

  which, widths = batches.by_length(config, data.split, data.rows)

  def run(state):
    rows = model.zero_rows()
    for inputs in batches.of_split(
      data.split,
      data.weighting,
      data.order,
      batch_size=config.eval.batch_size,
      rows=which,
      widths=widths,
    ):
      rows = add(rows, state.model, sharding.put_batch(inputs))
    return finish(rows, state)

  return run


def _loop(
  model: model_lib.Model,
  keeper: checkpointer.Checkpointer,
  config: ml_collections.ConfigDict,
  data: preparation.Data,
  workdir: Path,
  owner: ownership.Owner,
  clock: goodput.Clock,
) -> bool:
  """Runs the steps that are left, again where a batch cannot be used.

  Returns:
    Whether all steps are done; False if told to stop.
  """
  state, skip = _start(model, keeper, config, data)
  room.check_disk(config, workdir, state)
  data = _weighted_as_learned(data, state)
  if config.neighbours.count:
    near = preparation.neighbours(config, data)
    if not jax.process_index():
      near.save(workdir)
    data = dataclasses.replace(data, neighbours=near)
  rest = config, data, workdir, owner, clock
  while True:
    try:
      return _steps(model, keeper, state, skip, *rest)
    except not_finite.NotFiniteError as error:
      clock.enter("start")
      del state  # it was donated
      skip = not_finite.skip_too(error, skip, keeper, config, data, workdir)
    # Steps update in place; only a checkpoint has the state before them.
    state, _ = _start(model, keeper, config, data)


def _steps(
  model: model_lib.Model,
  keeper: checkpointer.Checkpointer,
  state: model_lib.State,
  skip: frozenset[int],
  config: ml_collections.ConfigDict,
  data: preparation.Data,
  workdir: Path,
  owner: ownership.Owner,
  clock: goodput.Clock,
) -> bool:
  """Runs the steps that are left, but for those to skip.

  The order matters: the state is validated and saved before the batch of the
  next step is taken, so a restored run sees exactly the batches that the
  interrupted one had not seen. What is the best by validation so far is saved
  even where no save is due; states that are saved without a validation are not
  compared.

  Raises:
    NotFiniteError: If the loss of a step, or its gradient, is not finite.
  """
  start, stop = int(state.step), config.train.num_steps
  clock.go_back(start)
  if start == stop and keeper.latest_step() is not None:
    logging.info("It was complete already: there is nothing to train")
  batch_size, first = config.train.batch_size, jax.process_index() == 0
  validator = _validator(model, config, data)
  step_fn = profiling.compiled_step(model.train_step)
  recentred = _centring(model, config, data, model.recentred)
  recentre_every = oltr.recentre_every(config)
  texts = None
  if config.dual.loss != "none":
    of_labels = preparation.of_label_texts(data, "dual.loss")
    embed = _centring(model, config, of_labels, model.recentred)
    texts = dual.LabelTexts(model, config, data, of_labels, embed)
  stream = batches.for_training(
    config,
    data.split,
    data.weighting,
    rows=data.rows,
    sampler=data.sampler,
    start=start,
  )
  bar = progress.Progress(
    stop,
    initial_step=start,
    examples_per_step=batch_size,
    goodput=clock.share,
    fetch=jax.device_get,
    enabled=first,
  )
  writer = progress.MetricWriter(workdir, resume_step=start, enabled=first)
  best = -math.inf  # by validation, since this start
  losses: dict[int, jax.Array] = {}  # of the steps since they were looked at
  compiled = set()  # for inputs of these shapes
  corrections = label_corrections.LabelCorrections.load(workdir, start)
  if not stop and keeper.latest_step() is None:
    logging.info("There is nothing to train: labels stay as they start")
    scores = validator.run(state.model).compute() if validator else None
    meta = {"step": 0, "examples": 0, "skipped": []}
    keeper.save(0, state.model, state.training, meta, scores)
  profile = profiling.Profile(workdir)
  with bar, writer, profile, stopping.Stopping() as told:
    for step in range(start + 1, stop + 1):
      watch.note(f"reading the batch of step {step}")
      clock.enter("input")
      batch = next(stream)
      clock.input_came()
      data.split.check()
      owner.check()
      watch.note(f"taking step {step}")
      metrics = {}
      if step in skip:
        state = state_lib.skip(state)
      else:
        inputs = batches.to_inputs(batch, data.order, every=model.every)
        labels = corrections.apply(np.asarray(inputs.label_ids), batch.rows)
        inputs = inputs._replace(label_ids=labels)
        if texts is not None:
          state = texts.before(step, state)
          rows = data.batches(config)[step - 1]
          inputs = inputs._replace(dual=texts.of_batch(step, rows))
        shapes = tuple(map(np.shape, jax.tree.leaves(inputs)))
        clock.enter("steps" if shapes in compiled else "compilation")
        compiled.add(shapes)
        with profile.of(step):
          state, metrics = step_fn(state, sharding.put_batch(inputs))
        profile.end(step, metrics)
        losses[step] = metrics["loss"]
        if "corrected_ids" in metrics:
          _correct(corrections, step, metrics, data.batches(config)[step - 1])
      clock.gave(step, metrics.get("loss"))
      if recentre_every and step % recentre_every == 0:
        watch.note(f"recomputing centroids after step {step}")
        state = recentred(state)
      bar.update(step, metrics)
      last = step == stop or told.after(step)
      save = last or step % config.checkpoint.every == 0
      log = save or step % config.train.log_every == 0
      validate = step % config.eval.every == 0 or step == stop
      if log or validate:
        not_finite.check(losses)
        clock.caught_up()
        losses.clear()
      if log and metrics:
        writer.write(step, "train", jax.device_get(metrics))
      scores = None
      if texts is not None and (save or validate):
        state = texts.renewed(state)
      if validator and validate:
        clock.enter("evaluation")
        scores = validator.run(state.model).compute()
        writer.write(step, "eval", scores)
        logging.info("Step %d, held-out rows: %s", step, _shown(config, scores))
        score = scores.get(config.eval.metric, -math.inf)
        save, best = save or score > best, max(best, score)
      if save:
        clock.enter("checkpoints")
        if first and len(corrections):
          corrections.save(workdir)
        meta = {
          "step": step,
          "examples": step * batch_size,
          "skipped": sorted(skip),
        }
        keeper.save(step, state.model, state.training, meta, scores)
      if log and first:
        clock.write(workdir, at_once=save)
      if last:
        break
  watch.note("ending", timed=False)
  complete = int(state.step) == stop
  if complete and config.noisy.method != "none":
    _write_suspects(state, data, workdir)
  return complete


def _shown(
  config: ml_collections.ConfigDict, scores: Mapping[str, float]
) -> str:
  """The scores that most people look at."""
  figures = config.eval.figures
  _, digits = recorded.unit(figures)
  first = "Recall" if figures == "recommendation" else "P"
  kinds = f"{first}@", "nDCG@", "PSP@"
  shown = [name for name in scores if name.startswith(kinds)]
  return ", ".join(f"{name} {scores[name]:.{digits}f}" for name in shown)


def _correct(
  corrections: label_corrections.LabelCorrections,
  step: int,
  metrics: dict[str, jax.Array],
  rows: np.ndarray,
) -> None:
  """Notes the labels that a step wants to be positives; `rows` of its batch."""
  ids, examples = jax.device_get(
    (metrics.pop("corrected_ids"), metrics.pop("corrected_examples"))
  )
  corrections.add(step, np.where(examples < 0, -1, rows[examples]), ids)


def _write_suspects(
  state: model_lib.State, data: preparation.Data, workdir: Path
) -> None:
  """Writes which examples probably have a wrong label."""
  ids, values = map(sharding.whole, state.training["memory"])
  if jax.process_index():
    return
  ids = data.order.to_data(ids)
  found = noisy_labels.find(data.split.labels, data.rows, ids, values)
  path = workdir / noisy_labels.FILE
  names, numbering = data.names, data.split.numbering
  if names is None and numbering is not None:
    names = [str(label) for label in numbering.labels]
  try:
    noisy_labels.write(path, found, data.split.labels, ids, values, names)
  except OSError as error:
    logging.warning("Wrong labels are not told; train again to see: %s", error)
    return
  logging.info(
    "%d of %d examples probably have a wrong label: see %s",
    *(len(found), len(data.rows), path),
  )


def _validator(
  model: model_lib.Model,
  config: ml_collections.ConfigDict,
  data: preparation.Data,
) -> evaluator.Evaluator | None:
  if not len(data.valid_rows):
    return None
  counts = data.stats.label_counts
  rows, widths = batches.by_length(config, data.valid_split, data.valid_rows)
  return evaluator.Evaluator(
    model,
    data.valid_split,
    data.weighting,
    data.order,
    batch_size=config.eval.batch_size,
    num_labels=config_lib.num_ids(config),
    ks=config.eval.ks,
    rows=rows,
    widths=widths,
    propensities=None
    if counts is None
    else statistics.propensities(
      counts,
      data.stats.num_rows,
      config.data.propensity_a,
      config.data.propensity_b,
    ),
    label_counts=counts,
    per_label=counts is not None,
    figures=config.eval.figures,
    neighbours=data.neighbours,
  )
