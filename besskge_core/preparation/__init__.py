"""Files of labelled triples, of any size, to IDs and buckets on disk, in bounded memory.

`scanning` reads the sources a piece at a time and gives labels numbers within their piece,
`numbering` gives them their IDs, `buckets` sorts the triples for a number of shards; `making` calls
them in stages, and `stages` lets a killed run go on. What they write is in docs/prepared-data.md, a
contract that other tools can keep; :mod:`besskge_core.prepared` opens it.
"""

from __future__ import annotations

from besskge_core.preparation.making import add_buckets, prepare, prepared_triple_set
from besskge_core.prepared import open_prepared

__all__ = ["add_buckets", "open_prepared", "prepare", "prepared_triple_set"]
