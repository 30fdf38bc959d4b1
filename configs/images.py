"""Images: a residual network or a vision transformer, trained from scratch.

  xlj images --input=FOLDER --output_dir=DIR --height=64
  xlj train --config=images:encoder=resnet \\
    --config.data.dir=DIR --workdir=WD

`FOLDER/train/LABEL/` holds the images of a label, `FOLDER/test/LABEL/` those to
test with. Arrays do as well: `DIR/X.trn.npy` uint8 `[N, H, W, C]` and
`DIR/Y.trn.npy` `[N]`, the label of each (or `Y.trn.npz`, where an image has
several), likewise `X.tst.npy` and `Y.tst.npy`. Keys after the colon: `encoder`
(`resnet` or `vit`), `flip=no` for images that mean something else when
mirrored, such as digits, `shift`, pixels by which training images move at most,
and `epochs`.
"""

import ml_collections

from xlj import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  """The config.

  Args:
    arg: See above, each `key=value`.

  Returns:
    The config; set `data.dir`.
  """
  chosen = config_lib.parse_arg(
    arg, (), encoder=("resnet", "vit"), flip=("yes", "no"), shift=4, epochs=30.0
  )
  config = config_lib.base()
  config.update_from_flattened_dict(
    {
      "encoder.type": chosen["encoder"],
      "encoder.flip": chosen["flip"] == "yes",
      "encoder.shift": chosen["shift"],
      "optim.encoder.weight_decay": 1e-4,
      "train.epochs": chosen["epochs"],
    }
  )
  return config
