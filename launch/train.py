"""Trains a model, or continues the run that --workdir holds.

python launch/train.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("train")
