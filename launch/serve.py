"""Answers over HTTP, from a run or an exported model.

python launch/serve.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("serve")
