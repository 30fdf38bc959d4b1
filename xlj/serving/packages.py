"""The packages of the extra `serve`, or what to do without them."""

try:
  import httptools
  import msgspec
  import prometheus_client
  import starlette.applications
  import starlette.exceptions
  import starlette.requests
  import starlette.responses
  import starlette.routing
  import uvicorn
  import uvicorn.protocols.http.httptools_impl
except ImportError as error:
  raise ImportError(
    f"a server needs {error.name}: pip install 'xlj-jax[serve]'"
  ) from error

__all__ = ["httptools", "msgspec", "prometheus_client", "starlette", "uvicorn"]
