"""Data sets by name: benchmarks from the literature, and `family`, which is made on the spot.

A benchmark is looked for, in this order,

1. in the folder of its name under ``$BESSKGE_DATA``,
2. in the cache: ``$BESSKGE_CACHE``, or ``besskge`` in the cache folder of the platform,
3. at its public source, from where it is put into the cache (`download`).

Wherever it was found, its counts are compared with the published ones, so that a result under the
name of a benchmark is a result on that benchmark. IDs run over all parts: the 210 test triples of
WN18RR with an entity unseen in train, and the 28 of FB15k-237, stay.

The larger ones of :data:`~besskge_core.reading.archives.ARCHIVES`, which KGDataset.build_ogbl_biokg
and its like read from a folder of one's own, are found in the same places: ``ogbl_biokg``,
``ogbl_wikikg2``, ``YAGO3-10``, and ``OpenBioLink`` with ``HQ_DIR`` in it.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
import zipfile
from typing import Any, Callable, Dict, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from besskge_core.catalogue import download
from besskge_core.catalogue.download import Benchmark, SourceFile
from besskge_core.catalogue.family import family
from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError, DataWarning
from besskge_core.prepared import is_prepared, open_prepared
from besskge_core.reading import archives
from besskge_core.reading.archives import ARCHIVES, Archive
from besskge_core.reading.folders import find_table

__all__ = ["ARCHIVES", "BENCHMARKS", "GENERATORS", "cache_folder", "hard_negatives", "load_dataset"]

CONVE = "TimDettmers/ConvE/f3c0eb286025410fa5b4c04696c918264163d0ca"
CODEX = "tsafavi/codex/3132e426c2a6b643b70bad679905a3a6270be440"
PP413 = "pp413/Knowledge_embedding_benchmark_datasets/7823ceac4b2c5a05c0e2c80b1328de376af66d46"


def _triples(url: str, *sha256: str, folder: str = "") -> Tuple[SourceFile, ...]:
    """The files of train, valid and test: at `url`, or in this folder of the archive there."""
    parts = ("train", "valid", "test")
    return tuple(
        SourceFile(f"{part}.tsv", url.format(part=part), digest, f"{folder}{part}.txt")
        for part, digest in zip(parts, sha256)
    )


BENCHMARKS: Dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "codex-s",
            "CoDEx-S",
            (2_034, 42, 32_888, 1_827, 1_828),
            "MIT; Wikidata content is CC0",
            (
                *_triples(
                    f"{CODEX}/data/triples/codex-s/{{part}}.txt",
                    "64f93b7f314f3936a6f65739721429db3f6a7c8f5a1e1104ec3bb544f7434f59",
                    "3831c0e57daef03c3a18cdd1a72e370b496f696c5218883d35c7d2ab8a6a772c",
                    "27127fcb34688c4778e88a39ef3c9b540807da846021e9d9685660ac1838aca1",
                ),
                SourceFile(
                    "valid_negatives.tsv",
                    f"{CODEX}/data/triples/codex-s/valid_negatives.txt",
                    "c1d84860d6ee786419f1f118d0e9479c6614283b3e267afc158734389036901f",
                ),
                SourceFile(
                    "test_negatives.tsv",
                    f"{CODEX}/data/triples/codex-s/test_negatives.txt",
                    "d3fb32c41f3be26d09484ace571965806f1ade0ca712551b0de684c283cdbb22",
                ),
                SourceFile(
                    "entity_types.tsv",
                    f"{CODEX}/data/types/entity2types.json",
                    "a3180a9476a9dffa8260aa1daf1f574331653e4e9935c4024c0bb7a9ec7dbe28",
                    form="json types",
                ),
            ),
        ),
        Benchmark(
            "countries-s1",
            "Countries-S1",
            (271, 2, 1_111, 24, 24),
            "none stated; derived from mledoze/countries (ODbL)",
            _triples(
                f"{CONVE}/countries/countries_S1/{{part}}.txt",
                "5256bf3fc4181d7e87d819571e3acfa5425fc5af365b9ebe5c113740534ca561",
                "f4b27648148a44f87e627140ec3a02ca4c884c32d348591147ca72f1d6fff5b0",
                "262ca5ae5ed3aa1927026e0f258cc52b10830185b93465b93b9360727e719158",
            ),
        ),
        Benchmark(
            "fb15k-237",
            "FB15k-237",
            (14_541, 237, 272_115, 17_535, 20_466),
            "Microsoft Research Data License: for non-commercial or research purposes only",
            (
                *_triples(
                    f"{CONVE}/FB15k-237.tar.gz",
                    "61099230e4439f90885ca9767739e31e8e32f54736fa1c35952b27997bc7c08a",
                    "749cbe9d923bac7b9354da5614ecfed2e0220256d442c3e04a6b303db1f273d9",
                    "e2e35e8e6113de220140b6f44dc71a5207b0fc6872d575e874aefe13259b655b",
                ),
                SourceFile(
                    "entity_labels.tsv",
                    f"{PP413}/FB15k-237/ent2name.txt",
                    "8d05aa18b85b70353883c879ce00d6f12021334233c40162d3df81cbf2c440dd",
                    form="known entities",
                ),
            ),
        ),
        Benchmark(
            "kg20c",
            "KG20C",
            (16_362, 5, 48_213, 3_670, 3_724),
            "for research purposes; otherwise the Microsoft Academic Graph license",
            (
                *_triples(
                    f"{PP413}/KG20C.zip",
                    "9beac59446f5bc2814049c3e6736bed902872050b14959eeafc942bf49226ad1",
                    "7fdaf9cd2cf1b7fbb510bd8d32e49397602425144b117f954212c227b1c36832",
                    "ff0356e9417f782323e3e40ed8e2fb05d0968741fbf0ce566451d7e426c13fc7",
                    folder="KG20C/",
                ),
                SourceFile(
                    "entity_labels.tsv",
                    f"{PP413}/KG20C.zip",
                    "d5febba104479f325d62b6ac3406675b0aef9acbf3d0806edd44153bf2f60e56",
                    "KG20C/all_entity_info.txt",
                    form="column 1",
                ),
                SourceFile(
                    "entity_types.tsv",
                    f"{PP413}/KG20C.zip",
                    "c6e236bfb194db2217384342a9fa5ac37dc4f5b67b36d5e06388aac55fb2e2e1",
                    "KG20C/all_entity_info.txt",
                    form="column 2",
                ),
            ),
        ),
        Benchmark(
            "kinship",
            "Kinship",
            (104, 25, 8_544, 1_068, 1_074),
            "none stated",
            _triples(
                f"{CONVE}/kinship.tar.gz",
                "738612111a6acf0e39662bde24c7e72a4d1edf20931beea077da367dda689731",
                "c56f8630a583178b1e569f11a64aa535ae1ce0b0912d8b1e24716be2b37f04da",
                "05e5733265761d55be9c05bfaff5a8d0808df46f9c1e9d66cc3f2fe114e43d88",
            ),
        ),
        Benchmark(
            "nations",
            "Nations",
            (14, 55, 1_592, 199, 201),
            "none stated",
            _triples(
                f"{CONVE}/nations.tar.gz",
                "0830fa9da8e5bba2ccdaa45b7bdc9130451ba66b09ff2708f35fccaf82473e57",
                "2b337a62e51a2f45c283eac98a70d21b7e0e102136be1539b2a52c652a7b0530",
                "3971085165b47b6aeaec68058c6d8d98b3005e929db81268410b95ae4db770ab",
            ),
        ),
        Benchmark(
            "umls",
            "UMLS",
            (135, 46, 5_216, 652, 661),
            "none stated",
            _triples(
                f"{CONVE}/umls.tar.gz",
                "873ef4925516b83e7f6f8cc02b4be51d848828710a7f65a956f0ac4a9e452f35",
                "025c98f8a4891e2a6582ec5b40ee0d904031edad9c52554522f4b7904820c98e",
                "a7eb529a3d2810fcc96341ccc97c625a5e202f8389673aa6bd317eeebbb79014",
            ),
        ),
        Benchmark(
            "wn18rr",
            "WN18RR",
            (40_943, 11, 86_835, 3_034, 3_134),
            "WordNet 3.0 licence, Copyright 2006 by Princeton University",
            (
                *_triples(
                    f"{CONVE}/WN18RR.tar.gz",
                    "038612e783c215ee5f3ca9fbfca27b8d0739be1028fe4ee7c174aecf0b83d5df",
                    "453ce7202afa58094a04d2b1560ee2b02660f1c260b32ce6651c8ccedd1028ab",
                    "0383bceaaa1096cf3c03ec021ed0048068e2355dbfc0239b292cefdac821cec5",
                ),
                SourceFile(
                    "entity_labels.tsv",
                    f"{PP413}/WN18RR/ent2text.txt",
                    "ae9b7ae4b27a7e24bfeae73d8de96a0c2530b755b5677c2c6b6b86cc35a2a175",
                    form="sorted",
                ),
            ),
        ),
    )
}

GENERATORS: Dict[str, Callable[..., KGDataset]] = {"family": family}
HAVE_NEGATIVES = ("codex-s",)


def load_dataset(
    spec: Union[str, os.PathLike[str]], *, types: bool = False, **options: Any
) -> KGDataset:
    """A data set by name or by path.

    Args:
        spec: the name of a benchmark or generator, in any case (:data:`BENCHMARKS`,
            :data:`ARCHIVES`, :data:`GENERATORS`); or the path of a folder, of a file of triples, of a file of
            :meth:`KGDataset.save`, or of a prepared folder. Names come before paths; ``./family`` is a path.
        types: give IDs type by type, by the entity types that come with it. Of the benchmarks
            CoDEx-S (its most frequent type for each entity), KG20C and WN18RR (only from
            ``$BESSKGE_DATA``: parts of speech are not at its public source) have some;
            `family`, ogbl-biokg and openbiolink always have.
        options: n_person, seed and noise of `family`; those of :meth:`KGDataset.from_folder` or
            :meth:`KGDataset.from_files` for a path.

    Raises:
        DatasetNotFoundError: neither a name nor a path; lists the names.
    """
    name = os.fspath(spec)
    if name.lower() in GENERATORS:
        return GENERATORS[name.lower()](**options)
    if name.lower() in (*BENCHMARKS, *ARCHIVES) and options:
        raise ConfigError(f"{name} takes no options, got {sorted(options)}")
    if name.lower() in ARCHIVES:
        return _load_archive(ARCHIVES[name.lower()], types)
    if name.lower() in BENCHMARKS:
        return _load_benchmark(BENCHMARKS[name.lower()], types)
    if is_prepared(name):
        if types or options:
            raise ConfigError(f"{name}: a prepared folder takes no options")
        return open_prepared(name)
    if os.path.isdir(name):
        return KGDataset.from_folder(name, types=types, **options)
    if not os.path.isfile(name):
        raise DatasetNotFoundError(_unknown(name))
    if types:
        raise ConfigError(f"{name}: types=True needs a folder that has entity_types")
    if zipfile.is_zipfile(name):
        return KGDataset.load(name, **options)
    return KGDataset.from_files(name, **options)


def hard_negatives(name: str, dataset: KGDataset) -> Dict[str, NDArray[np.int32]]:
    """Triples checked to be false, for triple classification, as IDs of the data set.

    Args:
        name: a benchmark that has them: "codex-s".
        dataset: the same benchmark, loaded.

    Returns:
        part to int32 (n, 3).
    """
    if name.lower() not in HAVE_NEGATIVES:
        raise DatasetNotFoundError(f"{name} has no hard negatives; {', '.join(HAVE_NEGATIVES)} has")
    folder = _find_or_fetch(BENCHMARKS[name.lower()])
    found = {part: find_table(folder, f"{part}_negatives") for part in ("valid", "test")}
    if None in found.values():
        raise DataError(f"{folder}: no valid_negatives and test_negatives; fetch {name} again")
    return KGDataset.from_files(
        {part: str(path) for part, path in found.items()},
        entity_dict=dataset.entity_dict,
        relation_dict=dataset.relation_dict,
    ).triples


def _load_benchmark(benchmark: Benchmark, types: bool) -> KGDataset:
    folder = _find_or_fetch(benchmark)
    with warnings.catch_warnings():  # repeated triples are part of the benchmark (Countries-S1)
        warnings.simplefilter("ignore", DataWarning)
        dataset = KGDataset.from_folder(folder, types=types)
    sizes = [len(dataset.triples.get(part, ())) for part in ("train", "valid", "test")]
    counted = (dataset.n_entity, dataset.n_relation_type, *sizes)
    if counted != benchmark.counts:
        raise DataError(
            f"{folder}: not {benchmark.name}: it has {counted} entities, relations, train, valid"
            f" and test triples, expected {benchmark.counts}; remove the folder to have it fetched"
            " again, or load it by its path"
        )
    return dataset


def _load_archive(archive: Archive, types: bool) -> KGDataset:
    given = os.environ.get("BESSKGE_DATA")
    roots = [os.path.join(place, archive.home) for place in (given, cache_folder()) if place]
    root = next((root for root in roots if archive.is_in(root)), roots[-1])
    fields = archives.load(archive.name, root)
    difference = archives.difference(archive, fields)
    if difference:
        raise DataError(
            f"{root}: {difference}; remove {' and '.join(archive.entries.values())} to have it"
            " downloaded again, or read it with KGDataset.build_*, which does not count"
        )
    if types and not fields.get("type_offsets"):
        raise ConfigError(f"{archive.name} has no entity types; leave out types=True")
    return KGDataset(**fields)


def _find_or_fetch(benchmark: Benchmark) -> str:
    given = os.environ.get("BESSKGE_DATA")
    folders = [os.path.join(given, benchmark.folder)] if given else []
    folders.append(os.path.join(cache_folder(), benchmark.folder))
    found = [folder for folder in folders if os.path.isdir(folder)]
    return found[0] if found else download.fetch(benchmark, cache_folder())


def cache_folder() -> str:
    """Where fetched benchmarks are kept: ``$BESSKGE_CACHE``, or the cache folder of the platform."""
    given = os.environ.get("BESSKGE_CACHE")
    if given:
        return given
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", os.path.expanduser("~"))
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "besskge")


def _unknown(name: str) -> str:
    names = sorted([*BENCHMARKS, *ARCHIVES, *GENERATORS])
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"no data set {name!r}: neither a file or folder, nor one of {names}{hint}"
