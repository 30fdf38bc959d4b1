"""Where a run is: a directory of a file system, shared by its processes."""

from pathlib import Path

from xlj import config as config_lib


def resolve(directory: str | Path, name: str = "workdir") -> Path:
  """The absolute path of a run's directory.

  Args:
    directory: Where it is, or is to be.
    name: The flag or field that says so, for the message.

  Returns:
    The path.

  Raises:
    ConfigError: If it is the URL of a bucket, which has no files to append to.
  """
  if "://" in str(directory):
    raise config_lib.ConfigError(
      f"{name} is {directory}, a bucket; give a directory of a file system that"
      " all hosts share, and let checkpoints alone go into a bucket, by"
      " --config.checkpoint.dir=gs://..."
    )
  return Path(directory).absolute()
