"""Which addresses of this host a job uses."""

import contextlib
import ipaddress
import socket


def own(host: str) -> list[str]:
  """The addresses of a host, if it is this one.

  Args:
    host: Name or address by which others call.

  Returns:
    Those that this host can listen at, as numbers. Empty if it has to listen at
    all it has, because others may come by one that it does not know: behind a
    service, a forwarded port, or a name that is a loopback address only here,
    as many hosts have their own as 127.0.1.1.
  """
  try:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
  except (OSError, ValueError):  # an unknown name, or not a name
    return []
  addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
  here = [address for address in addresses if _is_here(address)]
  is_loopback = any(ipaddress.ip_address(x).is_loopback for x in here)
  if is_loopback and host != "localhost" and host not in addresses:
    return []
  return here


def _is_here(address: str) -> bool:
  family = socket.AF_INET6 if ":" in address else socket.AF_INET
  with contextlib.suppress(OSError), socket.socket(family) as sock:
    sock.bind((address, 0))
    return True
  return False
