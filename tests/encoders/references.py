"""What `transformers` makes of small models whose weights are drawn here.

To write `references.npz` again, with PyTorch and transformers installed:

    python -m tests.encoders.references [DIRECTORY_OF_MINILM]
"""

import json
from pathlib import Path
import sys

import numpy as np

FILE = Path(__file__).with_name("references.npz")
_SIZES = {
  "vocab_size": 50,
  "max_position_embeddings": 40,
  "hidden_size": 12,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "intermediate_size": 20,
}
CONFIGS = {
  "bert": _SIZES,
  "distilbert": {
    "vocab_size": 50,
    "max_position_embeddings": 40,
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
  },
  "roberta": {**_SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
  "mpnet": {**_SIZES, "hidden_act": "relu"},
}
# 1 is the padding of RoBERTa and MPNet, which have no other such token.
LENGTHS = np.array([20, 1, 33, 7])


def texts(num_tokens: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask `[4, 33]` of texts of `LENGTHS`."""
  mask = np.arange(max(LENGTHS)) < LENGTHS[:, None]
  ids = np.random.default_rng(1).integers(2, num_tokens, mask.shape)
  return np.where(mask, ids, pad).astype(np.int32), mask


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Random tensors of these shapes, those of positions as integers."""
  generator, found = np.random.default_rng(0), {}
  for name, shape in sorted(shapes.items()):
    found[name] = 0.4 * generator.normal(size=shape).astype(np.float32)
    if name.endswith("LayerNorm.weight") or "layer_norm.weight" in name:
      found[name] += 1
  return found


def expected() -> dict[str, np.ndarray]:
  """What is stored."""
  return dict(np.load(FILE))


def write_directory(directory: Path, kind: str) -> None:
  """A pretrained model of a kind, as `save_pretrained` writes it."""
  from safetensors import numpy as safetensors

  saved = expected()
  (directory / "config.json").write_text(str(saved[f"{kind}.config"]))
  shapes = json.loads(str(saved[f"{kind}.shapes"]))
  tensors = weights(shapes)
  tensors["embeddings.position_ids"] = np.arange(40)[None]
  safetensors.save_file(tensors, directory / "model.safetensors")


def _states(model, num_tokens: int, pad: int) -> np.ndarray:
  import torch

  ids, mask = texts(num_tokens, pad)
  with torch.inference_mode():
    out = model.eval()(
      input_ids=torch.tensor(ids.astype(np.int64)),
      attention_mask=torch.tensor(mask.astype(np.int64)),
    )
  return np.where(mask[..., None], out[0].numpy(), 0)


def main() -> None:
  """Writes `FILE`."""
  import torch
  import transformers

  found = {}
  for kind, fields in CONFIGS.items():
    config = transformers.AutoConfig.for_model(kind, **fields)
    model = transformers.AutoModel.from_config(config)
    state = model.state_dict()
    shapes = {
      name: list(tensor.shape)
      for name, tensor in state.items()
      if tensor.dtype.is_floating_point
    }
    drawn = {k: torch.tensor(v) for k, v in weights(shapes).items()}
    model.load_state_dict(drawn, strict=False)
    states = _states(model, 50, config.pad_token_id or 0)
    found[f"{kind}.config"] = np.array(config.to_json_string(use_diff=False))
    found[f"{kind}.shapes"] = np.array(json.dumps(shapes))
    found[f"{kind}.states"] = states
  if len(sys.argv) > 1:
    model = transformers.AutoModel.from_pretrained(sys.argv[1])
    states, mask = _states(model, 30522, 0), texts(30522, 0)[1]
    means = states.sum(1) / mask.sum(1, keepdims=True)
    found["minilm.means"] = means.astype(np.float32)
  elif FILE.exists():
    found["minilm.means"] = expected()["minilm.means"]
  np.savez_compressed(FILE, **found)


if __name__ == "__main__":
  main()
