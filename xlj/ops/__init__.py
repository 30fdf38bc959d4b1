"""The label pass: losses, searches and updates over label rows.

All work on one device as they are; on a mesh see `Placement`.

Passes over all labels, in the memory of a chunk of them:
  `label_loss`, `label_topk`, `label_attend`, `label_attend_topk`,
  `min_distance`, `nearest`, `label_statistics`, `RowSums`,
  `update_statistics`

Given labels alone:
  `label_logits`, `label_rows`, `sum_duplicates`, `Candidates`,
  `find_candidates`, `gather_candidates`, `log_uniform_sample`, `Sample`,
  `uniform_sample`

What passes are told:
  `Loss`, `Reporting`, `Scheduled`, `Placement`, `Positives`, `Targets`,
  `check_ids`, `Layout`, `Choice`

A step that updates label rows in place:
  `Inputs`, `LabelRows`, `Visit`, `RowFormat`, `RowOptimizer`, `RowState`,
  `sgd`, `sparse_rows`, `SparseRows`
"""

from xlj.ops.choice import Choice as Choice
from xlj.ops.feature_rows import sparse_rows as sparse_rows
from xlj.ops.feature_rows import SparseRows as SparseRows
from xlj.ops.label_attention import label_attend as label_attend
from xlj.ops.label_attention import label_attend_topk as label_attend_topk
from xlj.ops.label_candidates import Candidates as Candidates
from xlj.ops.label_candidates import find_candidates as find_candidates
from xlj.ops.label_candidates import gather_candidates as gather_candidates
from xlj.ops.label_distance import min_distance as min_distance
from xlj.ops.label_distance import nearest as nearest
from xlj.ops.label_gather import label_logits as label_logits
from xlj.ops.label_gather import label_rows as label_rows
from xlj.ops.label_gather import sum_duplicates as sum_duplicates
from xlj.ops.label_pass import label_loss as label_loss
from xlj.ops.label_ranking import label_topk as label_topk
from xlj.ops.label_sample import log_uniform_sample as log_uniform_sample
from xlj.ops.label_sample import Sample as Sample
from xlj.ops.label_sample import uniform_sample as uniform_sample
from xlj.ops.label_step import Inputs as Inputs
from xlj.ops.label_step import LabelRows as LabelRows
from xlj.ops.label_step import Visit as Visit
from xlj.ops.label_sums import label_statistics as label_statistics
from xlj.ops.label_sums import RowSums as RowSums
from xlj.ops.label_sums import update_statistics as update_statistics
from xlj.ops.layout import Layout as Layout
from xlj.ops.loss import Loss as Loss
from xlj.ops.loss import Reporting as Reporting
from xlj.ops.loss import Scheduled as Scheduled
from xlj.ops.row_format import RowFormat as RowFormat
from xlj.ops.row_optimizer import RowOptimizer as RowOptimizer
from xlj.ops.row_optimizer import RowState as RowState
from xlj.ops.row_optimizer import sgd as sgd
from xlj.ops.shards import Placement as Placement
from xlj.ops.targets import check_ids as check_ids
from xlj.ops.targets import Positives as Positives
from xlj.ops.targets import Targets as Targets
