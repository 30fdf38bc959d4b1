"""Texts and their labels: files to memory maps.

`store.open_documents`: a split of a data set
`store.has_documents`: whether there is one
`formats.stream`: the rows of one file, without a cache
"""
