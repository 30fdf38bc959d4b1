"""Averages of checkpoints: of one run's last ones, or of several runs.

The mean of weights along a run (stochastic weight averaging: Izmailov et al.
2018, "Averaging weights leads to wider optima and better generalization",
eq. 2) or of runs that began with the same weights ("Model soups", Wortsman et
al. 2022, section 2) is often better than each of them, and predicts at the cost
of one. A greedy soup (its algorithm 1) takes the candidates from the best one
on, and keeps those with which the held-out score does not fall.

What comes out is the directory of a run: that of the first one given, at its
newest checkpoint, with other weights. For the arithmetic see
`xlj.averaging.average`.
"""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
import jax
import ml_collections

from xlj import config as config_lib
from xlj import files
from xlj import mesh as mesh_lib
from xlj.averaging import average
from xlj.checkpoint import errors
from xlj.checkpoint import reader
from xlj.checkpoint import steps
from xlj.checkpoint import trees
from xlj.config import heads as heads_config
from xlj.config import splits
from xlj.evaluation import evaluate
from xlj.evaluation import evaluator
from xlj.heads import head as head_lib
from xlj.heads.dense import rows as rows_lib
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.runs import directory as run_directory
from xlj.runs import label_corrections

FILE = "soup.json"
MODES = ("uniform", "greedy")
# Runs may differ in these: how they were trained, not where they began, what
# their weights mean, and which rows were held out.
_MAY_DIFFER = (
  "optim.",
  "train.",
  "encoder.feature_dropout",
  "encoder.embedding_dropout",
  "encoder.hidden_dropout",
  "encoder.shift",
  "encoder.flip",
)
# Where the linear weights of a checkpoint belong.
_PAIRS = tuple(f"head/{name}" for name in rows_lib.PAIRS[:2])


class Candidate(NamedTuple):
  """A checkpoint that may become part of the average.

  Attributes:
    workdir: Directory of its run.
    directory: Of the run's checkpoints.
    step: Which of them.
  """

  workdir: Path
  directory: Any
  step: int

  def read(self, model: model_lib.Model, name: str) -> tuple[Any, dict]:
    """An item of the checkpoint, and its facts; all processes have to ask."""
    wanted = {name: getattr(model.abstract(), name)}
    rows = run_directory.saved_rows(model)
    try:
      found, facts = reader.read(self.directory, self.step, wanted, rows)
    except errors.CheckpointError as error:
      raise errors.CheckpointError(f"{self}: {error}") from None
    return found[name], facts

  def __str__(self) -> str:
    """For people."""
    return f"{self.workdir}, step {self.step}"


def find(workdirs: Sequence[str | Path], last: int = 0) -> list[Candidate]:
  """The checkpoints of some runs, newest first within each run.

  Args:
    workdirs: Directories of the runs.
    last: How many of the newest of each; 0 for all of a single run, or for one
      of each of several.

  Returns:
    The candidates.

  Raises:
    ConfigError: If a directory is not that of a run, is given twice, has no
      finished checkpoint, or its config is of another model than that of the
      first; or if there are fewer than two checkpoints.
    CheckpointError: If arrays, or the order of labels, are not as in the first.
  """
  if last < 0:
    raise config_lib.ConfigError(f"last is {last}; it must be at least 0")
  paths = [run_directory.resolve(path, "workdirs") for path in workdirs]
  for path in paths:
    if paths.count(path) > 1:
      raise config_lib.ConfigError(f"{path} is given more than once")
  count = last or (1 if len(paths) > 1 else None)
  configs = [run_directory.load_config(path) for path in paths]
  found = []
  for path, config in zip(paths, configs):
    _check_config(configs[0], config, paths[0], path)
    directory = steps.resolve(run_directory.checkpoints(path, config))
    newest = steps.finished(directory)[::-1]
    if not newest:
      raise config_lib.ConfigError(
        f"{path} holds no finished checkpoint; train it first"
      )
    if len(newest) < last:
      logging.warning(
        "%s has %d checkpoints, not %d: checkpoint.keep says how many of the"
        " newest are kept",
        *(path, len(newest), last),
      )
    found += [Candidate(path, directory, step) for step in newest[:count]]
  if len(found) < 2:
    raise config_lib.ConfigError(
      f"there is one checkpoint, {found[0]}, and nothing to average; train with"
      " more of them kept (checkpoint.every, checkpoint.keep), or give other"
      " runs"
    )
  _check_arrays(found)
  return found


