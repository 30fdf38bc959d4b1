"""Writes the k best labels of each row of a file.

python launch/predict.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("predict")
