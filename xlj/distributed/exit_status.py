"""How a process of a job ends; the scripts of launch/cluster go by it."""

import signal

DONE = 0
CRASHED = 1  # so is any other status
REFUSED = 2  # running again does not help
LOST = 75  # another process was lost or stuck; running again may help
INTERRUPTED = 128 + signal.SIGINT  # by Ctrl-C, with nothing to save
STOPPED = 128 + signal.SIGTERM  # told to stop, after saving
