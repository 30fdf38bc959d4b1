"""Trains a model, or continues the run that --workdir holds.

python launch/train.py --config=configs/xmc.py:bibtex \
  --config.data.dir=DIR --workdir=runs/bibtex
"""

from absl import flags
from ml_collections import config_flags

from xlj import launching
from xlj import train

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config file; override a field by --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run.", required=True
)

flags.mark_flag_as_required("config")


def main() -> int:
  """Trains."""
  complete = train.train(_CONFIG.value, _WORKDIR.value)
  return 0 if complete else launching.STOPPED


if __name__ == "__main__":
  launching.run_distributed(main)
