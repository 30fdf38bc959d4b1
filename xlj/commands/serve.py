"""Answers over HTTP, from a run or an exported model.

  xlj serve --model=runs/bibtex --port=8000

  curl localhost:8000/predict -H 'Content-Type: application/json' \\
    -d '{"rows": [{"3": 1, "17": 0.5}], "k": 5}'
"""

import os
from pathlib import Path

from absl import flags

from xlj.commands import processes

_MODEL = flags.DEFINE_list(
  "model",
  None,
  "Directory of a run or an exported model; NAME=DIR,NAME=DIR for several, of"
  " which the first answers where no name is given.",
  required=True,
)
_PORT = flags.DEFINE_integer(
  "port", None, "Port to listen at; 0 for a free one.", 0, 65535, required=True
)
_HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of this machine."
)
_TOKEN = flags.DEFINE_string(
  "token",
  None,
  "What clients have to send as Authorization: Bearer TOKEN; the environment"
  " variable XLJ_TOKEN does not show it to who lists processes.",
)
_MAX_ROWS = flags.DEFINE_integer(
  "max_rows", 1024, "Rows of a request at most.", 1
)
_MAX_WAITING_ROWS = flags.DEFINE_integer(
  "max_waiting_rows", 4096, "Rows that wait at most; others are told 429.", 1
)
_MAX_BYTES = flags.DEFINE_integer(
  "max_bytes", 2_000_000, "Bytes of the body of a request at most.", 1
)
_BATCH_ROWS = flags.DEFINE_integer(
  "batch_rows", 64, "Rows that are computed at a time.", 1
)
_TIMEOUT = flags.DEFINE_float(
  "timeout", 30.0, "Seconds for a request to arrive, and to be answered.", 0.1
)
_PROBES = flags.DEFINE_integer(
  "probes",
  None,
  "How many lists, or candidates, of an exported model's index to look at; 0"
  " for as many as its manifest says. Default: all labels are looked at.",
  0,
)


def main() -> None:
  """Serves."""
  from xlj.serving import server
  from xlj.serving import service

  limits = service.Limits(
    max_rows=_MAX_ROWS.value,
    max_waiting_rows=_MAX_WAITING_ROWS.value,
    max_bytes=_MAX_BYTES.value,
    batch_rows=_BATCH_ROWS.value,
    timeout=_TIMEOUT.value,
  )
  server.serve(
    _models(_MODEL.value),
    host=_HOST.value,
    port=_PORT.value,
    limits=limits,
    token=_TOKEN.value or os.environ.get("XLJ_TOKEN") or None,
    probes=_PROBES.value,
  )


def _models(given: list[str]) -> dict[str, Path]:
  """Directories by name; by that of the directory where none is given."""
  found: dict[str, Path] = {}
  for text in given:
    name, equals, directory = text.rpartition("=")
    path = Path(directory if equals else text)
    name = name if equals else path.resolve().name
    if name in found:
      raise ValueError(f"--model has {name} twice; give NAME=DIR,NAME=DIR")
    found[name] = path
  return found


def run() -> None:
  """Runs the command."""
  processes.run_alone(main)
