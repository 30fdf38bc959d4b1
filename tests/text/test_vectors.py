"""Embeddings of texts by a frozen encoder, computed once."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from tests import runs
from tests.encoders import references
from xlj.documents import texts as texts_lib
from xlj.encoders import pretrained
from xlj.text import vectors as vectors_lib

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
DRAWN = np.random.default_rng(0).integers(0, 30, 70)
TEXTS = ["", *(" ".join("hello world" * 3)[: 2 * n] for n in DRAWN), "a"]


def write_tokenizer(directory):
  tokenizer = tokenizers.Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]")
  )
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = processors.BertProcessing(
    ("[SEP]", 3), ("[CLS]", 2)
  )
  tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture
def directory(tmp_path):
  """A small pretrained encoder."""
  out = tmp_path / "pretrained"
  out.mkdir()
  references.write_directory(out, "bert")
  write_tokenizer(out)
  return out


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """Small batches, and blocks of 32 texts."""
  monkeypatch.setattr(vectors_lib, "_BATCH", {"cpu": 64})
  monkeypatch.setattr(vectors_lib, "_BLOCK_BATCHES", 1)


def test_embeddings_are_those_of_the_encoder(directory):
  vectors = vectors_lib.Vectors.pretrained(directory, max_length=33)
  found = vectors(TEXTS)
  encode = pretrained.encoder(directory)
  rows = vectors.tokens(TEXTS).pad(33, fill=0)
  expected = np.asarray(encode(rows.ids, rows.values))
  expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
  assert found.dtype == np.float32 and vectors.num_features == 12
  np.testing.assert_allclose(found, expected, atol=1e-5)
  before = vectors.fingerprint()
  (directory / "modules.json").write_text(json.dumps([{"type": "x.Pooling"}]))
  plain = vectors_lib.Vectors.pretrained(directory, max_length=33)
  assert np.linalg.norm(plain(["a b"])) > 1.5
  assert plain.fingerprint() != before


def test_bits_depend_on_the_text_alone(directory, tmp_path, monkeypatch):
  vectors = vectors_lib.Vectors.pretrained(directory, max_length=33)
  first = vectors.embed(texts_lib.of(TEXTS), tmp_path / "1").features
  others = [*reversed(TEXTS), *("z " * n for n in range(40))]
  second = vectors.embed(texts_lib.of(others), tmp_path / "1").features
  np.testing.assert_array_equal(first, second[: len(TEXTS)][::-1])
  devices = jax.devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  alone = vectors_lib.Vectors.pretrained(directory, max_length=33)
  third = alone.embed(texts_lib.of(TEXTS), tmp_path / "2").features
  np.testing.assert_array_equal(first, third)
  np.testing.assert_allclose(alone(TEXTS), first, atol=1e-6)


def test_computed_once(directory, tmp_path, monkeypatch, caplog):
  texts = texts_lib.of(TEXTS)
  vectors = vectors_lib.Vectors.pretrained(directory, max_length=8)
  found = vectors.embed(texts, tmp_path / "cache", name="train")
  cut = sum(len(text.split()) + 2 > 8 for text in TEXTS)
  assert f"{cut} of the 72 texts of train have more than 8 to" in caplog.text
  assert [p.name for p in (tmp_path / "cache").iterdir()] == [found.entry.name]

  def fail(*_, **__):
    raise AssertionError("computed again")

  monkeypatch.setattr(vectors_lib.Vectors, "_embed", fail)
  again = vectors_lib.Vectors.pretrained(directory, max_length=8)
  same = again.embed(texts, tmp_path / "cache")
  assert same.entry == found.entry and not same.features.flags.writeable
  np.testing.assert_array_equal(same.features, found.features)
  for length, other in ((9, TEXTS), (8, TEXTS[1:])):
    longer = vectors_lib.Vectors.pretrained(directory, max_length=length)
    with pytest.raises(AssertionError, match="computed again"):
      longer.embed(texts_lib.of(other), tmp_path / "cache")


def test_a_damaged_block_is_computed_again(
  directory, tmp_path, monkeypatch, caplog
):
  vectors = vectors_lib.Vectors.pretrained(directory, max_length=33)
  expected = vectors.embed(texts_lib.of(TEXTS), tmp_path / "1").features
  kept = tmp_path / "2"
  monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
  entry = vectors.embed(texts_lib.of(TEXTS), kept).entry
  entry.rename(kept / "away")
  first, second, third = sorted(kept.glob("*.part/*.npz"))
  data = bytearray(first.read_bytes())
  data[300] ^= 1
  first.write_bytes(data)
  second.write_bytes(second.read_bytes()[:-500])
  before = third.stat().st_mtime_ns
  found = vectors.embed(texts_lib.of(TEXTS), kept).features
  np.testing.assert_array_equal(found, expected)
  assert caplog.text.count("is damaged; it is computed again") == 2
  assert third.stat().st_mtime_ns == before


def test_a_run_is_complete_without_the_pretrained_directory(
  directory, tmp_path
):
  vectors = vectors_lib.Vectors.pretrained(
    directory, max_length=20, dtype="bfloat16"
  )
  expected, fingerprint = vectors(TEXTS), vectors.fingerprint()
  run = tmp_path / "run"
  run.mkdir()
  vectors.save(run)
  shutil.rmtree(directory)
  loaded = vectors_lib.Vectors.load(run)
  assert loaded.fingerprint() == fingerprint
  np.testing.assert_array_equal(loaded(TEXTS), expected)
  again = tmp_path / "again"
  loaded.save(again)  # a run that is copied
  assert vectors_lib.Vectors.load(again).fingerprint() == fingerprint


def test_messages(directory):
  with pytest.raises(ValueError, match="max_length is 41, .* for 40 tokens"):
    vectors_lib.Vectors.pretrained(directory, max_length=41)
  (directory / "tokenizer.json").write_text(
    (directory / "tokenizer.json").read_text().replace('"z": 29', '"z": 50')
  )
  with pytest.raises(ValueError, match="51 tokens, and the weights know 50"):
    vectors_lib.Vectors.pretrained(directory, max_length=8)
  (directory / "tokenizer.json").unlink()
  with pytest.raises(FileNotFoundError, match="tokenizer.json does not exist"):
    vectors_lib.Vectors.pretrained(directory, max_length=8)


_JOB = """
import pathlib, sys, time
from tests.text import test_vectors as this
lib = this.vectors_lib
lib._BATCH, lib._BLOCK_BATCHES = {"cpu": 64}, 1
compute = lib._Blocks._compute
def slowly(self, i):
  out = compute(self, i)
  print(f"computed {i}", flush=True)
  time.sleep(float(sys.argv[3]))
  return out
