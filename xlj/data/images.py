"""Folders of images, written as the arrays that `store` maps.

A folder holds a directory for each split, named as files of splits are
(`discover`): `train`, and `test` or `validation`. In it is a directory for each
label, and in that its images:

  FOLDER/train/LABEL/anything.png   .jpg, .jpeg, .bmp, .gif or .webp
  FOLDER/test/LABEL/anything.jpg

Or FOLDER/LABEL/anything.png, of which a part is held out to test with. Labels
are numbered by their names in order. Hidden files are passed over.

Legend: N images, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import os
import pathlib
from typing import Any, TYPE_CHECKING
import zlib

from absl import logging
import numpy as np

from xlj import files
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors

if TYPE_CHECKING:
  from PIL import Image

Path = str | os.PathLike[str]
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_SHORT = {"train": "trn", "test": "tst", "validation": "val"}
_MODES = {1: "L", 3: "RGB"}  # of Pillow, by channels
_BLOCK = 256  # images that are held at a time


def convert(
  folder: Path,
  directory: Path,
  size: tuple[int, int],
  *,
  channels: int = 3,
  unknown: bool = False,
  held_out: float = 0.0,
  num_threads: int = 4,
) -> list[str]:
  """Writes a folder of images as a data set; memory is that of a block.

  An image is scaled until it covers `size`, and what is beyond is cut off on
  both sides alike.

  Args:
    folder: as above.
    directory: where X.trn.npy and Y.trn.npy (likewise tst and val) and
      labels.txt go; made if it is not there.
    size: H and W.
    channels: 3 for colour, 1 for grey.
    unknown: whether other splits may have labels that the training split has
      not: their rows get no label. Otherwise such a label is refused.
    held_out: share of images that test instead of being trained on, where the
      folder has no directory of test images. It is drawn by the CRC-32 of
      LABEL/NAME, so that more images move none; a label keeps one to train on.
    num_threads: that decode images.

  Returns:
    The names of the labels.

  Raises:
    DataError: naming the file that is no image, or no place for one.
    ImportError: without Pillow.
    OSError: when a file cannot be read or written.
    ValueError: for a size or channels that no image has.

  Example:
    convert("flowers", "data/flowers", (64, 64))
    train = store.open_split("data/flowers")
  """
  if channels not in _MODES or min(size) < 1:
    raise ValueError(
      f"size {size} with {channels} channels; give pixels from 1 up, and 1 or 3"
      " channels"
    )
  if not 0 <= held_out < 1:
    raise ValueError(f"held_out is {held_out}; give a share in [0, 1)")
  root, target = pathlib.Path(folder), pathlib.Path(directory)
  found = {split: _split_dir(root, split) for split in discover.SPLITS}
  if held_out:
    found["train"] = _all_images(root, found)
  if found["train"] is None:
    raise errors.DataError(
      root,
      "no directory of training images",
      "train/LABEL/IMAGE",
      hint="of a folder LABEL/IMAGE hold a share out to test, --held_out=0.2",
    )
  labels = [path.name for path in _children(found["train"])]
  # All are listed before the first is read: that is when most mistakes show.
  listed = {
    split: _listed(place, labels, unknown)
    for split, place in found.items()
    if place is not None
  }
  if held_out:
    listed |= _halved(*listed["train"], held_out)
  read = _reader(size, channels)
  target.mkdir(parents=True, exist_ok=True)
  for split, (paths, ids) in listed.items():
    features = target / f"X.{_SHORT[split]}.npy"
    shape = (len(paths), *size, channels)
    _write_images(features, paths, shape, read, num_threads)
    _save(target / f"Y.{_SHORT[split]}.npy", ids)
    logging.info("%s: %d images of %s", features, len(paths), shape[1:])
  text = "".join(f"{name}\n" for name in labels)
  files.write_text(target / "labels.txt", text)
  return labels


def stream(
  path: Path, shape: tuple[int, ...], *, num_threads: int = 4
) -> Iterator[csr_lib.Rows | errors.DataError]:
  """Reads images to predict for, scaled as `convert` does.

  Args:
    path: an image, or a directory of them, whose order is that of their names;
      those in directories below count.
    shape: H, W and C that a model reads.
    num_threads: that decode images.

  Yields:
    Blocks of rows, uint8 [n, H * W * C], and in the place of an image that
    cannot be read its error.

  Raises:
    DataError: when there is no image.
    ImportError: without Pillow.
  """
  root = pathlib.Path(path)
  paths = [root] if root.is_file() else _below(root)
  if not paths:
    raise errors.DataError(root, "no image", f"images ({', '.join(ENDINGS)})")
  read = _reader((shape[0], shape[1]), shape[2])

  def tried(image: pathlib.Path) -> np.ndarray | errors.DataError:
    try:
      return read(image).reshape(1, -1)
    except errors.DataError as error:
      return error

  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    for start in range(0, len(paths), _BLOCK):
      good: list[np.ndarray] = []
      for image in [*pool.map(tried, paths[start : start + _BLOCK]), None]:
        if isinstance(image, np.ndarray):
          good.append(image)
          continue
        if good:
          yield csr_lib.Rows(np.concatenate(good), None)
          good = []
        if image is not None:
          yield image


def _below(root: pathlib.Path) -> list[pathlib.Path]:
  """The images of a directory and those below, by name."""
  found = []
  for place in _visible(root):
    found += _below(place) if place.is_dir() else [place]
  return [path for path in found if path.suffix.lower() in ENDINGS]


def write_split(
  directory: Path, split: str, images: np.ndarray, labels: np.ndarray
) -> None:
  """Writes images that are in memory, or mapped, as a split of a data set.

  Args:
    directory: where the files go; made if it is not there.
    split: one of `discover.SPLITS`.
    images: uint8 [N, H, W, C].
    labels: whole numbers [N]; -1 for an image without a label.

  Raises:
    OSError: when a file cannot be written.
    ValueError: when shapes or types are others.
  """
  if images.ndim != 4 or images.dtype != np.uint8:
    raise ValueError(
      f"images are {images.dtype} {images.shape}; give uint8 [N, H, W, C]"
    )
  if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels are {labels.dtype} {labels.shape}; give whole numbers"
      f" ({len(images)},)"
    )
  target = pathlib.Path(directory)
  target.mkdir(parents=True, exist_ok=True)
  _save(target / f"X.{_SHORT[split]}.npy", images)
  _save(target / f"Y.{_SHORT[split]}.npy", labels)


def _split_dir(root: pathlib.Path, split: str) -> pathlib.Path | None:
  """The directory of a split, if there is one."""
  if not root.is_dir():
    raise errors.DataError(root, "no such directory", "a folder of images")
  found = [
    root / name for name in discover.PREFIXES[split] if (root / name).is_dir()
  ]
  if len(found) > 1:
    names = ", ".join(path.name for path in found)
    raise errors.DataError(root, f"several: {names}", f"one for {split}")
  return found[0] if found else None


def _all_images(
  root: pathlib.Path, found: Mapping[str, pathlib.Path | None]
) -> pathlib.Path:
  """The directory of all labels, of which a part is to be held out."""
  if found["test"] is not None:
    raise errors.DataError(
      found["test"],
      "a directory of test images",
      "none where a share is held out",
      hint="leave --held_out away",
    )
  return found["train"] or root


def _halved(
  paths: Sequence[pathlib.Path], ids: np.ndarray, share: float
) -> dict[str, tuple[list[pathlib.Path], np.ndarray]]:
  """Images in two parts, by their names."""
  names = [f"{path.parent.name}/{path.name}" for path in paths]
  draws = np.array([zlib.crc32(os.fsencode(name)) for name in names]) / 2**32
  test = draws < share
  for label in set(ids[test].tolist()) - set(ids[~test].tolist()):
    here = np.flatnonzero(ids == label)
    test[here[np.argmax(draws[here])]] = False
  if not test.any():
    raise errors.DataError(
      paths[0].parent.parent,
      f"no image to test with among {len(paths)}",
      f"a larger share than --held_out={share}",
    )
  return {
    split: ([path for path, here in zip(paths, part) if here], ids[part])
    for split, part in (("train", ~test), ("test", test))
  }


def _children(place: pathlib.Path) -> list[pathlib.Path]:
  """The directories of labels in a split, by name."""
  found = _visible(place)
  for path in found:
    if not path.is_dir():
      raise errors.DataError(
        path, "a file", "a directory named like a label, with its images"
      )
  if not found:
    raise errors.DataError(place, "nothing", "a directory for each label")
  return found


def _listed(
  place: pathlib.Path, labels: Sequence[str], unknown: bool
) -> tuple[list[pathlib.Path], np.ndarray]:
  """The images of a split in order, and int32 [N] their labels."""
  number = {name: i for i, name in enumerate(labels)}
  paths, ids = [], []
  for child in _children(place):
    if child.name not in number and not unknown:
      raise errors.DataError(
        child,
        "a label without training images",
        "one of the labels in the training split",
        hint="allow unknown labels to keep its images without a label",
      )
    images = _visible(child)
    if not images:
      raise errors.DataError(child, "no image", "images of that label")
    for path in images:
      if path.suffix.lower() not in ENDINGS:
        raise errors.DataError(
          path, "another ending", f"an image ({', '.join(ENDINGS)})"
        )
    paths += images
    ids += [number.get(child.name, -1)] * len(images)
  return paths, np.array(ids, np.int32)


def _visible(place: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in place.iterdir() if not p.name.startswith("."))


def _reader(
  size: tuple[int, int], channels: int
) -> Callable[[pathlib.Path], np.ndarray]:
  """What reads a file as uint8 [H, W, C]."""
  try:
    from PIL import Image
    from PIL import ImageOps
  except ImportError as error:
    raise ImportError(
      "reading images needs Pillow: pip install 'xlj-jax[images]'"
    ) from error
  height, width = size

  def fitted(image: Image.Image) -> np.ndarray:
    # A camera writes how it was held beside the image.
    upright: Any = ImageOps.exif_transpose(image)
    upright = upright.convert(_MODES[channels])
    if upright.size != (width, height):
      upright = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(upright, np.uint8).reshape(height, width, channels)

  def read(path: pathlib.Path) -> np.ndarray:
    try:
      with Image.open(path) as image:
        return fitted(image)
    # Pillow's decoders raise all of these for damaged files.
    except (
      Image.DecompressionBombError,
      OSError,
      SyntaxError,
      ValueError,
    ) as error:
      raise errors.DataError(
        path, f"no readable image ({error})", "a whole image file"
      ) from error

  return read


def _write_images(
  path: pathlib.Path,
  images: Sequence[pathlib.Path],
  shape: tuple[int, ...],
  read: Callable[[pathlib.Path], np.ndarray],
  num_threads: int,
) -> None:
  """Writes image files as uint8 [N, H, W, C], block by block."""
  with (
    files.replacing(path) as partial,
    # Decoders release the interpreter's lock.
    concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
  ):
    out = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
    for start in range(0, len(images), _BLOCK):
      block = list(pool.map(read, images[start : start + _BLOCK]))
      out[start : start + len(block)] = block
    out.flush()


def _save(path: pathlib.Path, array: np.ndarray) -> None:
  with files.replacing(path) as partial, partial.open("wb") as file:
    np.save(file, array)
