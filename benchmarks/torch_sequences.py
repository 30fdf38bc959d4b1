"""The side of `sequences.py` in PyTorch: SASRec with a sampled softmax.

  python benchmarks/torch_sequences.py BATCHES.npz SETTINGS

Settings are JSON: `num_items`, `dim`, `positions`, `dropout`, `item_dropout`,
`learning_rate` and `sampled`. The layers are those of `xlj.encoders.causal`
with one block and one head. Prints the seconds of a pass over the batches as
JSON, after one step on each of their shapes.

Legend: N sequences, T items of one, D width, L items, S drawn ones.
"""

import json
import math
import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Sasrec(nn.Module):
  """A causal transformer of one block, tied to the rows of items."""

  def __init__(
    self,
    num_items: int,
    dim: int,
    positions: int,
    dropout: float,
    item_dropout: float,
  ):
    """Creates the parameters."""
    super().__init__()
    self.items = nn.Parameter(0.02 * torch.randn(num_items, dim))
    self.bias = nn.Parameter(torch.zeros(positions))  # by distance
    self.values = nn.Parameter(0.02 * torch.randn(positions, dim))
    self.input_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
    self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
    self.qkv, self.mix = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    self.expand, self.shrink = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
    self.drop, self.item_dropout = nn.Dropout(dropout), item_dropout

  def forward(self, ids: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
    """States `[N, T, D]` of ids and of ages, -1 at padding, both `[N, T]`."""
    there = (ages >= 0) & (torch.rand(ids.shape) >= self.item_dropout)
    h = self.drop(self.input_norm(self.items[ids] * there[..., None]))
    places = torch.arange(ids.shape[1])
    back = places[:, None] - places
    seen = there[:, None, :] & (back >= 0) | (back == 0)
    back = back.clamp(0, len(self.bias) - 1)
    q, k, v = self.qkv(self.norms[0](h)).chunk(3, -1)
    scores = q @ k.mT / q.shape[-1] ** 0.5 + self.bias[back]
    shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    further = torch.einsum("nts,tsd->ntd", shares, self.values[back])
    h = h + self.drop(self.mix(shares @ v + further))
    changed = functional.gelu(self.expand(self.norms[1](h)), approximate="tanh")
    return self.norm(h + self.drop(self.shrink(changed)))


def sampled_loss(
  x: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor, count: int
) -> torch.Tensor:
  """The mean of the softmax over drawn items, corrected by their share."""
  drawn = torch.randint(len(rows), (count,))
  z = x @ rows[drawn].T - math.log(count / len(rows))
  z = z.masked_fill(drawn == labels[:, None], -torch.inf)
  positive = (x * rows[labels]).sum(1, keepdim=True)
  return (torch.cat([positive, z], 1).logsumexp(1) - positive[:, 0]).mean()


def main() -> None:
  batches = np.load(sys.argv[1])
  settings = json.loads(sys.argv[2])
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  model = Sasrec(
    settings["num_items"],
    settings["dim"],
    settings["positions"],
    settings["dropout"],
    settings["item_dropout"],
  )
  optimizer = torch.optim.Adam(model.parameters(), settings["learning_rate"])

  def step(number: str) -> None:
    ids, ages, labels = (
      torch.from_numpy(batches[f"{name}_{number}"]).long()
      for name in ("ids", "ages", "labels")
    )
    here = labels >= 0
    loss = sampled_loss(
      model(ids, ages)[here], model.items, labels[here], settings["sampled"]
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

  numbers = [name[4:] for name in batches.files if name.startswith("ids_")]
  shapes = {batches[f"ids_{number}"].shape: number for number in numbers}
  for number in shapes.values():
    step(number)
  start = time.perf_counter(), time.process_time()
  for number in numbers:
    step(number)
  ends = time.perf_counter(), time.process_time()
  print(json.dumps({"seconds": [b - a for a, b in zip(start, ends)]}))


if __name__ == "__main__":
  main()
