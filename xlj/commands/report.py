"""Writes runs and exported models side by side into one HTML page.

  xlj report --runs=runs/a,runs/b,models/c --output=report.html \\
    [--benchmarks=answers.json]
"""

from absl import flags
from absl import logging

from xlj import files
from xlj.commands import launching
from xlj.report import compare

_RUNS = flags.DEFINE_list(
  "runs", None, "Directories of runs and of exported models.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "The page to write, such as report.html.", required=True
)
_BENCHMARKS = flags.DEFINE_list(
  "benchmarks", [], "Files that benchmarks/ has written with --json."
)


def main() -> None:
  """Writes the page."""
  output = files.local(_OUTPUT.value, "--output")
  compare.write(_RUNS.value, output, _BENCHMARKS.value)
  logging.info("Wrote %s", output)


def run() -> None:
  """Runs the command."""
  launching.run(main)
