"""Makes a data set with missing, wrong or long-tailed labels from another one.

python launch/corrupt.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("corrupt")
