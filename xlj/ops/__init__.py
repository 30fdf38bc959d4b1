"""The label pass: reference, sharded logits, collectives and top-k."""
