"""Estimators over runs: known answers, invariants, and how often intervals hold the truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from algd.analysis.run_statistics import (
    Evaluations,
    area_under_curve,
    first_safe_step,
    normalised_cost,
    safety_first_order,
    summarise,
    training_violations,
)
from algd.analysis.statistics import (
    bootstrap_band,
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    mean_proportion_interval,
    probability_of_improvement,
    proportion_interval,
    resampling_tail,
    share_interval,
)

EXPERIMENTS = 1_000
SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


# ---- interquartile mean ----


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5, 8, 4, 38, 8, 6, 9, 7, 7, 3, 1, 6], 6.5),  # N / 4 whole
        ([1, 3, 5, 7, 9, 11, 13, 15, 17], 9.0),  # N / 4 = 2.25: the ends count three quarters
        ([0, 0, 1, 0, 100], 0.3),  # sorted 0 0 0 1 100; weights .3 .4 .3 on the middle three
        ([4.0], 4.0),
        ([1.0, 2.0], 1.5),
    ],
)
def test_interquartile_mean_of_known_samples(values: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(values, dtype=float)) == pytest.approx(expected)


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=40).filter(lambda x: len(x) % 4 == 0))
def test_interquartile_mean_is_the_quarter_trimmed_mean_where_quarters_are_whole(
    values: list[float],
) -> None:
    expected = stats.trim_mean(values, 0.25)
    assert interquartile_mean(np.array(values)) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(SCORES, st.floats(-100, 100), st.floats(0.01, 100))
def test_interquartile_mean_follows_shift_and_scale(
    values: list[float], shift: float, scale: float
) -> None:
    scores = np.array(values)
    expected = shift + scale * interquartile_mean(scores)
    assert interquartile_mean(shift + scale * scores) == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_an_outlier_does_not_move_the_interquartile_mean() -> None:
    scores = np.arange(8.0)
    spoiled = np.where(scores == 7.0, 1e9, scores)
    assert interquartile_mean(spoiled) == interquartile_mean(scores)


# ---- bootstrap intervals ----


def draw(design: str, generator: np.random.Generator, tasks: int, runs: int) -> np.ndarray:
    size = (tasks, runs)
    match design:
        case "normal":
            return generator.normal(size=size)
        case "lognormal":
            return generator.lognormal(0.0, 0.8, size)
        case "exponential":
            return generator.exponential(size=size)
        case "one in five fails":
            fails = generator.random(size) < 0.2
            return np.where(fails, generator.normal(-3.0, 0.5, size), generator.normal(size=size))
        case "heavy tails":
            return generator.standard_t(3, size)
        case "uniform":
            return generator.random(size)
        case "two peaks":
            return generator.normal(np.where(generator.random(size) < 0.5, -2.0, 2.0), 0.5)
    raise AssertionError(design)


@pytest.mark.parametrize(
    ("design", "tasks", "runs"),
    [
        ("normal", 1, 5),
        ("lognormal", 1, 5),
        ("exponential", 1, 5),
        ("one in five fails", 1, 5),
        ("heavy tails", 1, 5),
        ("uniform", 1, 5),
        ("two peaks", 1, 5),
        ("normal", 3, 5),
        ("lognormal", 3, 5),
        ("one in five fails", 3, 5),
        ("heavy tails", 3, 5),
        ("two peaks", 3, 5),
        ("normal", 1, 10),
        ("lognormal", 1, 10),
        ("one in five fails", 1, 10),
        ("heavy tails", 1, 10),
        ("uniform", 1, 10),
        ("two peaks", 1, 10),
        ("exponential", 1, 20),
        ("normal", 1, 3),
        ("one in five fails", 1, 3),
    ],
)
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_experiments(
    design: str, tasks: int, runs: int
) -> None:
    """Tasks lie far apart, by ten times their spread, which changes nothing: each counts alike."""
    generator = np.random.default_rng(1)
    levels = 10.0 * np.arange(tasks)
    truth = interquartile_mean(draw(design, generator, 1, 600_000).ravel()) + levels.mean()
    held = 0
    for experiment in range(EXPERIMENTS):
        scores = list(draw(design, generator, tasks, runs) + levels[:, None])
        low, high = bootstrap_interval(scores, resamples=1_000, seed=experiment)[1:]
        held += low <= truth <= high
    assert 0.93 <= held / EXPERIMENTS <= 0.97


def test_the_plain_percentile_interval_would_hold_the_truth_too_rarely() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(EXPERIMENTS):
        scores = generator.normal(size=5)
        drawn = interquartile_mean(scores[generator.integers(0, 5, (1_000, 5))])
        low, high = np.quantile(drawn, [0.025, 0.975])
        held += low <= 0.0 <= high
    assert held / EXPERIMENTS < 0.925


@pytest.mark.parametrize(("sizes", "tail"), [([5], 0.0035), ([10], 0.0141), ([5, 5, 5], 0.0173)])
def test_resamples_are_read_at_students_quantile(sizes: list[int], tail: float) -> None:
    freedom = sum(sizes) - len(sizes)
    expected = stats.norm.cdf(0.97 * stats.t.ppf(0.025, freedom))
    assert resampling_tail(sizes, 0.95) == pytest.approx(expected)
    assert resampling_tail(sizes, 0.95) == pytest.approx(tail, abs=6e-5)


def test_five_runs_reach_half_way_to_students_interval() -> None:
    """All of five runs lie on one side of a median in 2 of 32 cases; six do in 2 of 64."""
    scores = np.array([0.0, 0.0, 0.0, 0.0, 10.0])
    half = stats.t.ppf(0.975, 4) * scores.std(ddof=1) / np.sqrt(5)
    _, low, high = bootstrap_interval([scores])
    assert low == pytest.approx(0.5 * (0.0 + interquartile_mean(scores) - half))
    assert high == pytest.approx(10.0)  # Student's end is nearer
    assert bootstrap_interval([np.append(scores, 0.0)]).low == 0.0


def test_resampling_stays_inside_the_tasks() -> None:
    """Tasks far apart have the interval of their spreads, which differ from that alone."""
    near = [np.arange(5.0), np.arange(5.0)]
    far = [near[0], near[1] + 100.0]
    for interval in (bootstrap_interval, mean_interval):
        assert interval(far) == pytest.approx(np.add(interval(near), 50.0))


@pytest.mark.parametrize("runs", [2, 3, 5, 6])
def test_runs_that_are_all_equal_tell_no_spread_and_have_no_interval(runs: int) -> None:
    for interval in (bootstrap_interval, mean_interval):
        estimate, low, high = interval([np.full(runs, 1.0), np.full(runs, 100.0)])
        assert (estimate, np.isnan(low), np.isnan(high)) == (50.5, True, True)
        one = interval([np.full(runs, 1.0), 100.0 + np.arange(runs)])
        assert one.low < one.estimate < one.high
    low, high = bootstrap_band([np.stack([np.zeros(runs), np.arange(runs)], axis=1)])
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] < high[1]


@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_equal_shares_are_as_uncertain_as_so_many_trials(share: float) -> None:
    _, low, high = share_interval([np.full(3, share)])
    t2 = stats.t.ppf(0.975, 2) ** 2
    for end in {low, high} - {share}:
        assert (end - share) ** 2 == pytest.approx(t2 / 3 * end * (1 - end))
    assert high - low > 0.5


def test_every_task_counts_alike_however_many_runs_it_has() -> None:
    strata = [np.full(6, 1.0), np.full(12, 4.0), np.zeros(0)]
    assert bootstrap_interval(strata).estimate == 2.5
    assert mean_interval(strata).estimate == 2.5
    assert share_interval([np.full(6, 0.5), np.full(12, 1.0)]).estimate == 0.75


def test_interval_is_a_function_of_its_seed() -> None:
    scores = [np.random.default_rng(0).normal(size=20)]
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=12).filter(lambda x: min(x) < max(x)))
def test_interval_holds_its_estimate_and_stays_inside_the_scores(values: list[float]) -> None:
    interval = bootstrap_interval([np.array(values)], resamples=500)
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.estimate + slack
    assert interval.estimate - slack <= interval.high <= max(values) + slack


def test_three_runs_have_students_interval() -> None:
    scores = [np.array([1.0, 2.0, 3.0])]
    low, high = stats.t.interval(0.95, 2, loc=2.0, scale=1.0 / np.sqrt(3))
    assert bootstrap_interval(scores) == pytest.approx((2.0, low, high))
    assert mean_interval(scores) == pytest.approx((2.0, low, high))
    for interval in (bootstrap_interval, mean_interval):
        assert interval(scores, bounds=(0.0, 4.0))[1:] == (0.0, 4.0)


def test_a_task_with_few_runs_brings_students_interval_over_all() -> None:
    strata = [np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0]), np.array([7.0])]
    half = stats.t.ppf(0.975, 5) * np.sqrt(np.var(strata[0], ddof=1) * (1 / 6 + 1) / 4)
    middle = (interquartile_mean(strata[0]) + 7.0) / 2
    assert bootstrap_interval(strata) == pytest.approx((middle, middle - half, middle + half))


def test_one_run_has_no_interval_and_none_no_estimate() -> None:
    estimate, low, high = bootstrap_interval([np.array([7.0])])
    assert (estimate, np.isnan(low), np.isnan(high)) == (7.0, True, True)
    for interval in (bootstrap_interval, mean_interval, share_interval):
        assert np.isnan(interval([np.array([])])).all()
        assert np.isnan(interval([np.array([0.5])])[1:]).all()


def test_band_is_the_interval_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algd.analysis.statistics._ENTRIES_AT_ONCE", 7_000)  # several batches
    curves = np.random.default_rng(0).normal(size=(6, 9))
    low, high = bootstrap_band([curves], resamples=500)
    for step in range(9):
        interval = bootstrap_interval([curves[:, step]], resamples=500)
        assert (low[step], high[step]) == pytest.approx(interval[1:])


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5])
def test_a_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got"):
        bootstrap_interval([np.arange(5.0)], confidence=confidence)


# ---- shares ----


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (1, 5), (5, 5), (17, 40)])
def test_share_has_wilsons_interval(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    interval = proportion_interval(successes, trials)
    assert interval.estimate == successes / trials
    assert interval[1:] == pytest.approx((expected.low, expected.high))


def test_a_mean_of_equally_many_trials_per_task_has_wilsons_interval_of_all() -> None:
    assert mean_proportion_interval([(2, 5)]) == pytest.approx(proportion_interval(2, 5))
    pooled = proportion_interval(12, 20)
    assert mean_proportion_interval([(2, 10), (0, 0), (10, 10)]) == pytest.approx(pooled)
    # Of tasks with unequally many trials, the mean of shares, with its own variance.
    share, low, high = mean_proportion_interval([(2, 5), (10, 10)])
    assert share == pytest.approx(0.7)
    for end in (low, high):
        variance = end * (1 - end) * (1 / 5 + 1 / 10) / 4
        assert (end - share) ** 2 == pytest.approx(stats.norm.ppf(0.975) ** 2 * variance)
    assert np.isnan(mean_proportion_interval([(0, 0)])).all()


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (2, 2), (5, 10, 3)])
@pytest.mark.parametrize("alike", [True, False])
def test_intervals_of_mean_proportions_hold_the_truth_on_average_over_truths(
    sizes: tuple[int, ...], alike: bool
) -> None:
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(EXPERIMENTS):
        truths = generator.random(1 if alike else len(sizes)) * np.ones(len(sizes))
        counts = list(zip(generator.binomial(sizes, truths).tolist(), sizes, strict=True))
        _, low, high = mean_proportion_interval(counts)
        held += low <= truths.mean() <= high
    assert 0.935 <= held / EXPERIMENTS <= 0.99


@pytest.mark.parametrize("truths", [(0.5, 0.5), (0.9, 0.3), (0.95, 0.95, 0.5)])
def test_intervals_of_mean_proportions_hold_the_truth(truths: tuple[float, ...]) -> None:
    generator = np.random.default_rng(8)
    held = 0
    for _ in range(EXPERIMENTS):
        counts = [
            (int(generator.binomial(n, p)), n) for n, p in zip((5, 10, 3), truths, strict=False)
        ]
        _, low, high = mean_proportion_interval(counts)
        held += low <= np.mean(truths) <= high
    assert held / EXPERIMENTS >= 0.93


def test_share_of_nothing_is_unknown_and_more_successes_than_trials_are_refused() -> None:
    assert np.isnan(proportion_interval(0, 0)).all()
    with pytest.raises(ValueError, match=r"successes must be in \[0, trials = 3\], got 4"):
        proportion_interval(4, 3)


@pytest.mark.parametrize(("mean", "runs"), [(0.5, 5), (0.3, 5), (0.5, 10), (0.9, 10)])
def test_intervals_of_mean_shares_hold_the_truth_in_93_to_97_percent(
    mean: float, runs: int
) -> None:
    """Each run has a probability of its own, and counts 20 episodes."""
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(EXPERIMENTS):
        shares = generator.binomial(20, generator.beta(8 * mean, 8 * (1 - mean), runs)) / 20
        _, low, high = share_interval([shares])
        held += low <= mean <= high
    assert 0.93 <= held / EXPERIMENTS <= 0.97


@pytest.mark.parametrize(("tasks", "runs"), [(1, 3), (1, 5), (1, 10), (3, 5)])
def test_students_intervals_of_the_mean_hold_the_truth_in_93_to_97_percent(
    tasks: int, runs: int
) -> None:
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(EXPERIMENTS):
        _, low, high = mean_interval(list(generator.normal(size=(tasks, runs))))
        held += low <= 0.0 <= high
    assert 0.93 <= held / EXPERIMENTS <= 0.97


@pytest.mark.parametrize(
    ("sizes", "spreads"),
    [
        ((3, 3, 3), (1.0, 1.0, 1.0)),
        ((3, 3, 3), (1.0, 1.0, 10.0)),
        ((5, 5, 5), (1.0, 1.0, 10.0)),
        ((10, 3), (1.0, 10.0)),
        ((20, 5), (1.0, 10.0)),
    ],
)
def test_welchs_intervals_hold_the_mean_of_unlike_tasks_in_92_to_98_percent(
    sizes: tuple[int, ...], spreads: tuple[float, ...]
) -> None:
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(EXPERIMENTS):
        tasks = [s * generator.normal(size=n) for n, s in zip(sizes, spreads, strict=True)]
        _, low, high = mean_interval(tasks)
        held += low <= 0.0 <= high
    assert 0.92 <= held / EXPERIMENTS <= 0.98


def test_two_tasks_have_welchs_interval() -> None:
    first, second = np.array([1.0, 2.0, 4.0, 4.5]), np.array([-3.0, 5.0, 30.0])
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval()
    expected = (np.mean([first.mean(), second.mean()]), welch.low / 2, welch.high / 2)
    assert mean_interval([first, second]) == pytest.approx(expected)


@pytest.mark.parametrize(("sizes", "mean"), [((2, 10), 0.3), ((3, 20), 0.5), ((3, 20), 0.3)])
def test_intervals_of_shares_hold_the_truth_where_tasks_have_unequally_many_runs(
    sizes: tuple[int, ...], mean: float
) -> None:
    """Runs of nothing but 0 and 1, whose spread nothing but the cap of the variance bounds."""
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(EXPERIMENTS):
        shares = [generator.binomial(1, mean, size).astype(float) for size in sizes]
        _, low, high = share_interval(shares)
        held += low <= mean <= high
    assert held / EXPERIMENTS >= 0.93


@pytest.mark.parametrize(
    ("sizes", "concentrations"),
    [((3, 3, 3, 3), (2.0, 500.0, 500.0, 500.0)), ((3, 3), (500.0, 8.0)), ((8, 3), (500.0, 2.0))],
)
def test_intervals_of_shares_hold_the_truth_where_spreads_differ_between_tasks(
    sizes: tuple[int, ...], concentrations: tuple[float, ...]
) -> None:
    """One spread for all tasks would hold it in 68 to 89 %."""
    generator = np.random.default_rng(10)
    held, levels = 0, [0.3 if c < 100 else 0.04 for c in concentrations]
    for _ in range(EXPERIMENTS):
        shares = [
            generator.beta(c * level, c * (1 - level), n)
            for n, c, level in zip(sizes, concentrations, levels, strict=True)
        ]
        _, low, high = share_interval(shares)
        held += low <= np.mean(levels) <= high
    assert 0.92 <= held / EXPERIMENTS <= 0.98


@pytest.mark.parametrize("runs", [5, 10, 20])
def test_wilsons_interval_holds_the_truth_in_95_percent_on_average_over_truths(runs: int) -> None:
    truths = np.linspace(0.0, 1.0, 2_001)
    chances = stats.binom.pmf(np.arange(runs + 1)[:, None], runs, truths)
    ends = [proportion_interval(count, runs)[1:] for count in range(runs + 1)]
    held = sum(
        chance * ((low <= truths) & (truths <= high))
        for chance, (low, high) in zip(chances, ends, strict=True)
    )
    assert held.mean() == pytest.approx(0.955, abs=0.005)
    assert held.min() > 0.8


def test_shares_of_runs_that_agree_are_as_uncertain_as_so_many_trials() -> None:
    assert share_interval([np.ones(5)]).high == 1.0
    t2 = stats.t.ppf(0.975, 4) ** 2
    assert share_interval([np.ones(5)]).low == pytest.approx(5 / (5 + t2))
    # Runs of nothing but 0 and 1 are trials themselves, with the variance of n - 1 of them.
    mixed = share_interval([np.array([0.0, 1.0, 1.0, 0.0, 1.0])])
    binomial = t2 / 4 * 0.6 * 0.4
    for end in mixed[1:]:
        assert (end - 0.6) ** 2 == pytest.approx(t2 / 4 * end * (1 - end))
    assert mixed.high - mixed.low < 2 * np.sqrt(binomial)


# ---- probability of improvement ----


def test_probability_of_improvement_of_known_samples() -> None:
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0])
    # pairs won: 1 > 0, 2 > 0, 3 > 2, 3 > 0; one tie: 2 = 2
    assert probability_of_improvement([ours], [theirs]).estimate == pytest.approx(4.5 / 6)


def test_probability_of_improvement_is_the_mean_over_tasks() -> None:
    ours = [np.array([1.0, 1.0]), np.array([0.0])]
    theirs = [np.array([0.0]), np.array([1.0, 1.0, 1.0])]
    assert probability_of_improvement(ours, theirs).estimate == 0.5


@given(SCORES, SCORES)
def test_probabilities_of_either_being_better_add_to_one(x: list[float], y: list[float]) -> None:
    there = probability_of_improvement([np.array(x)], [np.array(y)])
    back = probability_of_improvement([np.array(y)], [np.array(x)])
    assert there.estimate == pytest.approx(1.0 - back.estimate)
    assert there.low == pytest.approx(1.0 - back.high, abs=1e-9)
    assert 0.0 <= there.low <= there.estimate <= there.high <= 1.0


def test_separated_samples_leave_the_probability_of_improvement_in_doubt() -> None:
    few = probability_of_improvement([np.arange(5.0) + 10], [np.arange(5.0)])
    many = probability_of_improvement([np.arange(50.0) + 100], [np.arange(50.0)])
    assert (few.estimate, few.high) == (1.0, 1.0)
    assert few.low == pytest.approx(0.643, abs=1e-3)
    assert few.low < many.low < 1.0


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
@pytest.mark.parametrize(("tasks", "runs"), [(1, 5), (3, 5)])
def test_intervals_of_improvement_hold_the_truth_in_93_to_97_percent(
    shift: float, tasks: int, runs: int
) -> None:
    generator = np.random.default_rng(2)
    truth = stats.norm.cdf(shift / np.sqrt(2))
    held = 0
    for _ in range(EXPERIMENTS):
        ours = list(generator.normal(shift, 1.0, (tasks, runs)))
        theirs = list(generator.normal(0.0, 1.0, (tasks, runs)))
        _, low, high = probability_of_improvement(ours, theirs)
        held += low <= truth <= high
    assert 0.93 <= held / EXPERIMENTS <= 0.97


def test_tasks_must_match() -> None:
    with pytest.raises(ValueError, match="tasks must be the same, got 1 and 2"):
        probability_of_improvement([np.ones(2)], [np.ones(2), np.ones(2)])


# ---- one run ----


def test_area_is_the_mean_height_of_the_curve() -> None:
    steps, values = np.array([0, 10, 30]), np.array([0.0, 2.0, 2.0])
    assert area_under_curve(steps, values) == pytest.approx((10 + 40) / 30)
    assert area_under_curve(np.array([5]), np.array([3.0])) == 3.0


def test_first_safe_step_leaves_out_the_untrained_policy() -> None:
    steps, costs = np.array([0, 100, 200, 300]), np.array([0.0, 40.0, 25.0, 60.0])
    assert first_safe_step(steps, costs, cost_limit=25.0) == 200.0
    assert first_safe_step(steps, costs, cost_limit=25.0, after=-1) == 0.0
    assert first_safe_step(steps, costs, cost_limit=25.0, after=200) == np.inf


def test_training_violations_are_the_share_over_the_limit_and_their_excess() -> None:
    assert training_violations(np.array([0.0, 25.0, 26.0, 45.0]), cost_limit=25.0) == (0.5, 21.0)
    rate, excess = training_violations(np.array([]), cost_limit=25.0)
    assert (np.isnan(rate), excess) == (True, 0.0)


def test_normalised_cost_is_in_units_of_the_limit() -> None:
    assert normalised_cost(50.0, cost_limit=25.0) == 2.0
    assert np.isnan(normalised_cost(1.0, cost_limit=0.0))


def test_order_puts_safety_first() -> None:
    returns = np.array([9.0, 1.0, 5.0, 100.0, 5.0])
    costs = np.array([30.0, 25.0, 0.0, 26.0, 10.0])
    order = safety_first_order(returns, costs, np.full(5, 25.0))
    assert order.tolist() == [0.0, 2.0, 3.0, 1.0, 3.0]


def test_summary_of_a_run_with_known_numbers() -> None:
    evaluations = Evaluations(
        np.array([0, 1000, 2000]),
        np.array([0.0, 4.0, 8.0]),
        np.array([2.0, 50.0, 20.0]),
        np.array([0.0, 1.0, 0.3]),
    )
    summary = summarise(evaluations, np.array([10.0, 30.0]), cost_limit=25.0, learning_starts=500)
    assert summary.safe
    assert (summary.final_step, summary.final_return, summary.final_cost) == (2000, 8.0, 20.0)
    assert (summary.normalised_cost, summary.first_safe_step) == (0.8, 2000.0)
    assert (summary.training_violations, summary.excess_cost) == (0.5, 5.0)
    assert summary.episodes_within_limit == pytest.approx(0.7)
    assert summary.return_area == pytest.approx(4.0)


def test_a_run_without_an_evaluation_has_no_summary() -> None:
    empty = np.zeros(0)
    with pytest.raises(ValueError, match="evaluations must hold at least one"):
        summarise(Evaluations(empty, empty, empty, empty), empty, cost_limit=1.0)


def test_what_is_no_list_of_tasks_is_one_line() -> None:
    scores = np.arange(5.0)
    for call in (
        lambda: bootstrap_interval(scores),
        lambda: mean_interval([scores[:, None]]),
        lambda: share_interval(scores / 5),
        lambda: probability_of_improvement(scores, scores + 1),
    ):
        with pytest.raises(ValueError, match=r"strata must hold one array \(n,\) per task"):
            call()
    with pytest.raises(ValueError, match=r"shares must be in \[0, 1\], got \[50"):
        share_interval([np.array([50.0, 60.0])])
    with pytest.raises(ValueError, match="needs a value"):
        interquartile_mean(np.zeros(0))


def test_what_is_not_a_number_has_no_place_in_an_order() -> None:
    costs, limits = np.array([1.0, 30.0]), np.array([25.0, 25.0])
    with pytest.raises(ValueError, match="must not be NaN"):
        safety_first_order(np.array([np.nan, 2.0]), costs, limits)
