"""Writes runs and exported models side by side into one HTML page.

python launch/report.py --help tells its flags; the code is in xlj/commands.
"""

from xlj import commands

if __name__ == "__main__":
  commands.run("report")