def _check_config(
  first: ml_collections.ConfigDict,
  config: ml_collections.ConfigDict,
  first_path: Path,
  path: Path,
) -> None:
  """Refuses a run of another model, or with another start."""
  head = heads_config.make(config)
  if "mean" not in head.can:
    raise config_lib.ConfigError(f"{path}: {head_lib.refusal(head, 'mean')}")
  wrong = [
    f"{name}: {there!r} in the first, {here!r} here"
    for name, (there, here) in config_lib.differences(first, config).items()
    if not name.startswith(_MAY_DIFFER)
  ]
  if wrong:
    raise config_lib.ConfigError(
      f"{path} cannot be averaged with {first_path}: {'; '.join(wrong)}. Runs"
      " may differ in how they were trained, but need the same data, model and"
      " start"
    )


def _check_arrays(candidates: Sequence[Candidate]) -> None:
  """Refuses other shapes or types, orders of labels, and pairs."""
  first, *others = [
    steps.read_meta(c.directory, c.step)["arrays"]["model"] for c in candidates
  ]
  wanted = {
    name: jax.ShapeDtypeStruct(a["shape"], a["dtype"])
    for name, a in first.items()
  }
  for candidate, arrays in zip(candidates[1:], others):
    where = f"{candidate} cannot be averaged with {candidates[0]}"
    try:
      trees.check_same(arrays, wanted)
    except errors.CheckpointError as error:
      raise errors.CheckpointError(f"{where}: {error}") from None
    for name in arrays:
      if name.startswith("buffers/") and arrays[name] != first[name]:
        raise errors.CheckpointError(
          f"{where}: array {name} differs; label ids are the order of the label"
          " rows, and averages of different labels mean nothing"
        )
      if name in _PAIRS and arrays[name] != first[name]:
        raise errors.CheckpointError(
          f"{where}: array {name} differs; linear weights are those of pairs of"
          " a feature and a label that meet in the training rows, and these"
          " runs have others"
        )


def make_soup(
  workdirs: Sequence[str | Path],
  output: str | Path,
  *,
  mode: str = "uniform",
  last: int = 0,
  metric: str = "",
  data_dir: str | None = None,
  split: str = "",
) -> dict[str, Any]:
  """Averages checkpoints into the directory of a new run.

  Args:
    workdirs: Directories of the runs.
    output: The new directory; missing or empty.
    mode: "uniform" for all candidates, which needs no data, or "greedy".
    last: How many checkpoints of each run; see `find`.
    metric: That of "greedy"; by default `eval.metric` of the first run.
    data_dir: Directory of the data of "greedy"; by default that of training.
    split: Which split scores; by default the rows of the training split that
      the runs held out for validation.

  Returns:
    The recipe, as in `soup.json`: candidates in their order, which of them were
    kept, and the scores of "greedy": of each one, of the average with it, and
    of the result.

  Raises:
    ConfigError: If the runs do not go together (see `find`), there is no such
      mode or metric, nothing was held out, or `output` is not empty.
    CheckpointError: If a checkpoint is damaged, or does not go with the first.
    DataError: If the split cannot be read or does not fit the model.
  """
  output = run_directory.resolve(output, "output")
  if mode not in MODES:
    raise config_lib.ConfigError(f"mode is {mode!r}; use one of {MODES}")
  with run_directory.making(output):
    return _make(workdirs, output, mode, last, metric, data_dir, split)


def _make(
  workdirs: Sequence[str | Path],
  output: Path,
  mode: str,
  last: int,
  metric: str,
  data_dir: str | None,
  split: str,
) -> dict[str, Any]:
  """The same, into a directory that is this process's alone."""
  found = find(workdirs, last)
  config = run_directory.load_config(found[0].workdir)
  metric = metric or config.eval.metric
  with jax.set_mesh(mesh_lib.make_mesh()):
    model = model_lib.Model(config)
    scorer = None
    if mode == "greedy":
      scorer = _scorer(found[0].workdir, metric, data_dir, split)
    soup = _mix(model, found, scorer, metric)
    config.checkpoint.dir = ""  # Not where the first run has its own.
    run = _run(model, soup, found[0], config)
  recipe = {
    "mode": mode,
    "split": split or "held out",
    "metric": metric,
    "score": soup.scores.get(metric),
    "candidates": soup.candidates,
  }
  if jax.process_index() == 0:
    files.write_text(output / FILE, json.dumps(recipe, indent=2) + "\n")
  # Of the same rows as those of validation, or not to be compared with them.
  run_directory.write(run, output, None if split else soup.scores)
  return recipe


