"""Averages checkpoints into the directory of a new run, shard by shard.

python launch/average.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("average")
