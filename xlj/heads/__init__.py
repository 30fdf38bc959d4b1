"""Label heads: init, step, loss and topk over a sharded label space.

`Head` is what all have; `DenseHead` is one row for each label, `PrototypeHead`
several, `SphericalHead` rows at a cost free of L, `OltrHead` rows beside a
memory of centroids, `CascadeHead` a tree of them, `ProductHead` none at all.
"""

from xlj.heads.cascade.head import CascadeHead as CascadeHead
from xlj.heads.dense.head import DenseHead as DenseHead
from xlj.heads.head import Head as Head
from xlj.heads.oltr.head import OltrHead as OltrHead
from xlj.heads.product.head import ProductHead as ProductHead
from xlj.heads.prototypes.head import PrototypeHead as PrototypeHead
from xlj.heads.spherical.head import SphericalHead as SphericalHead
