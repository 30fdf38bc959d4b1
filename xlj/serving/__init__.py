"""A model behind HTTP: what `xlj serve` starts.

Requests are read and checked by one thread (`app`), wait in a queue that is
bounded in rows (`batching`), and are computed by one other thread, many at a
time (`answers`). Nothing computes at the same time as something else.
"""
