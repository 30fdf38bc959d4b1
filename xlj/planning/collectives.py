"""What a compiled program sends between devices, read from its text.

The convention: bytes that one device sends over its links, and as many that it
receives, if every collective runs as a ring. With g devices in a group and B
bytes of the whole array that is `B (g - 1) / g` for an all-gather, a
reduce-scatter and an all-to-all, twice that for an all-reduce (a
reduce-scatter, then an all-gather), and B for a permutation.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations|true_computation"
  r"|false_computation)=(?:\{([^}]*)\}|(%?[\w.-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_INSTRUCTION = re.compile(
  rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(.*", re.DOTALL
)
_SHAPE = re.compile(r"([a-z]\w*?\d*)\[([\d,]*)\]")
# Listed, `{{0,1},{2,3}}`; counted, `[2,2]<=[4]`; or by axes of a mesh,
# `mesh['data'=2,'label'=2] {'label'}`.
_GROUP = re.compile(
  r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]|mesh\[(.*?)\].*?\{(.*?)\})"
)
_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\(\d+\)(\d+))?")


class UnknownTextError(ValueError):
  """The compiler's text is not understood, so its bytes cannot be counted."""


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction that communicates.

  Attributes:
    kind: One of `KINDS`.
    shape: Of its result on one device, as the compiler writes it.
    result_bytes: Bytes of that.
    group: Number of devices that take part together.
    count: How often it runs in one run of the program.
  """

  kind: str
  shape: str
  result_bytes: int
  group: int
  count: int = 1

  @property
  def sent_bytes(self) -> int:
    """Bytes that a device sends in one run of the program."""
    g, size = self.group, self.result_bytes
    if self.kind == "collective-permute":
      each = size
    elif self.kind == "reduce-scatter":  # the result is one of g parts
      each = size * (g - 1)
    elif self.kind == "all-reduce":
      each = 2 * size * (g - 1) / g
    else:
      each = size * (g - 1) / g
    return math.ceil(each * self.count)


def find(text: str, num_devices: int) -> list[Collective]:
  """The collectives of a compiled program, in the order of its text.

  Those in a loop count as often as it runs, those in a branch as if it were
  taken.

  Args:
    text: `compiled.as_text()`.
    num_devices: Devices that the program runs on.

  Returns:
    The collectives; none that involves one device alone.

  Raises:
    UnknownTextError: If a loop that communicates runs nobody knows how often,
      or an instruction is asynchronous.
  """
  entry, computations = _computations(text)
  found = []

  def visit(name: str, count: int | None) -> None:
    for line in computations.get(name, ()):
      match = _INSTRUCTION.search(line)
      if match:
        collective = _parse(line, match, num_devices, count)
        if collective.group > 1:
          found.append(collective)
        continue
      inner = count
      if " while(" in line:
        trips = _TRIPS.search(line)
        inner = (
          None if trips is None or count is None else count * int(trips[1])
        )
      for callee in _called(line):
        visit(callee, inner)

  visit(entry, 1)
  return found


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
  """Name of the entry computation, and the lines of each computation."""
  entry, name = "", ""
  lines: dict[str, list[str]] = {}
  for line in text.splitlines():
    if line[:1].strip() and line.endswith("{"):
      match = _COMPUTATION.match(line)
      if match:
        name = match[2]
        lines[name] = []
        if match[1]:
          entry = name
    elif name and line.startswith("  "):
      lines[name].append(line)
  if not entry:
    raise UnknownTextError("the compiled text has no entry computation")
  return entry, lines


def _called(line: str) -> Iterator[str]:
  """Names of the computations that an instruction calls."""
  for match in _CALLED.finditer(line):
    for name in (match[1] or match[2]).split(","):
      yield name.strip().removeprefix("%")


def _parse(
  line: str, match: re.Match[str], num_devices: int, count: int | None
) -> Collective:
  """The collective of a line."""
  shape, kind, start = match[1], match[2], match[3]
  if start or count is None:
    why = "is asynchronous" if start else "is in a loop of unknown length"
    raise UnknownTextError(f"cannot count the bytes of {kind}: it {why}")
  shapes = _SHAPE.findall(shape)
  size = sum(_num_bytes(dtype, dims) for dtype, dims in shapes)
  plain = ", ".join(f"{dtype}[{dims}]" for dtype, dims in shapes)
  return Collective(kind, plain, size, _group(line, kind, num_devices), count)


def _group(line: str, kind: str, num_devices: int) -> int:
  """Number of devices that take part together."""
  match = _GROUP.search(line)
  if match is None:
    if kind == "collective-permute" or "replica_groups={}" in line:
      return num_devices
    raise UnknownTextError(f"no replica groups are known of {line.strip()}")
  listed, counted, mesh, axes = match.groups()
  if counted:
    return int(counted)
  if mesh is None:
    return len(listed.split(","))
  sizes = {name: size for name, size, _ in _AXIS.findall(mesh)}
  # A part of an axis is written with its own size.
  return math.prod(
    int(part or sizes[name]) for name, _, part in _AXIS.findall(axes)
  )


def _num_bytes(dtype: str, dims: str) -> int:
  """Bytes of an array such as `("bf16", "1024,64")`."""
  bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
  elements = math.prod(int(d) for d in dims.split(",") if d)
  return math.ceil(elements * bits / 8)
