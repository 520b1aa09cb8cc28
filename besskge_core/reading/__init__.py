"""Files to arrays of IDs: what :class:`~besskge_core.dataset.KGDataset` is made from.

`files` reads tables of strings and numbers, `labelling` gives labels their IDs, `folders` knows the
layouts in which data sets are shared, `storage` is a layout of our own. `archives` are data sets
with a fixed place on the web, `remote` gets and unpacks them, `ogb` and `torch_files` read those of
the Open Graph Benchmark.
"""
