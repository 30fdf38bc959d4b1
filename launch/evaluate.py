"""Scores a run on a test split: a table, then one line of JSON.

python launch/evaluate.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("evaluate")
