"""Appends, deletes, renames or merges labels of a trained run, or lists them.

python launch/labels.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("labels")
