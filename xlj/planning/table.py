"""A plan as a table for people."""

import collections as collections_lib
from collections.abc import Sequence

from xlj.planning import accelerators
from xlj.planning import collectives

Row = tuple[str, str, str]


def bytes_text(value: float) -> str:
  """Bytes in the largest binary unit that leaves a whole part: "14.9 GiB"."""
  return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def count_text(value: float, unit: str) -> str:
  """A large number with a decimal prefix: "65.6 Tflop"."""
  prefixes = ("", "k", "M", "G", "T", "P", "E")
  return _scaled(value, 1000, tuple(prefix + unit for prefix in prefixes))


def seconds_text(value: float | None) -> str:
  """A time: "0.53 s", "66.3 ms"; "unknown" for None."""
  if value is None:
    return "unknown"
  if value >= 1:
    return f"{value:.3g} s"
  return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def collectives_text(found: Sequence[collectives.Collective]) -> str:
  """Which collectives there are: "3 all-gather, 1 reduce-scatter"."""
  kinds = collections_lib.Counter()
  for c in found:
    kinds[c.kind] += c.count
  return ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none"


def rate_text(accelerator: accelerators.Accelerator, num_devices: int) -> str:
  """What the links of a device carry."""
  rate = accelerator.link_bandwidth(num_devices)
  inside = num_devices <= accelerator.domain
  which = "links" if inside else f"network beyond {accelerator.domain} devices"
  return f"{which}, {count_text(rate, 'B/s')}"


def aligned(rows: Sequence[Row]) -> str:
  """Rows of name, value and note as lines; an empty name makes a blank one."""
  names = max(len(row[0]) for row in rows)
  values = max(len(row[1]) for row in rows)
  return "\n".join(
    f"{name:<{names}}  {value:>{values}}  {note}".rstrip()
    for name, value, note in rows
  )


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
  power = 0
  while abs(value) >= base and power < len(units) - 1:
    value, power = value / base, power + 1
  return f"{value:.{1 if power else 0}f} {units[power]}".rstrip()
