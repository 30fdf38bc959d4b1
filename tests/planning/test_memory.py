"""How much memory there is, as systems say it."""

import resource

import pytest

from xlj.planning import memory


@pytest.fixture
def system(tmp_path, monkeypatch):
  """A system that says what the test writes, and nothing else."""
  monkeypatch.setattr(memory, "_PROC", tmp_path)
  monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
  no_limit = resource.RLIM_INFINITY, resource.RLIM_INFINITY
  monkeypatch.setattr(resource, "getrlimit", lambda _: no_limit)

  def write(name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  return write


def test_nobody_says(system):
  assert memory.of_host() is None


def test_what_is_free_and_swap(system):
  system("meminfo", "MemTotal: 9 kB\nMemAvailable: 5 kB\nSwapFree: 1 kB\n")
  assert memory.of_host() == 6 * 1024


def test_limits_of_groups_and_of_those_they_are_in(system):
  system("self/cgroup", "0::/a/b\n")
  system("groups/a/b/memory.max", "max\n")
  system("groups/a/memory.max", "7000\n")
  assert memory.of_host() == 7000
  system("self/cgroup", "0::/a job\n")  # of a name with a blank
  system("groups/a job/memory.max", "6500\n")
  assert memory.of_host() == 6500
  system("self/cgroup", "4:memory:/c\n5:cpu:/\n0::/\n")
  system("groups/memory/memory.limit_in_bytes", "6000\n")  # a container
  assert memory.of_host() == 6000


def test_a_limit_of_addresses(system, monkeypatch):
  page = resource.getpagesize()
  system("self/statm", "3 1 1 1 0 1 0\n")
  monkeypatch.setattr(resource, "getrlimit", lambda _: (10 * page, 10 * page))
  assert memory.of_host() == 7 * page


def test_this_system_says(tmp_path):
  assert memory.of_host() and memory.of_disk(tmp_path / "not/there")
  assert memory.of_disk("gs://bucket/run") is None
