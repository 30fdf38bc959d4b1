"""Makes a data set of a folder of images.

  xlj images --input=FOLDER --output_dir=DIR --height=64

FOLDER/train/LABEL/ holds the training images of a label, FOLDER/test/LABEL/
those to test with, and FOLDER/validation/LABEL/ (optional) likewise. Of
FOLDER/LABEL/ alone --held_out=0.2 takes a fifth to test with. All are scaled
and cropped to one size. Then train with --config=images.
"""

from absl import flags

from xlj import files
from xlj.commands import launching
from xlj.data import images

_INPUT = flags.DEFINE_string("input", None, "The folder.", required=True)
_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", None, "Directory of the data set.", required=True
)
_HEIGHT = flags.DEFINE_integer("height", 64, "Pixels.", lower_bound=1)
_WIDTH = flags.DEFINE_integer(
  "width", None, "Pixels; default: as many as high.", lower_bound=1
)
_CHANNELS = flags.DEFINE_enum(
  "channels", "3", ["1", "3"], "1 for grey, 3 for colour."
)
_UNKNOWN = flags.DEFINE_bool(
  "unknown",
  False,
  "Whether test images may have labels that no training image has; they count"
  " as images without a label.",
)
_HELD_OUT = flags.DEFINE_float(
  "held_out",
  0.0,
  "Share of the images to test with, drawn by their names, where the folder has"
  " no test images.",
  lower_bound=0.0,
  upper_bound=0.99,
)


def main() -> None:
  """Converts."""
  images.convert(
    _INPUT.value,
    files.local(_OUTPUT_DIR.value, "--output_dir"),
    (_HEIGHT.value, _WIDTH.value or _HEIGHT.value),
    channels=int(_CHANNELS.value),
    unknown=_UNKNOWN.value,
    held_out=_HELD_OUT.value,
  )


def run() -> None:
  """Runs the command."""
  launching.run(main)
