"""Next-word data, compared with a plain loop over tokens."""

import collections
import gzip
import re

import numpy as np
import pytest

from xlj.data import errors
from xlj.data import pipeline
from xlj.data import store
from xlj.data import tokens

TRAIN = " the cat sat \n\nthe dog <unk> sat\nthe cat\n"
TEST = "a dog sat\nthe end"


def write(directory, train=TRAIN, test=TEST, name="mini.{}.txt"):
  directory.mkdir(exist_ok=True)
  (directory / name.format("train")).write_text(train)
  (directory / name.format("test")).write_text(test)
  (directory / "README.md").write_text("words")
  return directory


def expected_rows(text, words, context):
  """Labels and sets of features, one token at a time."""
  found = []
  for line in text.removesuffix("\n").split("\n"):
    found += [*line.split(), "<eos>"]
  ids = [
    words.index(word) if word in words else words.index("<unk>")
    for word in found
  ]
  features = [
    {back * len(words) + ids[i - back - 1] for back in range(min(context, i))}
    for i in range(len(ids))
  ]
  return ids, features


def assert_rows(split, text, words, context):
  labels, features = expected_rows(text, words, context)
  split.features.validate()
  split.labels.validate()
  assert split.features.shape == (len(labels), context * len(words))
  assert split.labels.shape == (len(labels), len(words))
  np.testing.assert_array_equal(split.labels.indices, labels)
  np.testing.assert_array_equal(split.labels.row_lengths, 1)
  bounds = split.features.indptr
  for row, wanted in enumerate(features):
    found = split.features.indices[bounds[row] : bounds[row + 1]]
    assert set(found.tolist()) == wanted


@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_rows_are_tokens_with_the_tokens_before_them(
  tmp_path, monkeypatch, context, block_bytes
):
  monkeypatch.setattr(tokens, "_BLOCK_BYTES", block_bytes)
  root = write(tmp_path / "data")
  words = tokens.words(root)
  for name, text in (("train", TRAIN), ("test", TEST)):
    split = store.open_split(root, name, context=context)
    assert_rows(split, text, words, context)


def test_a_long_text_in_many_blocks(tmp_path, monkeypatch):
  monkeypatch.setattr(tokens, "_BLOCK_BYTES", 64)
  generator = np.random.default_rng(0)
  text = "".join(
    " ".join(f"w{i}" for i in generator.integers(0, 30, size)) + "\n"
    for size in generator.integers(0, 12, 100)
  )
  root = write(tmp_path / "data", train=text + "<unk>\n", test=text)
  split = store.open_split(root, "test", context=5)
  assert_rows(split, text, tokens.words(root), 5)


def test_the_most_frequent_word_is_label_0_and_ties_keep_their_order(tmp_path):
  words = tokens.words(write(tmp_path / "data"))
  counts = collections.Counter([*TRAIN.split(), *["<eos>"] * 4])
  appearance = ["the", "cat", "sat", "<eos>", "dog", "<unk>"]
  assert words == sorted(appearance, key=lambda word: -counts[word])
  assert words[0] == "<eos>"


def test_a_split_is_read_once_and_the_vocabulary_is_part_of_its_key(
  tmp_path, monkeypatch
):
  root = write(tmp_path / "data")
  first = store.open_split(root, "test", context=2)
  with monkeypatch.context() as patch:
    patch.setattr(tokens, "ingest", None)
    again = store.open_split(root, "test", context=2)
  assert_rows(again, TEST, tokens.words(root), 2)
  assert first.fingerprint == again.fingerprint
  wider = store.open_split(root, "test", context=3)
  write(root, train=TRAIN + "more words\n")
  renewed = store.open_split(root, "test", context=2)
  prints = {split.fingerprint for split in (first, wider, renewed)}
  assert len(prints) == 3
  assert renewed.num_labels == first.num_labels + 2


def test_compressed_text_and_a_validation_split(tmp_path):
  root = write(tmp_path / "data")
  with gzip.open(root / "mini.valid.txt.gz", "wt") as file:
    file.write(TEST)
  split = store.open_split(root, "validation", context=2)
  assert_rows(split, TEST, tokens.words(root), 2)


def test_batches_come_out_of_the_ordinary_pipeline(tmp_path):
  root = write(tmp_path / "data")
  split = store.open_split(root, "train", context=3)
  (batch,) = pipeline.eval_batches(split, None, batch_size=16, num_threads=0)
  labels, features = expected_rows(TRAIN, tokens.words(root), 3)
  assert batch.weights.sum() == len(labels)
  for row, wanted in enumerate(features):
    real = batch.feature_values[row] > 0
    assert set(batch.feature_ids[row, real].tolist()) == wanted


def test_unknown_words_need_a_token_for_them(tmp_path):
  root = write(tmp_path / "data", train="a b\n", test="a\nb b\na c\n")
  path = re.escape(str(root / "mini.test.txt"))
  with pytest.raises(errors.DataError, match=f"{path}:3: found 'c'.*<unk>"):
    store.open_split(root, "test", context=2)


def test_sizes_that_the_model_does_not_have_are_refused(tmp_path):
  root = write(tmp_path / "data")
  with pytest.raises(errors.DataError, match="train.txt: found 6 words.* 7"):
    store.open_split(root, "test", context=2, num_labels=7)
  with pytest.raises(errors.DataError, match="found 12 features.* 14"):
    store.open_split(root, "test", context=2, num_features=14)
  with pytest.raises(errors.DataError, match="lower the context"):
    store.open_split(root, "test", context=2**30)


def test_empty_files_and_other_formats_are_refused(tmp_path):
  root = write(tmp_path / "data", train="a <unk>\n", test="")
  with pytest.raises(errors.DataError, match="mini.test.txt:1: .*empty"):
    store.open_split(root, "test", context=2)
  write(root, train="")
  with pytest.raises(errors.DataError, match="mini.train.txt:1: .*empty"):
    store.open_split(root, "train", context=2)
  other = tmp_path / "arrays"
  other.mkdir()
  for name in ("trn_X_Xf.txt", "trn_X_Y.txt"):
    (other / name).write_text("1 1\n0:1\n")
  with pytest.raises(errors.DataError, match="one file of text"):
    store.open_split(other, "train", context=2)