class _Soup(NamedTuple):
  """What came out.

  Attributes:
    values: Mean of the parameters, float32.
    buffers: Those of the model.
    scores: Metrics of the mean; empty if not scored.
    candidates: About each candidate.
  """

  values: average.Tree
  buffers: average.Tree
  scores: dict[str, float]
  candidates: list[dict[str, Any]]


def _mix(
  model: model_lib.Model,
  candidates: Sequence[Candidate],
  scorer: evaluator.Evaluator | None,
  metric: str,
) -> _Soup:
  """The mean of all, or, with a scorer, of those that do not make it worse."""
  abstract, count = model.abstract().model, len(candidates)
  single: dict[Candidate, float] = {}
  if scorer is not None:
    for i, candidate in enumerate(candidates, 1):
      scores = _score(scorer, candidate.read(model, "model")[0], metric)
      single[candidate] = scores[metric]
      logging.info(
        "Scored %d of %d: %s of %s is %.3f",
        *(i, count, metric, candidate, scores[metric]),
      )
    candidates = sorted(candidates, key=single.__getitem__, reverse=True)
  mean, buffers, best, told, kept = {}, {}, {}, [], 0
  for i, candidate in enumerate(candidates, 1):
    found, _ = candidate.read(model, "model")
    buffers, values = found["buffers"], average.decode(found)
    del found  # Narrow rows would stay beside their values.
    trial = average.blend(mean, values, kept + 1) if kept else values
    del values
    scores, keep = {}, True
    if scorer is not None:
      state = {**average.encode(trial, abstract), "buffers": buffers}
      scores = _score(scorer, state, metric)
      del state
      keep = not kept or scores[metric] >= best[metric]
    if keep:
      mean, best, kept = trial, scores, kept + 1
    del trial
    told.append(
      {
        "workdir": str(candidate.workdir),
        "step": candidate.step,
        "score": single.get(candidate),
        "score_with": scores.get(metric),
        "kept": keep,
      }
    )
    logging.info(
      "%s %d of %d, %s%s",
      "Added" if keep else "Left out",
      *(i, count, candidate),
      f": {metric} with it is {scores[metric]:.3f}" if scores else "",
    )
  return _Soup(mean, buffers, best, told)


def _score(
  scorer: evaluator.Evaluator, state: average.Tree, metric: str
) -> dict[str, float]:
  """The metrics, with the one that counts."""
  scores = scorer.run(state).compute()
  if metric not in scores:
    raise config_lib.ConfigError(
      f"metric is {metric!r}, which needs counts of labels, and this run keeps"
      f" none (head.order=none); use one of {', '.join(scores)}"
    )
  return scores


def _scorer(
  workdir: Path, metric: str, data_dir: str | None, split: str
) -> evaluator.Evaluator:
  """Scores a model like that of a run on a split, or on what it held out."""
  run = predictor.load(workdir, which="last")
  config = run.config
  config.eval.metric = metric
  config_lib.check(config)
  rows = None
  if split:
    data = splits.open_split(
      config,
      split,
      data_dir=data_dir,
      num_features=run.num_features,
      num_labels=run.num_ids,
      encoding=run.run.encoding,
      label_names=run.label_names,
      feature_names=run.feature_names,
    )
  else:
    data, rows = splits.held_out(config, workdir, data_dir=data_dir)
  logging.info(
    "Scoring with %d rows of %s",
    data.num_rows if rows is None else len(rows),
    data.name,
  )
  return evaluate.make_scorer(run, data, rows=rows)


def _run(
  model: model_lib.Model,
  soup: _Soup,
  first: Candidate,
  config: ml_collections.ConfigDict,
) -> run_directory.Run:
  """The first run with other weights, with what is needed to go on from it."""
  abstract, workdir = model.abstract(), first.workdir
  params = average.encode(soup.values, abstract.model)
  params["buffers"] = soup.buffers
  training, facts = first.read(model, "training")
  renew = jax.jit(
    lambda saved, head: average.continued(
      saved, model.head.init_optimizer(head)
    ),
    out_shardings=model.shardings().training["head"],
  )
  training["head"] = renew(training["head"], params["head"])
  names = None
  if (workdir / splits.NAMES_FILE).exists():
    names = splits.label_names(config, workdir)
  return run_directory.Run(
    workdir,
    config,
    jax.sharding.get_mesh(),
    first.step,
    {"model": params, "training": training},
    run_directory.order_of(workdir, config, model, soup.buffers),
    facts,
    names,
    label_corrections.LabelCorrections.load(workdir, first.step),
    encoding=run_directory.encoding(workdir, config),
  )
