"""A training step of label rows as kernels: logits never leave the chip."""
