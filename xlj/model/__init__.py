"""An encoder and a head, put together."""
