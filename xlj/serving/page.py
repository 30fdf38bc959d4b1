"""The page at /: one file without outside resources."""

import base64
import hashlib
from pathlib import Path
import re

_FILE = Path(__file__).with_name("page.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def load() -> tuple[bytes, dict[str, str]]:
  """The page and the headers that go with it.

  Returns:
    Its bytes, and a policy by which no script runs but its own, and nothing is
    loaded but from the server.
  """
  text = _FILE.read_text(encoding="utf-8")
  hashes = [
    base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    for script in _SCRIPT.findall(text)
  ]
  scripts = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
  policy = (
    f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline';"
    " img-src 'self' data: blob:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
  )
  return text.encode(), {
    "content-security-policy": policy,
    "referrer-policy": "no-referrer",
  }
