"""Labels of a trained run that come, go, merge or get other names.

`runs.load` a run, change it with the functions of `edit` and `append`, and
`runs.save` it as the directory of another run, which evaluates, predicts and
trains on. Ids of labels never change: that of a deleted label has no row, that
of a merged one means the label that it was merged into.
"""
