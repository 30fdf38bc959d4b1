"""Images in folders to a model that answers; needs Pillow.

python examples/images.py            # drawn shapes
python examples/images.py FOLDER     # FOLDER/LABEL/*.png, or .jpg

A fifth of the images is kept to see what the model makes of new ones. Folders
larger than memory are read by launch/images.py; see docs/images.md.
"""

from pathlib import Path
import random
import sys
import tempfile

import numpy as np
from PIL import Image
from PIL import ImageDraw

import xlj
from xlj import config as config_lib

SIZE = 16  # pixels, in both directions


def draw(folder: Path, num_images: int = 300) -> None:
  """Draws shapes of any colour, size and place."""
  rng = random.Random(0)
  for i in range(num_images):
    shape = ("ellipse", "rectangle", "cross")[i % 3]
    dark, light = (tuple(rng.choices(range(c, c + 99), k=3)) for c in (0, 156))
    image = Image.new("RGB", (SIZE, SIZE), dark)
    pen = ImageDraw.Draw(image)
    a, b = rng.randrange(5), rng.randrange(5)
    c, d = (start + rng.randrange(8, 11) for start in (a, b))
    if shape == "cross":
      pen.line((a, b, c, d), light, width=2)
      pen.line((a, d, c, b), light, width=2)
    else:
      getattr(pen, shape)((a, b, c, d), light)
    path = folder / shape / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def read(folder: Path) -> tuple[np.ndarray, list[str]]:
  """Images uint8 `[N, SIZE, SIZE, 3]`, and the label of each."""
  paths = sorted(folder.glob("*/*.*"))
  random.Random(0).shuffle(paths)
  images = [
    np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE)))
    for path in paths
  ]
  return np.stack(images), [path.parent.name for path in paths]


def main() -> None:
  """Trains on four fifths of the images, and answers the others."""
  work = Path(tempfile.mkdtemp())
  folder = Path(sys.argv[1]) if len(sys.argv) > 1 else work / "images"
  if len(sys.argv) == 1:
    draw(folder)
  images, labels = read(folder)
  count = len(images) // 5
  config = config_lib.base()
  config.encoder.type = "resnet"  # for photographs leave out the next three
  config.encoder.dim = 32
  config.encoder.depth = 1
  config.encoder.stages = 2
  config.train.batch_size = 32
  config.train.epochs = 15.0
  run = xlj.train(config, images[count:], labels[count:], workdir=work / "run")

  scores, ids = run.topk(images[:count], k=1)
  best = [name for (name,) in run.names(ids)]
  for i in range(3):
    print(f"one of {labels[i]} is taken for {best[i]} ({scores[i, 0]:.2f})")
  right = np.mean(np.array(best) == labels[:count])
  print(f"right of {count} new images: {right:.3f}; see {run.workdir}")


if __name__ == "__main__":
  main()
