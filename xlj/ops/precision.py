"""How exactly float32 arrays are multiplied.

CPUs multiply float32 as it is. Accelerators round the factors first unless told
otherwise: GPUs to the 10 bits of TF32, TPUs to the 7 bits of bfloat16. Sums are
of float32 in any case. Narrow arrays, such as bfloat16 rows, are multiplied as
they are, whatever is said here.
"""

import jax

# In which products are, as `jax.default_matmul_precision` calls them: all of
# float32; TF32, for which TPUs add up three products of bfloat16; one of those.
PRECISIONS = ("float32", "tensorfloat32", "bfloat16")

# For functions whose answers are promised to be exact: products in them are of
# all of float32, whatever the caller has set.
exact = jax.default_matmul_precision("float32")
