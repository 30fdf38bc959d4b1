"""Label heads: init, step, loss and topk over a sharded label space."""
