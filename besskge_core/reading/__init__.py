"""Files to arrays of IDs: what :class:`~besskge_core.dataset.KGDataset` is made from.

`files` reads tables of strings and numbers, `labelling` gives labels their IDs, `folders` knows the
layouts in which data sets are shared, `storage` is a layout of our own.
"""
