"""Plans the training step of a config for devices that need not exist.

python launch/plan.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("plan")
