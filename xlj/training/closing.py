"""What is said when training has ended: how it went, and what to do next."""

from pathlib import Path

import ml_collections

from xlj import config as config_lib
from xlj import shell
from xlj.config import splits
from xlj.data import errors
from xlj.report import progress
from xlj.report import recorded
from xlj.report import report


def text(
  workdir: Path,
  config: ml_collections.ConfigDict,
  facts: config_lib.DataFacts,
  step: int,
) -> str:
  """The last lines of training.

  Args:
    workdir: Its directory.
    config: Its config.
    facts: About its training split.
    step: That of its last checkpoint.

  Returns:
    Of a run that is complete its score, its family and why, where the report
    is, and the next commands.
  """
  steps, epochs = config.train.num_steps, config_lib.num_epochs(config)
  if step < steps:
    return (
      f"Stopped: step {step} of {steps} is saved; the same command again goes"
      " on from there"
    )
  why = config_lib.family_reason(
    config.family, facts, config.head.type, config.encoder.type
  )
  lines = {
    "score": _score(workdir, config),
    "family": f"{config.family}, {why}",
    "report": str(workdir / report.REPORT_FILE),
    **_next(workdir, config),
  }
  if epochs:  # What is found in closed form is.
    lines["go on"] = shell.command(
      "train", workdir=workdir, **{"config.train.epochs": 2 * epochs}
    )
  rounds = "1 epoch" if epochs == 1 else f"{epochs:g} epochs"
  head = f"The run is complete: {steps} steps, {rounds}"
  return "\n".join([head, *(f"  {k + ':':9} {v}" for k, v in lines.items())])


def _score(workdir: Path, config: ml_collections.ConfigDict) -> str:
  """That of the best validation; without any, the last loss."""
  records = progress.read_metrics(workdir / progress.METRICS_FILE)
  metric = config.eval.metric
  scores = {
    r["step"]: r[metric]
    for r in records
    if r["kind"] == "eval" and r.get(metric) is not None
  }
  if scores:
    best = max(scores, key=lambda step: (scores[step], step))
    last = max(scores)
    _, digits = recorded.unit(config.eval.figures)
    return (
      f"{metric} {scores[last]:.{digits}f} on held-out rows; the best"
      f" checkpoint is that of step {best}, with {scores[best]:.{digits}f}"
    )
  losses = [r for r in records if r["kind"] == "train" and r.get("loss")]
  found = f"loss {losses[-1]['loss']:.4g}, and " if losses else ""
  return f"{found}no rows held out (data.validation={config.data.validation:g})"


def _next(workdir: Path, config: ml_collections.ConfigDict) -> dict[str, str]:
  """The commands that score the run, and use it."""
  data, source = config.data, "FILE"
  if not data.generator.rows:
    try:
      source = splits.file_of(config, "test")
    except (errors.DataError, OSError):
      pass  # there is nothing to score
  found = {}
  is_part = data.test_share or splits.has_interactions(config)
  if data.generator.rows or is_part or source != "FILE":
    found["evaluate"] = shell.command("evaluate", workdir=workdir)
  if not (data.generator.rows or data.context or data.sequences):
    output = workdir / f"predictions.{'jsonl' if data.text else 'tsv'}"
    found["predict"] = shell.command(
      "predict", workdir=workdir, input=source, output=output
    )
  return found
