"""Ranks and intervals against slow definitions, and the ways a metric can flatter a model."""

import tracemalloc

import numpy as np
import pytest

from diptych.errors import DataError, RequestError
from diptych.evaluate import metrics
from diptych.evaluate.metrics import (
    TIE,
    Interval,
    bootstrap,
    median_rank,
    recall_at,
    recall_interval,
    retrieval_ranks,
)

QUERIES, CANDIDATES, EMBED = 37, 53, 6


def ranks_oracle(query, candidates, positives):
    """The definition, one pair at a time."""
    ranks = []
    for i in range(len(query)):
        scores = [float(np.dot(query[i], candidates[j])) for j in range(len(candidates))]
        best = max(scores[p] for p in positives[i])
        rank = 1
        for j in range(len(candidates)):
            if j not in positives[i] and scores[j] >= best - TIE:
                rank += 1
        ranks.append(rank)
    return np.array(ranks)


def bootstrap_oracle(values, clusters, statistic, resamples, seed):
    """The definition, one draw and one cluster at a time."""
    random = np.random.default_rng(seed)
    names = sorted(set(clusters.tolist()))
    noted = []
    for _ in range(resamples):
        drawn = []
        for pick in random.integers(len(names), size=len(names)):
            drawn += [v for v, c in zip(values, clusters, strict=True) if c == names[pick]]
        noted.append(statistic(drawn))
    value = statistic(values)
    low, high = np.percentile(noted, [2.5, 97.5])
    return Interval(value, low, high)


@pytest.fixture
def tied():
    """Few distinct vectors with small whole numbers, so that many scores are equal."""
    random = np.random.default_rng(5)
    query = random.integers(-1, 2, size=(QUERIES, EMBED)).astype(np.float32)
    candidates = random.integers(-1, 2, size=(CANDIDATES, EMBED)).astype(np.float32)
    candidates[10:20] = candidates[:10]
    positives = [
        np.sort(random.choice(CANDIDATES, size=random.integers(1, 6), replace=False))
        for _ in range(QUERIES)
    ]
    return query, candidates, positives


@pytest.mark.parametrize("chunk", [1, 7, QUERIES, QUERIES + 1, CANDIDATES, CANDIDATES + 1, 1024])
def test_ranks_match_the_definition_for_every_chunk(tied, chunk):
    np.testing.assert_array_equal(retrieval_ranks(*tied, chunk=chunk), ranks_oracle(*tied))


@pytest.mark.parametrize("seed", range(5))
def test_ranks_match_the_definition_without_ties(seed):
    random = np.random.default_rng(seed)
    query = random.normal(size=(QUERIES, EMBED))
    candidates = random.normal(size=(CANDIDATES, EMBED))
    positives = [random.choice(CANDIDATES, size=3, replace=False) for _ in query]
    expected = ranks_oracle(query, candidates, positives)
    np.testing.assert_array_equal(retrieval_ranks(query, candidates, positives), expected)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_constant_embeddings_get_the_worst_rank_not_the_best(kind):
    same = np.full((20, 8), 8**-0.5, dtype=kind)
    ranks = retrieval_ranks(same, same, [np.array([i]) for i in range(20)])
    assert ranks.tolist() == [20] * 20
    assert recall_at(ranks, 10) == 0.0


def test_where_every_candidate_is_right_the_rank_is_one():
    same = np.ones((3, 4), dtype=np.float32)
    assert retrieval_ranks(same, same, [np.arange(3)] * 3).tolist() == [1, 1, 1]


def test_a_copy_that_rounding_sets_apart_ties():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(50, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = np.nextafter(vectors, -vectors)  # each number one step nearer to nothing
    both = np.concatenate([vectors, copies])
    ranks = retrieval_ranks(vectors, both, [np.array([i]) for i in range(50)])
    assert ranks.tolist() == [2] * 50


def test_ranks_do_not_depend_on_the_length_of_the_vectors():
    random = np.random.default_rng(1)
    query, candidates = random.normal(size=(9, 4)), random.normal(size=(9, 4))
    positives = [np.array([i]) for i in range(9)]
    expected = retrieval_ranks(query, candidates, positives)
    scaled = retrieval_ranks(1e-4 * query, 1e-4 * candidates, positives)
    np.testing.assert_array_equal(scaled, expected)


def test_memory_follows_chunk_not_the_number_of_scores():
    random = np.random.default_rng(2)
    vectors = random.normal(size=(4000, 8)).astype(np.float32)
    positives = [np.array([i]) for i in range(4000)]
    chunk = 256
    tracemalloc.start()
    retrieval_ranks(vectors, vectors, positives, chunk=chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < chunk * len(vectors) * 4 < 4000 * 4000 * 4 / 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("role", ["query", "candidate"])
def test_non_finite_embeddings_name_the_row(tied, bad, role):
    query, candidates, positives = tied
    (query if role == "query" else candidates)[3, 2] = bad
    with pytest.raises(DataError, match=f"{role} embedding 3 holds NaN or infinity.*embed again"):
        retrieval_ranks(query, candidates, positives)


def test_queries_without_a_rank_are_refused(tied):
    query, candidates, positives = tied
    none = [*positives[:4], np.array([], dtype=np.int64), *positives[5:]]
    with pytest.raises(DataError, match="query 4 has no positive"):
        retrieval_ranks(query, candidates, none)
    with pytest.raises(DataError, match="37 queries and positives for 36"):
        retrieval_ranks(query, candidates, positives[1:])
    for wrong in (-1, CANDIDATES):
        outside = [np.array([wrong]), *positives[1:]]
        with pytest.raises(DataError, match=f"names candidate {wrong} .*from 0 to 52"):
            retrieval_ranks(query, candidates, outside)
    with pytest.raises(RequestError, match=r"chunk is 0\. Use 1 or more"):
        retrieval_ranks(query, candidates, positives, chunk=0)


def test_no_queries_give_no_ranks():
    nothing = np.zeros((0, 4), dtype=np.float32)
    assert retrieval_ranks(nothing, np.ones((2, 4), dtype=np.float32), []).tolist() == []
    with pytest.raises(DataError, match="no queries to judge"):
        recall_at(np.array([], dtype=np.int64), 1)


def test_recall_and_median_of_known_ranks():
    ranks = np.array([1, 2, 5, 6, 11, 40])
    assert [recall_at(ranks, k) for k in (1, 5, 10)] == [1 / 6, 3 / 6, 4 / 6]
    assert median_rank(ranks) == 5.5
    assert median_rank(ranks[:5]) == 5
    with pytest.raises(RequestError, match="k is 0: ranks begin at 1"):
        recall_at(ranks, 0)


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1, 4, 1, 5), (2,) * 9, (7,), (1,)])
def test_interval_matches_the_definition(statistic, sizes):
    clusters = np.repeat(np.arange(len(sizes)) * 7, sizes)
    values = np.random.default_rng(3).integers(1, 30, size=len(clusters))
    order = np.random.default_rng(4).permutation(len(clusters))
    values, clusters = values[order], clusters[order]
    got = bootstrap(values, clusters, statistic, resamples=50, seed=9)
    expected = bootstrap_oracle(values, clusters, getattr(np, statistic), 50, 9)
    np.testing.assert_allclose(
        [got.value, got.low, got.high], [expected.value, expected.low, expected.high]
    )


