"""A headless Chromium, over the DevTools protocol on a pair of pipes."""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time

CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)
_FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
)
_KEYS = {
  "Enter": 13,
  "Escape": 27,
  "ArrowUp": 38,
  "ArrowDown": 40,
}


class Page:
  """One page of a browser."""

  def __init__(self, read, write):
    self._read, self._write = read, write
    self._numbers = itertools.count(1)
    self._rest = b""
    self._session = None
    self.events = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method, **params):
    """The answer to a command; events before it are kept."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._write, json.dumps(message).encode() + b"\0")
    while True:
      while b"\0" not in self._rest:
        block = os.read(self._read, 2**20)
        assert block, "the browser has ended"
        self._rest += block
      raw, self._rest = self._rest.split(b"\0", 1)
      found = json.loads(raw)
      if found.get("id") == number:
        assert "error" not in found, (method, found["error"])
        return found["result"]
      self.events.append(found)

  def evaluate(self, code):
    """The value of JavaScript, awaited."""
    found = self.call(
      "Runtime.evaluate",
      expression=code,
      awaitPromise=True,
      returnByValue=True,
      userGesture=True,
    )
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def wait(self, code, seconds=30):
    """The value of JavaScript once it is true."""
    end = time.monotonic() + seconds
    while not (value := self.evaluate(code)):
      assert time.monotonic() < end, (code, self.text())
      time.sleep(0.05)
    return value

  def open(self, url):
    """Goes there."""
    self.call("Page.navigate", url=url)
    self.wait("document.readyState === 'complete'")

  def text(self):
    """What the page shows."""
    return self.evaluate("document.body.innerText")

  def type(self, text):
    """Types it where the focus is."""
    self.call("Input.insertText", text=text)

  def press(self, key, modifiers=0):
    """Presses a key."""
    code = _KEYS[key]
    about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    if key == "Enter":
      about["text"] = "\r"
    self.call(
      "Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **about
    )
    about.pop("text", None)
    self.call("Input.dispatchKeyEvent", type="keyUp", **about)

  def choose_file(self, selector, path):
    """Gives a file to an input."""
    root = self.call("DOM.getDocument")["root"]["nodeId"]
    node = self.call("DOM.querySelector", nodeId=root, selector=selector)
    self.call("DOM.setFileInputFiles", files=[str(path)], **node)

  def look(self, width, height, dark=False):
    """Gives the page a size, and a colour scheme."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )
    scheme = {
      "name": "prefers-color-scheme",
      "value": "dark" if dark else "light",
    }
    self.call("Emulation.setEmulatedMedia", features=[scheme])

  def picture(self):
    """A PNG of the page."""
    return base64.b64decode(self.call("Page.captureScreenshot")["data"])


@contextlib.contextmanager
def page():
  """A page of a browser of its own."""
  ends = [*os.pipe(), *os.pipe()]
  # Away from the two descriptors that the browser uses.
  there, write, read, back = (fcntl.fcntl(e, fcntl.F_DUPFD, 10) for e in ends)
  for end in ends:
    os.close(end)
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    # The browser reads from descriptor 3 and writes to 4.
    command = f'exec "$@" 3<&{there} 4>&{back} {there}<&- {back}>&-'
    flags = [*_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
      ["bash", "-c", command, "bash", CHROMIUM, *flags],
      pass_fds=(there, back),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(there)
    os.close(back)
    try:
      yield Page(read, write)
    finally:
      os.close(write)
      os.close(read)
      process.terminate()
      process.wait()
