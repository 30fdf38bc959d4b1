"""The whole job on generated data: make, train, evaluate, predict.

xlj demo
"""

import shlex
import subprocess
import sys
import time

from absl import flags

from xlj import files
from xlj import shell
from xlj.commands import launching
from xlj.synthetic import topics as synthetic

_DIRECTORY = flags.DEFINE_string(
  "directory", "demo_run", "Where the data and the run go."
)


def _step(title: str, name: str, *arguments: str) -> None:
  """Runs another command in a process of its own, as a user would."""
  words = shell.words(name)
  shown = " \\\n    ".join([shlex.join(words), *map(shlex.quote, arguments)])
  print(f"\n=== {title}\n$ {shown}\n", flush=True)
  if words[0] == "python":
    words[0] = sys.executable
  status = subprocess.run([*shell.started(words), *arguments]).returncode
  if status:
    sys.exit(status)  # it has said why


def main() -> None:
  """Runs the demo."""
  start = time.monotonic()
  root = files.local(_DIRECTORY.value, "--directory").resolve()
  data, workdir = root / "data", root / "run"
  predictions = root / "predictions.jsonl"
  print(f"=== Generate data with 131,072 labels in {data}", flush=True)
  synthetic.generate(data)
  _step(
    "Train",
    "train",
    "--config=xmc:demo",
    f"--config.data.dir={data}",
    f"--workdir={workdir}",
  )
  _step(
    "Evaluate: restore in a new process, score the test split",
    "evaluate",
    f"--workdir={workdir}",
  )
  _step(
    "Predict: the five best labels of each test row",
    "predict",
    f"--workdir={workdir}",
    f"--input={data / 'test.txt'}",
    f"--output={predictions}",
    "--k=5",
  )
  train = shlex.join(shell.words("train"))
  print(
    f"\n=== Done in {time.monotonic() - start:.0f} s\n"
    f"report:      {workdir / 'report.html'}\n"
    f"predictions: {predictions}\n"
    "Train on your own files, features or texts (the guide's page on data"
    " tells the formats):\n"
    f"  {train} --config=xmc --config.data.dir=DIR --workdir=WD"
  )


def run() -> None:
  """Runs the command."""
  launching.run(main)
