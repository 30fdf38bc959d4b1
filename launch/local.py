"""Runs a command as several processes on this machine.

python launch/local.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("local")