lib._Blocks._compute = slowly
vectors = lib.Vectors.pretrained(sys.argv[1], max_length=33)
vectors.embed(this.texts_lib.of(9 * this.TEXTS), pathlib.Path(sys.argv[2]))
"""


def start(directory, place, seconds):
  """A process that embeds, and takes so long for a block."""
  return subprocess.Popen(
    [sys.executable, "-c", _JOB, directory, place, str(seconds)],
    cwd=runs.ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
  )


@pytest.mark.slow
def test_killed_it_goes_on_and_others_share_the_work(directory, tmp_path):
  place = tmp_path / "cache"
  killed = start(directory, place, 2)
  deadline = time.monotonic() + 120
  while len(list(place.glob("*.part/*.npz"))) < 3:
    assert killed.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  killed.kill()  # the ninth signal, while it computes or sleeps
  killed.wait()
  kept = {p.name: p.stat().st_mtime_ns for p in place.glob("*.part/*.npz")}
  both = [start(directory, place, 0.3) for _ in range(2)]
  done = [process.communicate(timeout=120)[0].split("\n") for process in both]
  assert [process.returncode for process in both] == [0, 0]
  computed = [int(line.split()[1]) for out in done for line in out if line]
  numbers = {int(name[-10:-4]) for name in kept}
  assert sorted(computed) == sorted(set(range(21)) - numbers)
  assert all(len(out) > 2 for out in done)
  vectors = vectors_lib.Vectors.pretrained(directory, max_length=33)
  found = vectors.embed(texts_lib.of(9 * TEXTS), place).features
  expected = vectors.embed(texts_lib.of(9 * TEXTS), tmp_path / "other").features
  np.testing.assert_array_equal(found, expected)
