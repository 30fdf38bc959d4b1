"""Losses on logits that arrive in chunks of labels; see `xlj.ops.Loss`.

Softmax and what is built on it:
  `Softmax`, `DecoupledSoftmax`, `PrototypeSoftmax`, `LabelSmoothing`,
  `SoftTargets`, `candidate_loss`, `sampled_loss`

Sums over labels:
  `Separable`, `sum_of_terms`, `BinaryCrossEntropy`,
  `class_balanced_weights`, `propensity_weights`,
  `WeightedBinaryCrossEntropy`, `Focal`, `Asymmetric`, `SquaredHinge`,
  `AssumeNegative`

Changed logits, around another loss:
  `Margin`, `LogitAdjustment`

The spherical family:
  `Gramian`, `Spherical`, `SphericalSoftmax`, `SquaredError`,
  `TaylorSoftmax`, `ZLoss`

Labels that are wrong or missing:
  `LargeLoss`, `Schedule`, `OnlineEstimation`, `EarlyLearning`,
  `SelfDistillation`

Of embeddings:
  `range_losses`

Of a dual encoder's pairs within a batch:
  `pairs`, `Pairs`, `softmax_losses`, `decoupled_losses`, `triplet_losses`
"""

from xlj.losses.assume_negative import AssumeNegative as AssumeNegative
from xlj.losses.asymmetric import Asymmetric as Asymmetric
from xlj.losses.bce import BinaryCrossEntropy as BinaryCrossEntropy
from xlj.losses.contrastive import decoupled_losses as decoupled_losses
from xlj.losses.contrastive import Pairs as Pairs
from xlj.losses.contrastive import pairs as pairs
from xlj.losses.contrastive import softmax_losses as softmax_losses
from xlj.losses.contrastive import triplet_losses as triplet_losses
from xlj.losses.decoupled_softmax import DecoupledSoftmax as DecoupledSoftmax
from xlj.losses.focal import Focal as Focal
from xlj.losses.label_smoothing import LabelSmoothing as LabelSmoothing
from xlj.losses.large_loss import LargeLoss as LargeLoss
from xlj.losses.large_loss import Schedule as Schedule
from xlj.losses.logit_adjustment import LogitAdjustment as LogitAdjustment
from xlj.losses.margin import Margin as Margin
from xlj.losses.prototype_softmax import PrototypeSoftmax as PrototypeSoftmax
from xlj.losses.range_loss import range_losses as range_losses
from xlj.losses.remembered import EarlyLearning as EarlyLearning
from xlj.losses.remembered import SelfDistillation as SelfDistillation
from xlj.losses.role import OnlineEstimation as OnlineEstimation
from xlj.losses.sampled_softmax import candidate_loss as candidate_loss
from xlj.losses.sampled_softmax import sampled_loss as sampled_loss
from xlj.losses.separable import Separable as Separable
from xlj.losses.separable import sum_of_terms as sum_of_terms
from xlj.losses.soft_targets import SoftTargets as SoftTargets
from xlj.losses.softmax import Softmax as Softmax
from xlj.losses.spherical import Gramian as Gramian
from xlj.losses.spherical import Spherical as Spherical
from xlj.losses.spherical import SphericalSoftmax as SphericalSoftmax
from xlj.losses.spherical import SquaredError as SquaredError
from xlj.losses.spherical import TaylorSoftmax as TaylorSoftmax
from xlj.losses.spherical import ZLoss as ZLoss
from xlj.losses.squared_hinge import SquaredHinge as SquaredHinge
from xlj.losses.weighted_bce import (
  class_balanced_weights as class_balanced_weights,
)
from xlj.losses.weighted_bce import propensity_weights as propensity_weights
from xlj.losses.weighted_bce import (
  WeightedBinaryCrossEntropy as WeightedBinaryCrossEntropy,
)
