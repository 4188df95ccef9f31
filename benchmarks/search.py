"""A library of 300,000 vectors: recall and time of a search, and the index against faiss.

    .venv-peers/bin/python benchmarks/search.py [--rows 30000] [--builds 1]

The vectors are clusters with spread on a common cone, as pictures' vectors are. The queries are
texts': a point of a cluster, shifted by one constant vector (the gap between the modalities) and
by noise, so that no query is near a stored vector. Everything goes through `Library`: a stub in
place of the model gives the query's vector, and each search returns rows with captions.

Index builds are timed in turn with faiss's HNSW (M 32, efConstruction 100) on the same vectors with
the same threads; ours includes reading the vectors from SQLite and writing the file. The results go
to results/search.json.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import Ratio, interleaved, machine, ratio_of_seconds, ratio_table, write_results
from jaxtyping import Float, UInt8

from diptych.search import nearest
from diptych.search.library import Library

EMBED = 512
CLUSTER_ROWS = 300
"""Vectors of a cluster, on average."""

CONE, SPREAD, GAP, NOISE = 0.5, 1.0, 0.7, 0.4
"""Lengths, beside a cluster's centre of length 1: what all pictures share, the deviation of one
picture from its centre, and the shift and the noise of a query, which has length 1 before them."""

QUERIES = 1000
COUNT = 10
THREADS = 2
RECALL, P50_MS = 0.99, 2.0


class Stub:
    """In place of a model: a text is the number of a query."""

    path = Path("stub")
    fingerprint = "0" * 16
    embed = EMBED

    def __init__(self, queries: Float[np.ndarray, "queries embed"]) -> None:
        self._queries = queries

    def encode_text(self, texts: Iterable[str]) -> Float[np.ndarray, "texts embed"]:
        """The queries of these numbers."""
        return self._queries[[int(text) for text in texts]]

    def prepare(self, picture: Any) -> UInt8[np.ndarray, "size size 3"]:
        """Not used."""
        raise NotImplementedError

    def encode_prepared(
        self, pixels: UInt8[np.ndarray, "images size size 3"]
    ) -> Float[np.ndarray, "images embed"]:
        """Not used."""
        raise NotImplementedError

    def encode_image(self, images: Iterable[Any]) -> Float[np.ndarray, "images embed"]:
        """Not used."""
        raise NotImplementedError


def unit(vectors: np.ndarray) -> Float[np.ndarray, "rows embed"]:
    """Brought to length 1."""
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float32)


def directions(random: np.random.Generator, rows: int) -> Float[np.ndarray, "rows embed"]:
    """Random unit vectors."""
    return unit(random.standard_normal((rows, EMBED), np.float32))


def make_vectors(
    rows: int, seed: int = 0
) -> tuple[Float[np.ndarray, "rows embed"], Float[np.ndarray, "queries embed"]]:
    """Stored vectors and queries; see the head of this file."""
    random = np.random.default_rng(seed)
    centres = directions(random, max(1, rows // CLUSTER_ROWS)) + CONE * directions(random, 1)

    def pictures(count: int) -> Float[np.ndarray, "rows embed"]:
        chosen = centres[random.integers(0, len(centres), count)]
        return unit(chosen + SPREAD * directions(random, count))

    stored = np.concatenate([pictures(min(20_000, rows - at)) for at in range(0, rows, 20_000)])
    shift = GAP * directions(random, 1)
    queries = unit(pictures(QUERIES) + shift + NOISE * directions(random, QUERIES))
    return stored, queries


def exact(
    stored: Float[np.ndarray, "rows embed"], queries: Float[np.ndarray, "queries embed"]
) -> list[set[int]]:
    """Numbers of the nearest stored vectors of each query."""
    found = []
    for part in np.array_split(queries, max(1, len(queries) // 100)):
        best = np.argpartition(-(part @ stored.T), COUNT, axis=1)[:, :COUNT]
        found += [set(row) for row in best.tolist()]
    return found


def ask(library: Library, truth: list[set[int]]) -> tuple[float, list[float]]:
    """Recall at COUNT, and seconds of each search."""
    seconds, right = [], 0
    for number in range(-50, len(truth)):  # the first ones warm up
        text = str(number % len(truth))
        start = time.perf_counter()
        hits = library.search(text, COUNT)
        spent = time.perf_counter() - start
        if number >= 0:
            seconds.append(spent)
            right += len({int(hit.key) for hit in hits} & truth[number])
            assert all(hit.caption for hit in hits)
    return right / (COUNT * len(truth)), seconds


def build_ours(library: Library) -> float:
    """Seconds to build the index from the rows and write it."""
    start = time.perf_counter()
    library.rebuild_index(threads=THREADS)
    return time.perf_counter() - start


def build_faiss(stored: Float[np.ndarray, "rows embed"]) -> float:
    """Seconds of the peer."""
    index = faiss.IndexHNSWFlat(EMBED, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    start = time.perf_counter()
    index.add(stored)
    return time.perf_counter() - start


def resident() -> int:
    """Bytes of this process in memory; 0 where Linux does not tell."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def search_alone(folder: Path, rows: int) -> dict[str, Any]:
    """Open the library anew and search it."""
    stored, queries = make_vectors(rows)
    truth = exact(stored, queries)
    del stored
    before = resident()
    start = time.perf_counter()
    library = Library.open(folder, model=Stub(queries))
    library.search("0", COUNT)
    opened = time.perf_counter() - start
    recall, seconds = ask(library, truth)
    p50, p95 = (float(np.percentile(seconds, share)) * 1000 for share in (50, 95))
    load = os.getloadavg()[0]
    found = {"recall": recall, "p50_ms": p50, "p95_ms": p95, "open_and_first_search_s": opened}
    return found | {"extra_bytes": resident() - before, "load": load}


