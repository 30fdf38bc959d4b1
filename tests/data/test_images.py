"""Folders and arrays of images, from files to a training step and a run."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

from configs import images as config_file
from tests import meshes
from tests import runs
from tests.encoders import pictures
import xlj
from xlj import sharding
from xlj.data import checks
from xlj.data import errors
from xlj.data import images
from xlj.data import names
from xlj.data import npy
from xlj.data import pipeline
from xlj.data import store
from xlj.inference import predict
from xlj.model import batches
from xlj.model import model as model_lib
from xlj.training import preparation
from xlj.training import train


def encoded(pixels, ending=".png", **options):
  """The bytes of an image file."""
  file = io.BytesIO()
  kinds = {".jpg": "JPEG", ".png": "PNG"}
  Image.fromarray(pixels).save(file, kinds[ending], **options)
  return file.getvalue()


def create(root, files):
  for name, content in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
  return root


@pytest.fixture
def pixels():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (4, 6, 8, 3)).astype(np.uint8)


def test_a_folder_becomes_mapped_bytes(tmp_path, pixels):
  wide = np.repeat(pixels[3], 2, axis=1)  # 6 x 16
  source = create(
    tmp_path / "in",
    {
      "train/dog/b.png": encoded(pixels[0]),
      "train/dog/a.PNG": encoded(pixels[1]),
      "train/cat/x.png": encoded(pixels[2]),
      "train/.hidden": b"",
      "train/cat/.DS_Store": b"",
      "test/cat/wide.png": encoded(wide),
      "test/cow/x.jpg": encoded(pixels[0], ".jpg"),
    },
  )
  out = tmp_path / "out"
  assert images.convert(source, out, (6, 8), unknown=True) == ["cat", "dog"]
  found = store.open_split(out)
  assert found.image == (6, 8, 3) and found.features.dtype == np.uint8
  np.testing.assert_array_equal(
    found.features, pixels[[2, 1, 0]].reshape(3, -1)
  )
  assert not (found.cache_dir / "features.npy").exists()
  np.testing.assert_array_equal(found.labels.indices, [0, 1, 1])
  assert names.label_names(out, found.num_labels) == ["cat", "dog"]
  test = store.open_split(out, "test", num_labels=2)
  np.testing.assert_array_equal(test.labels.row_lengths, [1, 0])  # a cow is new
  np.testing.assert_array_equal(  # the middle of what is too wide
    test.features[0].reshape(6, 8, 3), wide[:, 4:12]
  )


def test_other_sizes_and_colours_are_converted(tmp_path, pixels):
  lying = Image.Exif()
  lying[0x0112] = 6  # to be turned by a quarter
  tall = np.zeros((10, 20), np.uint8)
  tall[:, :10] = 200  # the left half is above, once turned
  source = create(
    tmp_path / "in", {"train/a/0.jpg": encoded(tall, ".jpg", exif=lying)}
  )
  images.convert(source, tmp_path, (10, 5), channels=1)
  found = np.load(tmp_path / "X.trn.npy")
  assert found.shape == (1, 10, 5, 1)
  assert found[0, :4].min() > 180 and found[0, 6:].max() < 20


@pytest.mark.slow
def test_the_launcher_converts_and_refuses(tmp_path, pixels):
  source = create(tmp_path / "in", {"train/a/0.png": encoded(pixels[0])})
  flags = f"--output_dir={tmp_path / 'out'}", "--height=3", "--width=4"
  run = runs.launch("images", f"--input={source}", *flags)
  status, _, err = runs.finish(run)
  assert status == 0, err
  assert np.load(tmp_path / "out" / "X.trn.npy").shape == (1, 3, 4, 3)
  run = runs.launch("images", f"--input={source / 'train'}", *flags)
  status, _, err = runs.finish(run)
  assert status == 2
  assert "no directory of training images" in err.splitlines()[-1]


BAD = {
  "no folder": ("in", {}, "no such directory"),
  "no training images": ("in", {"test/a/x.png": b""}, "no directory of train"),
  "two": ("in", {"trn/a/x.png": b"", "train/a/x.png": b""}, "train, trn"),
  "no labels": ("in/train", {"train/.x": b""}, "nothing, expected a directory"),
  "no directory": (
    "in/train/x.png",
    {"train/x.png": b""},
    "a file, expected a",
  ),
  "no images": ("in/train/a", {"train/a/.x": b""}, "no image, expected images"),
  "text": ("in/train/a/x.txt", {"train/a/x.txt": b""}, "another ending"),
  "damaged": ("in/train/a/x.png", {"train/a/x.png": b"PNG"}, "no readable ima"),
  "cut short": (
    "in/train/a/x.png",
    {"train/a/x.png": encoded(np.ones((99, 99), np.uint8))[:-30]},
    "no readable image",
  ),
  "unknown": (
    "in/test/b",
    {
      "train/a/x.png": encoded(np.ones((9, 9), np.uint8)),
      "test/b/x.png": b"",
    },
    "a label without training images",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_by_name(tmp_path, name):
  path, files, message = BAD[name]
  create(tmp_path / "in", files)
  with pytest.raises(errors.DataError, match=message) as caught:
    images.convert(tmp_path / "in", tmp_path / "out", (8, 8))
  assert caught.value.path == str(tmp_path / path)
  assert not list(tmp_path.glob("out/*.partial"))


def test_arrays_that_are_no_images_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"images are float64 \(2, 3\); give"):
    images.write_split(tmp_path, "train", np.ones((2, 3)), np.arange(2))
  some = np.ones((2, 3, 3, 1), np.uint8)
  with pytest.raises(ValueError, match=r"labels are int64 \(3,\); give whole"):
    images.write_split(tmp_path, "train", some, np.arange(3))
  np.save(tmp_path / "X.trn.npy", np.asfortranarray(np.ones((2, 3, 3, 2))))
  np.save(tmp_path / "Y.trn.npy", np.arange(2))
  with pytest.raises(errors.DataError, match="X.trn.npy: found images in Fort"):
    store.open_split(tmp_path)


@pytest.mark.parametrize(
  "array, message",
  [
    (
      np.full((2, 2), 3),
      r"found int64 \(2, 2\) of numbers from 3 to 3, expected a NumPy array ",
    ),
    (np.ones(3), r"found float64 \(3,\)"),
    (np.array([0, 5, 1]), r"in row 1 \(from 0\) label 5, expected an id in"),
    (np.array([0, -2]), r"in row 1 \(from 0\) label -2"),
  ],
)
def test_bad_labels_are_refused(tmp_path, array, message):
  np.save(tmp_path / "Y.trn.npy", array)
  with pytest.raises(errors.DataError, match=message) as caught:
    list(npy.stream_labels(tmp_path / "Y.trn.npy", checks.Columns("label", 5)))
  assert caught.value.path.endswith("Y.trn.npy")


def test_a_part_is_held_out_by_name(tmp_path, pixels):
  content = encoded(pixels[0])
  files = {f"{name}/{i}.png": content for name in "abc" for i in range(40)}
  source = create(tmp_path / "in", {**files, "rare/1.png": content})
  images.convert(source, tmp_path / "out", (2, 2), held_out=0.25)
  train = store.open_split(tmp_path / "out")
  test = store.open_split(tmp_path / "out", "test", num_labels=4)
  assert train.num_rows + test.num_rows == 121
  assert 15 < test.num_rows < 45
  assert set(train.labels.indices.tolist()) == {0, 1, 2, 3}
  # The others stay where they were when images are added.
  create(source, {f"d/{i}.png": content for i in range(40)})
  images.convert(source, tmp_path / "more", (2, 2), held_out=0.25)
  more = store.open_split(tmp_path / "more", "test", num_labels=5)
  d = 3  # before "rare"
  assert (more.labels.indices != d).sum() == test.num_rows


@pytest.mark.parametrize("directory", ["", "train/"])
def test_a_label_keeps_an_image_to_train_on(tmp_path, pixels, directory):
  files = {f"{directory}{i}/x.png": encoded(pixels[0]) for i in range(9)}
  source = create(tmp_path / "in", files)
  with pytest.raises(errors.DataError, match="share than --held_out=0.9"):
    images.convert(source, tmp_path / "out", (2, 2), held_out=0.9)
  create(source, {f"{directory}0/y.png": encoded(pixels[1])})
  images.convert(source, tmp_path / "out", (2, 2), held_out=0.9)
  assert store.open_split(tmp_path / "out").num_rows == 9


def test_folders_that_cannot_be_held_out_of(tmp_path, pixels):
  source = create(tmp_path / "in", {"cat/x.png": encoded(pixels[0])})
  with pytest.raises(errors.DataError, match="--held_out=0.2"):
    images.convert(source, tmp_path / "out", (2, 2))
  create(source, {"train/a/x.png": b"", "test/a/x.png": b""})
  with pytest.raises(errors.DataError, match="leave --held_out away"):
    images.convert(source, tmp_path / "out", (2, 2), held_out=0.5)


def test_images_to_predict_for(tmp_path, pixels):
  source = create(
    tmp_path / "in",
    {
      "b/1.png": encoded(pixels[1]),
      "a.png": encoded(pixels[0]),
      "b/2.jpg": b"no image",
      "c.PNG": encoded(pixels[2]),
      "notes.txt": b"",
    },
  )
  first, bad, last = images.stream(source, (6, 8, 3))
  np.testing.assert_array_equal(first.features, pixels[:2].reshape(2, -1))
  np.testing.assert_array_equal(last.features, pixels[2:3].reshape(1, -1))
  assert str(bad).startswith(str(source / "b/2.jpg"))
  (one,) = images.stream(source / "a.png", (6, 8, 3))
  np.testing.assert_array_equal(one.features, first.features[:1])
  (tmp_path / "empty").mkdir()
  with pytest.raises(errors.DataError, match="found no image"):
    next(images.stream(tmp_path / "empty", (6, 8, 3)))


@pytest.fixture
def digits(tmp_path):
  for split, (rows, labels) in zip(("train", "test"), pictures.digits()):
    images.write_split(
      tmp_path, split, rows.reshape(-1, *pictures.SHAPE), labels
    )
  return tmp_path


SIZES = {
  "vit": {"encoder.depth": 2},
  "resnet": {"encoder.depth": 1, "encoder.stages": 2},
}


def make_config(data_dir, kind):
  config = config_file.get_config(f"encoder={kind},flip=no,shift=0,epochs=12")
  config.update_from_flattened_dict(
    {
      "data.dir": str(data_dir),
      "encoder.dim": 32,
      **SIZES[kind],
      "head.blocks": 8,
      "train.batch_size": 64,
      "eval.batch_size": 64,
    }
  )
  return config


def test_bytes_arrive_at_the_training_step(digits):
  config, data = preparation.prepare(make_config(digits, "resnet"))
  batch = next(pipeline.train_batches(data.split, None, batch_size=16, seed=0))
  assert batch.feature_values.dtype == np.uint8
  with meshes.mesh((8, 1)):
    model = model_lib.Model(config)
    inputs = sharding.put_batch(batches.to_inputs(batch, data.order))
    before = model.abstract()
    after, metrics = jax.eval_shape(model.train_step, before, inputs)
  assert metrics["loss"].shape == ()
  assert jax.tree.structure(after) == jax.tree.structure(before)


@pytest.mark.slow
def test_a_run_on_images_learns_and_predicts(digits):
  train.train(make_config(digits, "vit"), digits / "run")
  predictor = xlj.load(digits / "run")
  rows, labels = pictures.digits()[1]
  _, found = predictor.topk(rows.reshape(-1, *pictures.SHAPE), 1)
  assert np.mean(found[:, 0] == labels) > 0.92
  np.testing.assert_array_equal(predictor.topk(rows, 1)[1], found)
  pixels = rows[:3].reshape(3, *pictures.SHAPE[:2])
  new = {f"new/{i}.png": encoded(image) for i, image in enumerate(pixels)}
  create(digits, {**new, "new/1b.png": b"no image"})
  output = digits / "found.tsv"
  args = digits / "run", str(digits / "new"), str(output)
  predict.predict(*args, k=1, on_error="skip")
  lines = output.read_text().split("\n")
  assert [line.partition(":")[0] for line in lines] == [
    *map(str, found[:2, 0]),
    "",
    str(found[2, 0]),
    "",
  ]
  np.save(digits / "other.npy", np.zeros((2, 3, 5, 1), np.uint8))
  with pytest.raises(errors.DataError, match=r"images of \(3, 5, 1\)"):
    predict.predict(digits / "run", str(digits / "other.npy"), str(output))
