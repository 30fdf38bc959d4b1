"""The whole job on generated data: make, train, evaluate, predict.

python launch/demo.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("demo")
