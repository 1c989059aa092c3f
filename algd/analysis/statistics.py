"""Aggregates over runs with intervals: few seeds, several tasks.

In: one array of scores per task (a stratum), one score per run. Out: estimates with two-sided
confidence intervals. All are means over tasks of an aggregate inside each, so that every task
counts alike whatever its level. Resampling is stratified: runs are drawn within their task. The
recommendation to report interquartile means with stratified bootstrap intervals is that of arXiv
2108.13264, which pools the tasks before it trims.

Shares of 1,000 experiments in which a 95 % interval holds the truth (tests/test_statistics.py):

interquartile mean: 93 to 97 % for 5, 10 and 20 runs of one task and 5 of each of three, under
    normal, lognormal, heavy-tailed, uniform and two-peaked laws and where one run in five fails.
    The percentile interval is read at Student's quantile instead of the normal one, as Hesterberg
    advises (arXiv 1411.5279). His factor for the spread that resampling loses is for means:
    interquartile means of 5 to 20 normal runs spread by 1 to 6 % less than resampled ones.
    No resample leaves the range of the scores, and all five runs of a task lie on one side of a
    median in 2 of 32 cases: there alone the ends reach half-way to Student's if those are further.
    With fewer than five runs Student's interval takes over: 92 to 96 %, but 78 to 88 % under the
    two-peaked law, of which so few runs often show one peak alone.
mean: Student's interval, exact for normal scores of one task. Of several tasks Welch's: 92 to 98 %
    for normal scores whose spreads or numbers differ between tasks. No interval of finite length
    holds the mean of every law (Bahadur and Savage, 1956): of exponential ones it holds 88 % with
    five runs, of costs that are 0 in half of the runs or more 82 to 89 % with three to five.
    Runs that are all equal tell no spread: they, and their interquartile mean, have no interval.
mean of shares, such as violation rates: Wilson's interval with the variance between runs (a design
    effect) and Student's quantile: 94 to 96 %, where Student's own holds 90 to 94 %. Where most
    runs have none and a few have many (J-shaped, mean 6 %), five runs seldom show the few: 90 %.
    Over several tasks whose spreads differ it is no shorter than Welch's: 93 to 96 %.
share of runs, P(cost <= limit): Wilson's, 95 % on average over the truth; at a given truth the
    share that n coin flips can hold is a step function (83 to 99 % for five runs). Over several
    tasks 95 % where their truths are equal, 97 to 98 % where they differ.
probability of improvement: 93 to 97 % for 5 runs of one task and of three.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_CONFIDENCE = 0.95
_ENTRIES_AT_ONCE = 4_000_000  # bounds the memory of one batch of resamples
_BISECTIONS = 60
_FEWEST_FOR_BOOTSTRAP = 5  # runs per task
_SPREAD = 0.97  # of interquartile means in units of the resampled ones' (docstring above)

Strata = Sequence[np.ndarray]


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, NaN where it is unknown."""

    estimate: float
    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan, np.nan)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half along the last axis, (..., N) -> (...).

    Where N is no multiple of four the two outermost values of the middle half count in part.
    """
    if values.shape[-1] == 0:
        raise ValueError("an interquartile mean needs a value")
    edges = np.arange(values.shape[-1] + 1) / values.shape[-1]
    inside = np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25)
    return np.sort(values, axis=-1) @ (np.clip(inside, 0.0, None) / 0.5)


def bootstrap_interval(
    strata: Strata,
    *,
    confidence: float = _CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Return the interquartile mean, averaged over tasks, with its stratified bootstrap interval.

    Args:
        strata: scores (n,) of each task; empty ones are passed over.
        confidence: of the two-sided interval.
        resamples: how often runs are drawn anew. seed: of those draws.
        bounds: what scores can be at all; the interval is cut there.

    Returns:
        The interval; ends are NaN where no two runs of a task differ, the estimate without a run.
    """
    strata = _filled(strata)
    if not strata:
        return UNKNOWN
    low, high = bootstrap_band(
        [scores[:, None] for scores in strata],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    estimate = float(np.mean([interquartile_mean(scores) for scores in strata]))
    return _cut(estimate, float(low[0]), float(high[0]), bounds)


def bootstrap_band(
    strata: Strata,
    *,
    confidence: float = _CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return pointwise ends (T,) of the interval for scores (n, T) that each run has T of.

    Whole runs are drawn. Ends are NaN where no two runs of a task differ: that tells no spread.
    """
    _check(confidence, resamples)
    sizes = [len(scores) for scores in strata]
    if min(sizes) < _FEWEST_FOR_BOOTSTRAP:
        return _student_band(strata, confidence)
    low, high = _percentile_band(strata, confidence, resamples, seed)
    if not (differ := _runs_differ(strata)).all():
        low, high = np.where(differ, low, np.nan), np.where(differ, high, np.nan)
    if sizes == [_FEWEST_FOR_BOOTSTRAP]:
        further = _student_band(strata, confidence)
        low = np.minimum(low, 0.5 * (low + further[0]))
        high = np.maximum(high, 0.5 * (high + further[1]))
    return low, high


def _percentile_band(
    strata: Strata, confidence: float, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles of the resampled interquartile means, averaged over tasks."""
    points = strata[0].shape[1]
    sizes = [len(scores) for scores in strata]
    tail = resampling_tail(sizes, confidence)
    generator = np.random.default_rng(seed)
    draws = [generator.integers(0, size, (resamples, size)) for size in sizes]
    width = max(1, _ENTRIES_AT_ONCE // (resamples * sum(sizes)))
    ends = []
    for first in range(0, points, width):
        parts = [scores[:, first : first + width].T for scores in strata]  # (T', n)
        replicates = [
            interquartile_mean(part[:, rows]) for part, rows in zip(parts, draws, strict=True)
        ]  # (T', resamples) of each task
        ends.append(np.quantile(np.mean(replicates, axis=0), [tail, 1.0 - tail], axis=-1))
    low, high = np.concatenate(ends, axis=-1)
    return low, high


def resampling_tail(sizes: Sequence[int], confidence: float) -> float:
    """Return the share of resamples left out at each side: the normal law beyond Student's t.

    Degrees of freedom are those of the tasks together; t is taken times ``_SPREAD``.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr(_SPREAD * stdtrit(sum(sizes) - len(sizes), 0.5 - 0.5 * confidence)))


def _student_band(strata: Strata, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the interquartile mean plus and minus what Student's interval gives the mean."""
    middle = np.mean([interquartile_mean(scores.T) for scores in strata], axis=0)
    half = _student_half(strata, confidence)
    return middle - half, middle + half


def mean_interval(
    strata: Strata,
    *,
    confidence: float = _CONFIDENCE,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Return the mean, averaged over tasks, with Student's interval from the spread inside tasks.

    Args:
        strata: scores (n,) of each task; empty ones are passed over.
        confidence: of the two-sided interval.
        bounds: what scores can be at all; the interval is cut there.

    Returns:
        The interval; ends are NaN where no two runs of a task differ, the estimate without a run.
    """
    _check(confidence, 1)
    strata = _filled(strata)
    if not strata:
        return UNKNOWN
    estimate = float(np.mean([scores.mean() for scores in strata]))
    half = float(_student_half(strata, confidence))
    return _cut(estimate, estimate - half, estimate + half, bounds)


def share_interval(strata: Strata, *, confidence: float = _CONFIDENCE) -> Interval:
    """Return the mean of shares that runs have, averaged over tasks, with Wilson's interval.

    The variance of the mean is not p (1 - p) over a number of trials, but that of the runs: their
    trials depend on one another. It is at most what runs of nothing but 0 and 1 would have.

    Args:
        strata: shares (n,) in [0, 1] of each task; empty ones are passed over.
        confidence: of the two-sided interval.

    Raises:
        ValueError: a share is below 0 or above 1.
    """
    from scipy.special import stdtrit

    _check(confidence, 1)
    strata = _filled(strata)
    if not strata:
        return UNKNOWN
    if any(((scores < 0) | (scores > 1)).any() for scores in strata):
        raise ValueError(f"shares must be in [0, 1], got {np.concatenate(strata)}")
    share = float(np.mean([scores.mean() for scores in strata]))
    runs = sum(map(len, strata))
    freedom = runs - len(strata)
    if freedom == 0:
        return Interval(share, np.nan, np.nan)
    t2 = float(stdtrit(freedom, 0.5 + 0.5 * confidence)) ** 2
    binomial = share * (1.0 - share)
    inverse = sum(1.0 / len(scores) for scores in strata) / len(strata) ** 2
    if not _runs_differ(strata):  # which tells no spread
        return _wilson(share, t2 * inverse)
    # Of the mean, by the spread of all tasks together: three runs of 0 do not tell a spread of 0.
    variance = sum(len(scores) * scores.var() for scores in strata) / freedom * inverse
    squared = t2 * float(variance)
    if len(strata) > 1:  # spreads may differ between tasks
        squared = max(squared, float(_student_half(strata, confidence)) ** 2)
    return _wilson(share, min(squared / binomial, t2 * inverse * runs / freedom))


def _student_half(strata: Strata, confidence: float) -> np.ndarray:
    """Return half the length of Student's interval of the mean over tasks of their means.

    Spreads may differ between tasks: degrees of freedom are Welch's (Satterthwaite 1946). A task of
    one run is given the spread inside the others; NaN where no two runs of a task differ.
    """
    from scipy.special import stdtrit

    told = [scores for scores in strata if len(scores) > 1]
    shape = strata[0].shape[1:]
    if not told:
        return np.full(shape, np.nan)
    freedom = sum(map(len, told)) - len(told)
    single = len(strata) - len(told)
    parts = []
    for scores in told:
        borrowed = single * (len(scores) - 1) / freedom
        parts.append(scores.var(axis=0, ddof=1) * (1.0 / len(scores) + borrowed) / len(strata) ** 2)
    variance = np.sum(parts, axis=0)
    doubt = np.sum([p**2 / (len(t) - 1) for p, t in zip(parts, told, strict=True)], axis=0)
    degrees = np.divide(variance**2, doubt, out=np.full(shape, np.nan), where=doubt > 0)
    half = stdtrit(degrees, 0.5 + 0.5 * confidence) * np.sqrt(variance)
    return np.where(_runs_differ(strata), half, np.nan)


def _runs_differ(strata: Strata) -> np.ndarray:
    """Say where two runs of some task differ."""
    return np.any([scores.min(axis=0) < scores.max(axis=0) for scores in strata], axis=0)


def proportion_interval(
    successes: int, trials: int, *, confidence: float = _CONFIDENCE
) -> Interval:
    """Return a share with Wilson's score interval, which stays of use at 0 and at 1."""
    _check(confidence, 1)
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be in [0, trials = {trials}], got {successes}")
    if trials == 0:
        return UNKNOWN
    return _wilson(successes / trials, _normal_quantile(confidence) ** 2 / trials)


def mean_proportion_interval(
    counts: Sequence[tuple[int, int]], *, confidence: float = _CONFIDENCE
) -> Interval:
    """Return the mean of several shares with Wilson's interval for the mean of so many trials.

    As if all shares had one truth: where truths differ the mean varies less.

    Args:
        counts: successes and trials of each; those without trials are passed over.
        confidence: of the two-sided interval; of one share it is ``proportion_interval``'s.
    """
    ends = [proportion_interval(*pair, confidence=confidence) for pair in counts if pair[1]]
    if not ends:
        return UNKNOWN
    share = float(np.mean([end.estimate for end in ends]))
    inverse = sum(1.0 / trials for _, trials in counts if trials) / len(ends) ** 2
    return _wilson(share, _normal_quantile(confidence) ** 2 * inverse)


def _wilson(share: float, k: float) -> Interval:
    """Return all p with (share - p)^2 <= k p (1 - p)."""
    middle = (share + 0.5 * k) / (1.0 + k)
    half = float(np.sqrt(k * share * (1.0 - share) + 0.25 * k**2)) / (1.0 + k)
    # At 0 and 1 the end coincides with the share but for rounding.
    return Interval(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def whiskers(intervals: Sequence[Interval]) -> np.ndarray:
    """Return distances (2, n) to both ends, NaN where an end is unknown: nothing is drawn there."""
    ends = np.array([(one.estimate - one.low, one.high - one.estimate) for one in intervals]).T
    return np.maximum(ends, 0.0)


def _cut(estimate: float, low: float, high: float, bounds: tuple[float, float]) -> Interval:
    return Interval(estimate, max(low, bounds[0]), min(high, bounds[1]))


def _filled(strata: Strata) -> list[np.ndarray]:
    return [scores for scores in _arrays(strata) if len(scores)]


def _arrays(strata: Strata) -> list[np.ndarray]:
    arrays = [np.asarray(scores, dtype=float) for scores in strata]
    if wrong := [scores.shape for scores in arrays if scores.ndim != 1]:
        raise ValueError(
            f"strata must hold one array (n,) per task, as [scores] for one task, got {wrong[0]}"
        )
    return arrays


def probability_of_improvement(
    strata: Strata, baseline: Strata, *, confidence: float = _CONFIDENCE
) -> Interval:
    """Return P(a run scores higher than a baseline run), the mean over tasks; ties count half.

    The estimate is the Mann-Whitney statistic over the number of pairs. A bootstrap interval
    shrinks to a point where the two do not overlap, as happens with five seeds; the interval here
    is Newcombe's fifth for the area under a receiver operating characteristic (Statistics in
    Medicine 25, 2006, 559-573), with the variance averaged over tasks.

    Args:
        strata, baseline: scores (n,) and (m,) of each task, in the same order of tasks; tasks that
            either lacks are passed over.
    """
    _check(confidence, 1)
    if len(strata) != len(baseline):
        raise ValueError(f"tasks must be the same, got {len(strata)} and {len(baseline)}")
    pairs = zip(_arrays(strata), _arrays(baseline), strict=True)
    pairs = [(x, y) for x, y in pairs if len(x) and len(y)]
    if not pairs:
        return UNKNOWN
    wins = [0.5 * np.mean(np.sign(x[:, None] - y[None, :]) + 1.0) for x, y in pairs]
    estimate = float(np.mean(wins))
    sizes = [(len(x), len(y)) for x, y in pairs]
    z = _normal_quantile(confidence)

    def is_outside(truth: float) -> bool:
        return abs(estimate - truth) > z * np.sqrt(_win_variance(truth, sizes))

    low = _boundary(is_outside, outside=0.0, inside=estimate)
    high = _boundary(is_outside, outside=1.0, inside=estimate)
    return Interval(estimate, low, high)


def _win_variance(truth: float, sizes: Sequence[tuple[int, int]]) -> float:
    """Return the variance of the mean over tasks if each task's probability were ``truth``."""
    total = 0.0
    for n, m in sizes:
        extra = (1 - truth) / (2 - truth) + truth / (1 + truth)
        total += truth * (1 - truth) * (1 + (0.5 * (n + m) - 1) * extra) / (n * m)
    return total / len(sizes) ** 2


def _boundary(is_outside: Callable[[float], bool], *, outside: float, inside: float) -> float:
    """Return where ``is_outside`` changes between two points; ``inside`` where it never does."""
    if outside == inside:
        return inside
    for _ in range(_BISECTIONS):
        middle = 0.5 * (outside + inside)
        outside, inside = (middle, inside) if is_outside(middle) else (outside, middle)
    return inside


def _normal_quantile(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + 0.5 * confidence))


def _check(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be >= 1, got {resamples}")
