"""The sides of `label_step.py` that run in PyTorch: eager, compiled, products.

Legend: N examples, D width, L labels.
"""

from collections.abc import Callable
import time

import contestant
import torch
from torch import Tensor
from torch.nn import functional

COMPILED = "torch_compile"


def main() -> None:
  contestant.serve(make)


def make(
  name: str, problem: contestant.Problem
) -> tuple[contestant.Side, contestant.Memory]:
  """The side of a name, and the memory of its device."""
  torch.set_num_threads(contestant.num_threads())
  device = torch.device("cpu" if problem.device == "cpu" else "cuda")
  memory = contestant.ProcessMemory()
  if device.type == "cuda":
    memory = DeviceMemory()
    torch.set_float32_matmul_precision("high")  # TF32, as in JAX
  dtype = getattr(torch, problem.dtype)
  x = torch.tensor(problem.examples()).to(device, dtype)
  rows = _rows(problem, device, dtype)
  if name == "torch_products":
    side = Products(x, rows)
  else:
    step = softmax_step if problem.loss == "softmax" else bce_step
    if name in OTHERS:
      step = _step_of(OTHERS[name])
    elif name == COMPILED:
      step = torch.compile(step)
    ids = torch.tensor(problem.ids(), device=device)
    side = Step(step, x, rows, ids, problem.learning_rate)
  kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
  side.facts = {
    "version": f"torch {torch.__version__}",
    "device": kind,
    "threads": torch.get_num_threads(),
  }
  return side, memory


class DeviceMemory:
  """The memory of a CUDA device, as the allocator counts it."""

  def reset(self) -> None:
    """Starts the peak anew."""
    torch.cuda.reset_peak_memory_stats()
    self._before = torch.cuda.memory_allocated()

  def peak(self) -> int:
    """Bytes at the peak beyond those at the reset."""
    return torch.cuda.max_memory_allocated() - self._before


class Step:
  """A step as one writes it in PyTorch."""

  def __init__(
    self,
    step: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    rows: Tensor,
    ids: Tensor,
    learning_rate: float,
  ):
    """Keeps what the step is of.

    Args:
      step: From the other arguments to the loss and the gradient of x.
      x: `[N, D]`.
      rows: `[L, D]`, changed.
      ids: `[N]` positives.
      learning_rate: Of the rows.
    """
    self._step = step
    self._x, self._rows = x.requires_grad_(), rows.requires_grad_()
    self._ids, self._learning_rate = ids, learning_rate
    self._result: tuple[Tensor, Tensor] | None = None

  def step(self) -> dict[str, float]:
    """Takes a step."""
    self._result = None
    start = time.perf_counter()
    self._result = self._step(
      self._x, self._rows, self._ids, self._learning_rate
    )
    _wait()
    return {"step": time.perf_counter() - start}

  def outcome(self) -> dict[str, float]:
    """The loss, and the length of its gradient."""
    loss, dx = self._result
    return {"loss": float(loss), "dx": float(dx.float().norm())}


def softmax_step(
  x: Tensor, rows: Tensor, ids: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor]:
  """The loss of `x [N, D]`, its gradient, and `rows [L, D]` after a step."""
  loss = functional.cross_entropy(x @ rows.T, ids)
  dx, drows = torch.autograd.grad(loss, (x, rows))
  with torch.no_grad():
    rows.add_(drows, alpha=-learning_rate)
  return loss.detach(), dx


def bce_step(
  x: Tensor, rows: Tensor, ids: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor]:
  """As `softmax_step`, by dense targets."""
  z = x @ rows.T
  targets = torch.zeros_like(z).scatter_(1, ids[:, None], 1)
  total = functional.binary_cross_entropy_with_logits(
    z, targets, reduction="sum"
  )
  loss = total / x.shape[0]
  dx, drows = torch.autograd.grad(loss, (x, rows))
  with torch.no_grad():
    rows.add_(drows, alpha=-learning_rate)
  return loss.detach(), dx


def liger_loss(x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
  """That of softmax, by Liger Kernel's fused linear cross-entropy."""
  from liger_kernel.transformers import fused_linear_cross_entropy as fused

  return fused.LigerFusedLinearCrossEntropyLoss()(rows, x, ids)


def cce_loss(x: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
  """That of softmax, by Cut Cross-Entropy."""
  import cut_cross_entropy

  return cut_cross_entropy.linear_cross_entropy(x, rows, ids)


def _step_of(
  loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[..., tuple[Tensor, Tensor]]:
  """A step such as `softmax_step`, by another loss of x, rows and ids."""

  def step(
    x: Tensor, rows: Tensor, ids: Tensor, learning_rate: float
  ) -> tuple[Tensor, Tensor]:
    loss = loss_of(x, rows, ids)
    dx, drows = torch.autograd.grad(loss, (x, rows))
    with torch.no_grad():
      rows.add_(drows, alpha=-learning_rate)
    return loss.detach(), dx

  return step


OTHERS = {"torch_liger": liger_loss, "torch_cce": cce_loss}


class Products:
  """The products of a step by themselves."""

  def __init__(self, x: Tensor, rows: Tensor):
    """Makes what is multiplied, of `x [N, D]` and `rows [L, D]`."""
    g = x @ rows.T
    self._products = {"x Wt": (x, rows.T), "g W": (g, rows), "gt x": (g.T, x)}
    self._out = {name: a @ b for name, (a, b) in self._products.items()}

  def step(self) -> dict[str, float]:
    """Seconds of each, written into memory that is there already."""
    seconds = {}
    for name, (a, b) in self._products.items():
      start = time.perf_counter()
      torch.matmul(a, b, out=self._out[name])
      _wait()
      seconds[name] = time.perf_counter() - start
    return seconds

  def outcome(self) -> dict[str, float]:
    """Nothing to compare."""
    return {}


def _rows(
  problem: contestant.Problem, device: torch.device, dtype: torch.dtype
) -> Tensor:
  """Rows `[L, D]`."""
  some = torch.tensor(problem.some_rows()).to(device, dtype)
  rows = torch.empty((problem.L, problem.D), dtype=dtype, device=device)
  for start in range(0, problem.L, len(some)):
    part = rows[start : start + len(some)]
    part.copy_(some[: len(part)])
  return rows


def _wait() -> None:
  """Until the device has done what it was told."""
  if torch.cuda.is_available():
    torch.cuda.synchronize()


if __name__ == "__main__":
  main()
