"""Token ids of texts."""

import json
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from xlj.text import tokens as tokens_lib

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "##s"]
CORPUS = [f"the {a} {b} of İstanbul, 東京 {a}{b}" for a in "abc" for b in "xyz"]


@pytest.fixture
def directory(tmp_path):
  """A small tokenizer whose file asks for truncation and padding."""
  vocabulary = {word: i for i, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(vocabulary, unk_token="[UNK]")
  )
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.BertProcessing(
    ("[SEP]", 3), ("[CLS]", 2)
  )
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding(length=6)
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  return tmp_path


def rows(csr):
  return [r.tolist() for r in np.split(csr.indices, csr.indptr[1:-1])]


def test_ids_are_in_order_and_nothing_of_the_file_pads_or_cuts(directory):
  tokens = tokens_lib.Tokens.pretrained(directory, max_length=7)
  found = tokens(["Dogs a DOG a", "", "cat zebra"])
  assert rows(found) == [[2, 6, 7, 4, 6, 4, 3], [2, 3], [2, 5, 1, 3]]
  assert found.values is None
  assert found.shape == (3, len(WORDS)) == (3, tokens.num_features)
  assert tokens.truncated == 0
  assert tokens([]).shape == (0, len(WORDS))


def test_what_is_cut_keeps_the_special_tokens_and_is_counted(directory):
  tokens = tokens_lib.Tokens.pretrained(directory, max_length=4)
  assert rows(tokens(["a cat a dog", "a cat"])) == [[2, 4, 5, 3]] * 2
  assert tokens.truncated == 1


def test_halves_of_surrogate_pairs(directory):
  tokens = tokens_lib.Tokens.pretrained(directory)
  found = tokens(["a \ud800 cat", "a \ud83d\ude00", "a \U0001f600"])
  assert rows(found) == [[2, 4, 5, 3], [2, 4, 1, 3], [2, 4, 1, 3]]


@pytest.mark.parametrize(
  "text",
  [
    "cat " * 5000,
    "cat" * 5000,
    " " * 5000 + "cats dog",
    "\n\t a" + " " * 5000 + "dogs",
    "\u00ad" * 5000 + "a cat a dog",
    " " * 1230 + "dog" + "s" * 120,
  ],
  ids=["words", "one", "spaces first", "within", "nothing first", "cut within"],
)
@pytest.mark.parametrize("learned", [False, True])
def test_long_texts_are_encoded_as_a_whole(directory, text, learned):
  if learned:
    tokens = tokens_lib.Tokens.train(CORPUS, size=300, max_length=5)
  else:
    tokens = tokens_lib.Tokens.pretrained(directory, max_length=5)
  tokens.save(directory)
  peer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
  whole = peer.encode(text)
  assert rows(tokens([text])) == [whole.ids]
  assert tokens.truncated == bool(whole.overflowing)


def test_learned_twice_is_the_same_and_knows_every_script():
  first, second = (tokens_lib.Tokens.train(CORPUS, size=300) for _ in range(2))
  assert first.fingerprint() == second.fingerprint()
  other = tokens_lib.Tokens.train(CORPUS[1:], size=300)
  assert first.fingerprint() != other.fingerprint()
  found = rows(first(["", "ไทย", "the", " THE"]))
  assert found[0] == [1]  # padding is 0
  assert len(found[1]) > 3 and 0 not in found[1]
  assert found[2] == found[3]


def test_a_saved_tokenizer_is_the_same(directory, tmp_path):
  tokens = tokens_lib.Tokens.pretrained(directory, max_length=5)
  run = tmp_path / "run"
  run.mkdir()
  tokens.save(run)
  loaded = tokens_lib.Tokens.load(run)
  assert loaded.fingerprint() == tokens.fingerprint()
  assert loaded.max_length == 5
  assert rows(loaded(["a cat a dogs"])) == rows(tokens(["a cat a dogs"]))


def test_the_limit_is_part_of_the_fingerprint(directory):
  first, second = (
    tokens_lib.Tokens.pretrained(directory, max_length=m) for m in (5, 6)
  )
  assert first.fingerprint() != second.fingerprint()


def test_messages(directory, tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match=r"none/tokenizer.json does not"):
    tokens_lib.Tokens.pretrained(tmp_path / "none")
  with pytest.raises(ValueError, match="max_length is 2, .* at least 3"):
    tokens_lib.Tokens.pretrained(directory, max_length=2)
  with pytest.raises(ValueError, match="100 tokens do not hold the 256 bytes"):
    tokens_lib.Tokens.train(CORPUS, size=100)
  with pytest.raises(TypeError, match="a text is int; give str"):
    tokens_lib.Tokens.pretrained(directory)([3])
  (directory / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
  with pytest.raises(ValueError, match="tokenizer.json is no tokenizer: "):
    tokens_lib.Tokens.pretrained(directory)
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ImportError, match=r"pip install 'xlj-jax\[text\]'"):
    tokens_lib.Tokens.load(directory)
