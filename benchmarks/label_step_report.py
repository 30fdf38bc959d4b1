"""Tables and records of the times that `label_step.py` has measured."""

import statistics
from typing import Any

import contestant

NAMES = {
  "xlj": "xlj",
  "jax": "plain JAX",
  "torch": "PyTorch",
  "torch_compile": "torch.compile",
  "torch_liger": "Liger Kernel",
  "torch_cce": "Cut Cross-Entropy",
  "products": "three products, JAX",
  "torch_products": "three products, PyTorch",
}
Result = dict[str, Any]
Seconds = dict[str, float]


def report(
  problem: contestant.Problem, results: dict[str, Result], num_steps: int
) -> dict[str, Any]:
  """Prints a table, and returns the record.

  Args:
    problem: What was measured.
    results: Of each side by name, see `side_process.Side`.
    num_steps: Steps of each side.

  Returns:
    What `label_step.py` says of records.
  """
  seconds = {name: _medians(result) for name, result in results.items()}
  record = _record(problem, results, seconds)
  kept = record["keep_logits"]
  print(
    f"\n{problem.loss} {problem.dtype}: N={problem.N} D={problem.D} "
    f"L={problem.L:,}, rows {_mib(record['weight_bytes'])}; "
    f"{record['device']}, {record['threads']} threads; {num_steps} steps"
    + (f"; xlj keeps logits in {kept}" if kept else "")
  )
  print(
    f"{'':>24} {'median':>10} {'least':>10} {'xlj takes':>10}  memory added"
  )
  for name in (name for name in NAMES if name in results):
    result = results[name]
    if "failed" in result:
      print(f"{NAMES[name]:>24} failed: {result['failed']}")
    elif name.endswith("products"):
      _print_products(problem, record, NAMES[name], seconds[name])
    else:
      least = min(step["step"] for step in result["seconds"])
      _print_line(
        NAMES[name],
        seconds[name]["step"],
        f"{least:8.4f} s",
        record,
        _mib(result["peak_bytes"]),
      )
  print(
    f"{'':>24} xlj reaches {_percent(record['roofline_fraction'])} of the rate "
    "of JAX's products, "
    f"{_percent(record['fastest_roofline_fraction'])} of the fastest; "
    f"its temporaries as compiled: {_mib(record['temp_bytes'])}; "
    f"{problem.N * problem.L:,} exponentials would take "
    f"{record['exponentials_time_s'] or 0:.4f} s",
    flush=True,
  )
  return record


def _record(
  problem: contestant.Problem,
  results: dict[str, Result],
  seconds: dict[str, Seconds],
) -> dict[str, Any]:
  """See `report`."""
  ours = results["xlj"]
  time_s = seconds["xlj"]["step"]
  peers = ("jax", "torch", "torch_compile", "torch_liger", "torch_cce")
  times = {name: seconds.get(name, {}).get("step") for name in peers}
  products = seconds.get("products", {})
  plain, fastest = _total(products), _total(_fastest(products))
  torch = _total(seconds.get("torch_products", {}))

  def vs(other: float | None) -> float | None:
    return time_s / other if other else None

  def fraction(other: float | None) -> float | None:
    return other / time_s if other else None

  return {
    "loss": problem.loss,
    "dtype": problem.dtype,
    "N": problem.N,
    "D": problem.D,
    "L": problem.L,
    "time_s": time_s,
    "time_vs_torch": vs(times["torch"]),
    "time_vs_torch_compile": vs(times["torch_compile"]),
    "time_vs_jax": vs(times["jax"]),
    "roofline_fraction": fraction(plain),
    "fastest_roofline_fraction": fraction(fastest),
    "torch_roofline_fraction": fraction(torch),
    "peak_bytes": ours["peak_bytes"],
    **{f"{name}_time_s": times[name] for name in peers},
    **{
      f"{name}_peak_bytes": results.get(name, {}).get("peak_bytes")
      for name in peers
    },
    "products_time_s": plain,
    "fastest_products_time_s": fastest,
    "torch_products_time_s": torch,
    "exponentials_time_s": products.get("exp"),
    "temp_bytes": ours["temp_bytes"],
    "weight_bytes": problem.L * problem.D * problem.itemsize,
    "device": ours["device"],
    "threads": ours["threads"],
    "versions": {
      name: result.get("version") for name, result in results.items()
    },
    **problem.options,
  }


def _medians(result: Result) -> Seconds:
  """Median seconds of each part of a side's steps; none if it failed."""
  steps = result["seconds"]
  if "failed" in result or not steps:
    return {}
  return {
    part: statistics.median(step[part] for step in steps) for part in steps[0]
  }


def _fastest(products: Seconds) -> Seconds:
  """The times of the products, each in its fastest arrangement."""
  return {
    name: min(products[name], products.get(f"fastest {name}", products[name]))
    for name in contestant.PRODUCTS
    if name in products
  }


def _total(products: Seconds) -> float | None:
  """Seconds of the three products; None if they did not run."""
  if not products:
    return None
  return sum(products[name] for name in contestant.PRODUCTS)


def _print_products(
  problem: contestant.Problem,
  record: dict[str, Any],
  name: str,
  products: Seconds,
) -> None:
  """Prints a line of products, and one of the fastest if some are faster."""
  flops = 2 * problem.N * problem.D * problem.L
  found = {name: products}
  if any(part.startswith("fastest") for part in products):
    found["in their fastest layout"] = _fastest(products)
  for name, each in found.items():
    rates = ", ".join(
      f"{part} {flops / each[part] / 1e9:,.0f}" for part in contestant.PRODUCTS
    )
    _print_line(name, _total(each), "", record, f"{rates} GFLOP/s")


def _print_line(
  name: str,
  seconds: float | None,
  least: str,
  record: dict[str, Any],
  rest: str,
) -> None:
  """Prints a line of the table."""
  ratio = record["time_s"] / seconds if seconds else float("nan")
  print(f"{name:>24} {seconds or 0:8.4f} s {least:>10} {ratio:9.2f}x  {rest}")


def _mib(count: int | None) -> str:
  return "not known" if count is None else f"{count / 2**20:,.1f} MiB"


def _percent(fraction: float | None) -> str:
  return "an unknown part" if fraction is None else f"{fraction:.0%}"
