"""Writes the model of a run as a small directory that answers without it.

python launch/export.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("export")
