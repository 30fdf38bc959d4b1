"""Dense heads for tests, with the fields of their rows beside their own."""

import dataclasses

from xlj.heads.dense import head as dense
from xlj.heads.dense import rows as rows_lib

_OF_ROWS = {field.name for field in dataclasses.fields(rows_lib.Rows)}


def make(**fields):
  """A dense head of the fields of `Rows` and of `DenseHead`."""
  of_rows = {name: fields.pop(name) for name in _OF_ROWS & fields.keys()}
  return dense.DenseHead(rows_lib.Rows(**of_rows), **fields)


def changed(head, **fields):
  """The head with other values of some of them."""
  of_rows = {name: fields.pop(name) for name in _OF_ROWS & fields.keys()}
  rows = dataclasses.replace(head.label_rows, **of_rows)
  return dataclasses.replace(head, label_rows=rows, **fields)