def main() -> None:
    """Measure everything, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000, help="stored vectors")
    parser.add_argument("--builds", type=int, default=3, help="builds of each index")
    given = parser.parse_args()
    rows = given.rows
    faiss.omp_set_num_threads(THREADS)
    stored, queries = make_vectors(rows)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "photos.library"
        library = Library.open(folder, model=Stub(queries))
        print(f"storing {rows:,} vectors", file=sys.stderr, flush=True)
        keys = [str(number) for number in range(rows)]
        start = time.perf_counter()
        tail, nearest.TAIL_ROWS = nearest.TAIL_ROWS, rows  # the index is built in its own turn
        library.add_vectors(keys, stored, [[f"caption {key}"] for key in keys])
        nearest.TAIL_ROWS = tail
        adding = time.perf_counter() - start
        print("building both indexes in turn", file=sys.stderr, flush=True)
        jobs = {"ours": partial(build_ours, library), "faiss": partial(build_faiss, stored)}
        seconds = interleaved(jobs, given.builds)
        library.close()
        del stored, jobs
        print("searching", file=sys.stderr, flush=True)
        found = search_alone(folder, rows)
        sizes = {
            "index" if path.suffix == ".usearch" else path.name: path.stat().st_size
            for path in sorted(folder.iterdir())
        }
    ratios = [
        ratio_of_seconds("index build / faiss HNSW", seconds["ours"], seconds["faiss"], 1.0),
        Ratio("search p50 / 2 ms", found["p50_ms"] / P50_MS, 1.0),
        Ratio("missed of the true ten / 1 %", (1 - found["recall"]) / (1 - RECALL), 1.0),
    ]
    print(ratio_table(ratios))
    for name, value in found.items():
        print(f"{name:<26}{value:>16,.4f}")
    print(f"{'add_vectors_s':<26}{adding:>16,.1f}   without the index")
    for name, size in sizes.items():
        print(f"{name:<26}{size / 1e6:>16,.1f} MB")
    names = ("CONNECTIVITY", "EXPANSION_ADD", "EXPANSION_SEARCH")
    settings = {name.lower(): getattr(nearest, name) for name in names} | {"dtype": "i8"}
    settings |= {"rows": rows, "embed": EMBED, "queries": QUERIES, "build_threads": THREADS}
    details = machine(["usearch", "faiss-cpu", "numpy"]) | settings
    details |= {"seconds": seconds, "search": found, "bytes": sizes, "add_vectors_s": adding}
    if rows == parser.get_default("rows"):
        print("written:", write_results("search", ratios, details))


if __name__ == "__main__":
    main()
