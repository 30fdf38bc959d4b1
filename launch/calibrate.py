"""Fits how likely it is that a run's labels are right, to rows it has not seen.

python launch/calibrate.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("calibrate")
