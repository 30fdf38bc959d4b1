import os

from xlj import processors


def test_those_of_this_process_where_the_system_tells(monkeypatch):
  monkeypatch.setattr(os, "cpu_count", lambda: 3)
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 7}, raising=False)
  assert processors.usable() == 2
  monkeypatch.delattr(os, "sched_getaffinity")
  assert processors.usable() == 3
  monkeypatch.setattr(os, "cpu_count", lambda: None)
  assert processors.usable() == 1
