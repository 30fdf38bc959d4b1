"""Makes a data set of a folder of images.

python launch/images.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("images")
