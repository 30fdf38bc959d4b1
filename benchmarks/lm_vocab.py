"""The vocabulary loss of a language model, with and without all its logits.

Trains the same small model twice from the same start, on the same text: once
with `optax.softmax_cross_entropy_with_integer_labels` on the logits of all
words, once with `xlj.ops.label_pass.label_loss`, which has the logits of a
chunk of words at a time. Prints how far the losses and the weights are apart in
the end, seconds a step, and the temporary memory of a compiled step; and last
one line of JSON.

  python benchmarks/lm_vocab.py --text=ptb.train.txt

The text is one of words separated by white space; lines end in an end mark. The
model predicts a word from the four before it: word vectors, one hidden layer,
and one row for each word, in plain JAX with any optimizer of optax.
`--vocabulary` appends words that never occur, to see the cost of a large one.
"""

import argparse
from collections.abc import Callable
import functools
import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xlj.losses import softmax
from xlj.ops import label_pass
from xlj.ops import shards
from xlj.ops import targets as targets_lib

CONTEXT = 4  # words
Params = dict[str, jax.Array]
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--text", required=True, type=pathlib.Path)
  parser.add_argument("--vocabulary", type=int, default=0, help="at least")
  parser.add_argument("--steps", type=int, default=100)
  parser.add_argument("--batch", type=int, default=1024, help="words")
  parser.add_argument("--dim", type=int, default=128)
  parser.add_argument("--chunk", type=int, default=2048, help="words")
  options = parser.parse_args()

  tokens, num_words = read_tokens(options.text)
  num_words = max(num_words, options.vocabulary)
  print(f"{len(tokens):,} words of text, {num_words:,} in the vocabulary")
  results = {
    "all_logits": train(loss_of_all_logits, tokens, num_words, options),
    "label_pass": train(
      functools.partial(loss_in_chunks, chunk=options.chunk),
      tokens,
      num_words,
      options,
    ),
  }
  for name, (losses, _, seconds, temporaries) in results.items():
    print(
      f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, "
      f"{seconds:.3f} s a step, {temporaries / 2**20:.0f} MiB of temporaries"
    )
  (losses, params, *_), (own_losses, own_params, *_) = results.values()
  apart = max(
    float(jnp.abs(params[name] - own_params[name]).max()) for name in params
  )
  record = {
    "max_loss_difference": float(np.abs(losses - own_losses).max()),
    "max_weight_difference": apart,
    "last_loss": float(own_losses[-1]),
    "time_vs_all_logits": results["label_pass"][2] / results["all_logits"][2],
    "temporaries_vs_all_logits": (
      results["label_pass"][3] / results["all_logits"][3]
    ),
  }
  print(json.dumps(record))


def read_tokens(path: pathlib.Path) -> tuple[np.ndarray, int]:
  """The text as int32 word numbers, and how many words there are."""
  words = path.read_text().replace("\n", " <eos> ").split()
  numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
  return np.array([numbers[word] for word in words], np.int32), len(numbers)


def batches(tokens: np.ndarray, size: int, num_steps: int):
  """Yields contexts `[N, CONTEXT]` and the words that follow `[N]`."""
  rng = np.random.default_rng(0)
  for _ in range(num_steps):
    at = rng.integers(CONTEXT, len(tokens), size)
    yield tokens[at[:, None] - np.arange(CONTEXT, 0, -1)], tokens[at]


def init(key: jax.Array, num_words: int, dim: int) -> Params:
  """Random parameters."""
  words, hidden, rows = jax.random.split(key, 3)
  return {
    "words": 0.1 * jax.random.normal(words, (num_words, dim)),
    "hidden": jax.random.normal(hidden, (CONTEXT * dim, dim))
    / np.sqrt(CONTEXT * dim),
    "rows": 0.1 * jax.random.normal(rows, (num_words, dim)),
  }


def encode(params: Params, contexts: jax.Array) -> jax.Array:
  """Contexts `[N, CONTEXT]` to `[N, D]`."""
  vectors = params["words"][contexts].reshape(contexts.shape[0], -1)
  return jnp.tanh(10 * vectors @ params["hidden"])


def loss_of_all_logits(
  x: jax.Array, rows: jax.Array, targets: jax.Array
) -> jax.Array:
  """The mean loss, by the logits of all words `[N, L]`."""
  return optax.softmax_cross_entropy_with_integer_labels(
    x @ rows.T, targets
  ).mean()


def loss_in_chunks(
  x: jax.Array, rows: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
  """The mean loss, in chunks of words."""
  return label_pass.label_loss(
    x,
    rows,
    None,
    targets_lib.Targets(targets[:, None], jnp.ones(targets.shape[0])),
    softmax.Softmax(),
    placement=shards.Placement(chunk_size=chunk),
  )


def train(
  loss: Loss, tokens: np.ndarray, num_words: int, options: argparse.Namespace
) -> tuple[np.ndarray, Params, float, int]:
  """Trains with a loss.

  Args:
    loss: From hidden states, rows of all words and the words to predict.
    tokens: The text.
    num_words: Size of the vocabulary.
    options: Of the command line.

  Returns:
    The loss of each step, the parameters, seconds of the median step, and the
    temporary bytes of a compiled step.
  """
  tx = optax.adam(1e-3)

  def step(params, state, contexts, targets):
    def of(params):
      return loss(encode(params, contexts), params["rows"], targets)

    value, grads = jax.value_and_grad(of)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  params = init(jax.random.key(0), num_words, options.dim)
  state = tx.init(params)
  stream = batches(tokens, options.batch, options.steps)
  first = next(stream)
  compiled = (
    jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *first).compile()
  )
  losses, seconds = [], []
  for contexts, targets in itertools.chain([first], stream):
    start = time.perf_counter()
    params, state, value = compiled(params, state, contexts, targets)
    losses.append(float(value))  # waits
    seconds.append(time.perf_counter() - start)
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  return np.array(losses), params, float(np.median(seconds)), temporaries


if __name__ == "__main__":
  main()