def test_interval_does_not_depend_on_the_block_of_draws(monkeypatch):
    values = np.random.default_rng(0).normal(size=60)
    clusters = np.arange(60) // 3
    whole = [bootstrap(values, clusters, s, resamples=200, seed=1) for s in ("mean", "median")]
    monkeypatch.setattr(metrics, "BOOTSTRAP_CELLS", 7 * 60)
    parts = [bootstrap(values, clusters, s, resamples=200, seed=1) for s in ("mean", "median")]
    assert parts == whole


def test_interval_repeats_with_its_seed_and_only_with_it():
    values = np.random.default_rng(0).normal(size=100)
    first, again, other = (bootstrap(values, np.arange(100), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_interval_holds_the_truth_about_95_times_in_100():
    random = np.random.default_rng(7)
    inside, runs = 0, 300
    for run in range(runs):
        ease = random.beta(2, 2, size=80)  # the mean is 0.5
        hits = (random.random((80, 5)) < ease[:, None]).astype(float)
        interval = bootstrap(hits.ravel(), np.repeat(np.arange(80), 5), resamples=300, seed=run)
        inside += interval.low <= 0.5 <= interval.high
    assert 0.90 <= inside / runs <= 0.99


def test_captions_that_fail_together_make_the_interval_wider():
    hits = np.repeat(np.random.default_rng(0).integers(0, 2, size=60), 5).astype(float)
    together = bootstrap(hits, np.repeat(np.arange(60), 5))
    apart = bootstrap(hits, np.arange(300))
    assert together.value == apart.value
    # five copies say no more than one: the width is that of 60 numbers, not of 300
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert 1.8 < ratio < 2.7


@pytest.mark.parametrize("pictures", [1, 3, 50, 1000])
def test_full_and_empty_recall_are_not_certain(pictures):
    clusters = np.repeat(np.arange(pictures), 2)
    full = recall_interval(np.ones(2 * pictures, dtype=np.int64), 1, clusters)
    none = recall_interval(np.full(2 * pictures, 9), 5, clusters)
    # at its far end, what was seen would happen once in 40 times: half of 5 in 100
    assert (full.value, full.high) == (1, 1)
    assert full.low**pictures == pytest.approx(0.025)
    assert (none.value, none.low) == (0, 0)
    assert (1 - none.high) ** pictures == pytest.approx(0.025)


def test_recall_between_has_the_interval_of_the_bootstrap():
    ranks, clusters = np.array([1, 4, 9, 2, 1, 7]), np.array([0, 0, 1, 1, 2, 3])
    expected = bootstrap((ranks <= 5).astype(float), clusters, resamples=99, seed=3)
    assert recall_interval(ranks, 5, clusters, resamples=99, seed=3) == expected


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_equal_values_and_single_clusters_have_no_width(statistic):
    constant = bootstrap(np.full(30, 0.1), np.arange(30), statistic)
    assert constant.low == pytest.approx(0.1, abs=1e-15)
    assert constant.high == pytest.approx(0.1, abs=1e-15)
    assert constant.low <= constant.value <= constant.high
    single = bootstrap(np.array([1.0, 0.0, 1.0, 1.0]), np.zeros(4, dtype=np.int64), statistic)
    assert single.low == single.value == single.high


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_bootstrap_memory_is_bounded(statistic):
    values, clusters = np.arange(20_000), np.arange(20_000) // 5
    tracemalloc.start()
    bootstrap(values, clusters, statistic, resamples=400)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27  # two copies of 400 x 20,000 numbers


def test_bootstrap_errors_say_what_to_do():
    three = np.arange(3)
    with pytest.raises(DataError, match=r"value 1 is nan\. Leave out"):
        bootstrap(np.array([0.0, np.nan]), three[:2])
    with pytest.raises(DataError, match="no queries to judge"):
        bootstrap(np.array([]), three[:0])
    with pytest.raises(RequestError, match=r"resamples is 0\. Use 1 or more"):
        bootstrap(three, three, resamples=0)
