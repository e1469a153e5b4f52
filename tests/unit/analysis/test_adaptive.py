import math

import numpy as np
import pytest
from scipy import stats

from experiment_service.analysis.adaptive import (
    contrast,
    contrast_lift,
    contrast_sequence,
)
from experiment_service.analysis.interval import Interval, Withheld
from experiment_service.analysis.moments import EpochMoments, Moments
from experiment_service.analysis.proportion import combine_limits, wilson_limits
from experiment_service.analysis.scores import weigh
from experiment_service.analysis.sequential import half_width

VARIANTS = ("a", "b", "c")
WEIGHTS = np.array(
    [[1 / 3, 1 / 3, 1 / 3], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]]
)


def draw_units(kind, rng, n=400):
    """Variant, y and x of each unit, for each epoch."""
    for epoch, weights in enumerate(WEIGHTS):
        variant = rng.choice(3, size=n, p=weights)
        x = rng.poisson(2, n) + 1.0 if kind == "ratio" else np.ones(n)
        rate = np.array([0.2, 0.3, 0.25])[variant] + 0.05 * epoch
        if kind == "proportion":
            y = (rng.random(n) < rate).astype(float)
        else:
            y = rng.gamma(2, rate) * x + rng.random(n)
        yield variant, y, x


def to_epochs(units):
    return [
        EpochMoments(
            weights=dict(zip(VARIANTS, map(float, weights), strict=True)),
            moments={
                name: Moments.from_arrays(y[variant == k], x[variant == k])
                for k, name in enumerate(VARIANTS)
            },
        )
        for weights, (variant, y, x) in zip(WEIGHTS, units, strict=True)
    ]


def score_units(units, treatment, control):
    """Estimate and variance from a loop over units, as Hadad et al. write them."""
    h, scores = [], {treatment: [], control: []}
    for epoch, (variant, y, x) in enumerate(units):
        weights = WEIGHTS[epoch]
        weight = 1 / math.sqrt(1 / weights[treatment] + 1 / weights[control])
        h.append(np.full(len(y), weight))
        for k in (treatment, control):
            past = units[:epoch] or units[:1]
            n = sum((v == k).sum() for v, _, _ in past)
            m_y = sum(y_[v == k].sum() for v, y_, _ in past) / n
            m_x = sum(x_[v == k].sum() for v, _, x_ in past) / n
            own = (variant == k) / weights[k]
            scores[k].append((m_y + own * (y - m_y), m_x + own * (x - m_x)))
    h = np.concatenate(h)
    influence, values = {}, {}
    for k, parts in scores.items():
        gamma_y = np.concatenate([part[0] for part in parts])
        gamma_x = np.concatenate([part[1] for part in parts])
        mean_x = (h * gamma_x).sum() / h.sum()
        values[k] = (h * gamma_y).sum() / (h * gamma_x).sum()
        influence[k] = (gamma_y - values[k] * gamma_x) / mean_x
    gap = influence[treatment] - influence[control]
    variance = (h**2 * gap**2).sum() / h.sum() ** 2
    return values[treatment], values[control], variance


@pytest.mark.parametrize("kind", ["proportion", "mean", "ratio"])
def test_moments_give_the_scores_of_units(kind):
    units = list(draw_units(kind, np.random.default_rng(1)))
    epochs = to_epochs(units)
    value1, value0, variance = score_units(units, 1, 0)
    pair = weigh(
        epochs,
        kind=kind,
        treatment="b",
        control="a",
        minimum_effective_sample_size=1,
    )
    assert pair.treatment.value == pytest.approx(value1)
    assert pair.control.value == pytest.approx(value0)
    assert pair.realised_variance() == pytest.approx(variance)
    result = contrast(epochs, kind=kind, treatment="b", control="a")
    assert result.estimate == pytest.approx(value1 - value0)


def test_variance_of_a_scaled_contrast():
    units = list(draw_units("mean", np.random.default_rng(2)))
    options = {"kind": "mean", "minimum_effective_sample_size": 1}
    doubled = [(v, y * np.where(v == 1, 2, 1), x) for v, y, x in units]
    pair = weigh(to_epochs(units), treatment="b", control="a", **options)
    scaled = weigh(to_epochs(doubled), treatment="b", control="a", **options)
    assert pair.realised_variance(2, 1) == pytest.approx(scaled.realised_variance())


def test_one_epoch_is_a_difference_of_means():
    variant, y, x = next(draw_units("mean", np.random.default_rng(3)))
    epoch = to_epochs([(variant, y, x)] * 4)[:1]
    result = contrast(epoch, kind="mean", treatment="b", control="a")
    y1, y0 = y[variant == 1], y[variant == 0]
    assert result.estimate == pytest.approx(y1.mean() - y0.mean())
    # Exact propensities in the place of the shares that came out.
    realised = 9 * (y1.var() * len(y1) + y0.var() * len(y0)) / len(y) ** 2
    pooled = (y1.var() * len(y1) + y0.var() * len(y0)) / (len(y1) + len(y0) - 2)
    floor = pooled * 6 / len(y)
    half = 1.959963985 * math.sqrt(max(realised, floor))
    assert result.high - result.estimate == pytest.approx(half)


def test_effective_sample_size_and_propensity():
    epochs = to_epochs(list(draw_units("mean", np.random.default_rng(4))))
    result = contrast(epochs, kind="mean", treatment="c", control="a")
    h = (1 / WEIGHTS[:, 0] + 1 / WEIGHTS[:, 2]) ** -0.5
    sizes = []
    for k, name in ((0, "a"), (2, "c")):
        n = np.array([epoch.moments[name].n for epoch in epochs])
        weight = np.repeat(h / WEIGHTS[:, k], n.astype(int))
        sizes.append(weight.sum() ** 2 / (weight**2).sum())
    assert result.overlap.effective_sample_size == pytest.approx(min(sizes))
    assert result.overlap.smallest_propensity == 0.1


def test_proportions_have_wilson_limits_at_the_effective_size():
    epochs = to_epochs(list(draw_units("proportion", np.random.default_rng(5))))
    pair = weigh(
        epochs,
        kind="proportion",
        treatment="b",
        control="a",
        minimum_effective_sample_size=1,
    )
    h = (1 / WEIGHTS[:, 0] + 1 / WEIGHTS[:, 1]) ** -0.5
    sizes = [h.sum() ** 2 * 400 / (h**2 / WEIGHTS[:, k]).sum() for k in (1, 0)]
    rates = (pair.treatment.value, pair.control.value)
    model = sum(p * (1 - p) / n for p, n in zip(rates, sizes, strict=True))
    inflation = max(1, pair.realised_variance() / model)
    terms = [
        (p, *wilson_limits(p, n / inflation, level=0.95))
        for p, n in zip(rates, sizes, strict=True)
    ]
    result = contrast(epochs, kind="proportion", treatment="b", control="a")
    assert (result.low, result.high) == pytest.approx(combine_limits(*terms))


def test_lifts_of_proportions_combine_the_logs_of_the_same_limits():
    n = 10_000
    epoch = EpochMoments(
        weights={"a": 0.5, "b": 0.5},
        moments={
            "a": Moments.from_counts(500, n),
            "b": Moments.from_counts(560, n),
        },
    )
    result = contrast_lift([epoch], kind="proportion", treatment="b", control="a")
    terms = [
        tuple(map(math.log, (p, *wilson_limits(p, n, level=0.95))))
        for p in (0.056, 0.05)
    ]
    low, high = combine_limits(*terms)
    assert math.log1p(result.low) == pytest.approx(low, rel=1e-6)
    assert math.log1p(result.high) == pytest.approx(high, rel=1e-6)


def test_with_even_weights_proportions_have_nearly_the_interval_of_newcombe():
    n = 10_000
    epoch = EpochMoments(
        weights={"a": 0.5, "b": 0.5},
        moments={
            "a": Moments.from_counts(500, n),
            "b": Moments.from_counts(560, n),
        },
    )
    result = contrast([epoch], kind="proportion", treatment="b", control="a")
    terms = [(p, *wilson_limits(p, n, level=0.95)) for p in (0.056, 0.05)]
    assert (result.low, result.high) == pytest.approx(combine_limits(*terms), rel=1e-6)


def test_sequence_and_lift_share_the_estimate():
    epochs = to_epochs(list(draw_units("mean", np.random.default_rng(6))))
    options = {"kind": "mean", "treatment": "b", "control": "a"}
    fixed = contrast(epochs, **options)
    watched = contrast_sequence(epochs, planned_units=1600, **options)
    assert watched.estimate == fixed.estimate
    assert watched.overlap == fixed.overlap
    error = (fixed.high - fixed.estimate) / stats.norm.ppf(0.975)
    assert watched.high - watched.estimate == pytest.approx(
        half_width(error, 1600, planned_units=1600, level=0.95)
    )
    pair = weigh(epochs, minimum_effective_sample_size=1, **options)
    value1, value0 = pair.treatment.value, pair.control.value
    lift = contrast_lift(epochs, **options)
    assert lift.estimate == pytest.approx(value1 / value0 - 1)
    log_half = 1.959963985 * math.sqrt(pair.variance(1 / value1, 1 / value0))
    assert math.log1p(lift.high) - math.log1p(lift.estimate) == pytest.approx(log_half)
    assert lift.overlap == fixed.overlap


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_contrasts_are_equivariant_under_scale(kind):
    units = list(draw_units(kind, np.random.default_rng(8)))
    scaled_units = [(v, 250 * y, x) for v, y, x in units]
    plain = contrast(to_epochs(units), kind=kind, treatment="b", control="a")
    scaled = contrast(to_epochs(scaled_units), kind=kind, treatment="b", control="a")
    assert (scaled.estimate, scaled.low, scaled.high) == pytest.approx(
        (250 * plain.estimate, 250 * plain.low, 250 * plain.high)
    )


def test_means_are_equivariant_under_shift():
    units = list(draw_units("mean", np.random.default_rng(9)))
    shifted = [(v, y + 1000, x) for v, y, x in units]
    plain = contrast(to_epochs(units), kind="mean", treatment="b", control="a")
    moved = contrast(to_epochs(shifted), kind="mean", treatment="b", control="a")
    assert (moved.estimate, moved.low, moved.high) == pytest.approx(
        (plain.estimate, plain.low, plain.high), rel=1e-6
    )


def test_a_mean_does_not_look_at_x():
    units = list(draw_units("ratio", np.random.default_rng(10)))
    ones = [(v, y, np.ones_like(x)) for v, y, x in units]
    assert contrast(
        to_epochs(units), kind="mean", treatment="b", control="a"
    ) == contrast(to_epochs(ones), kind="mean", treatment="b", control="a")


def test_epochs_without_both_variants_or_units_add_nothing():
    epochs = to_epochs(list(draw_units("mean", np.random.default_rng(11))))
    alone = EpochMoments(
        weights={"a": 1.0, "b": 0.0}, moments={"a": Moments.from_arrays([5.0] * 50)}
    )
    empty = EpochMoments(weights={"a": 0.01, "b": 0.99}, moments={})
    options = {"kind": "mean", "treatment": "b", "control": "a"}
    assert contrast([alone, empty, *epochs, empty], **options) == contrast(
        epochs, **options
    )


def test_a_variant_without_units_in_its_first_epoch_borrows_the_mean_of_all():
    first = EpochMoments(
        weights={"a": 0.99, "b": 0.01},
        moments={"a": Moments.from_arrays([1.0, 3.0] * 50)},
    )
    second = EpochMoments(
        weights={"a": 0.5, "b": 0.5},
        moments={
            "a": Moments.from_arrays([1.0, 3.0] * 100),
            "b": Moments.from_arrays([2.0, 4.0] * 100),
        },
    )
    pair = weigh(
        [first, second],
        kind="mean",
        treatment="b",
        control="a",
        minimum_effective_sample_size=1,
    )
    h = np.array([(1 / 0.99 + 1 / 0.01) ** -0.5, 0.5])
    scores = np.array([100 * 2, 400 * 2 + 200 * (3 - 2) / 0.5])
    expected = (h * scores).sum() / (h * [100, 400]).sum()
    assert pair.treatment.value == pytest.approx(expected)


def one_epoch(a, b, weights=None):
    return [
        EpochMoments(weights=weights or {"a": 0.5, "b": 0.5}, moments={"a": a, "b": b})
    ]


GOOD = Moments.from_arrays([1.0, 3.0] * 100)


@pytest.mark.parametrize(
    ("epochs", "kind", "words"),
    [
        ([], "mean", "no units"),
        (one_epoch(GOOD, Moments.zero()), "mean", "no units"),
        (one_epoch(GOOD, GOOD, {"a": 0.0, "b": 1.0}), "mean", "weight 0"),
        (one_epoch(GOOD, Moments.from_arrays([1.0, 2.0])), "mean", "effective"),
        (
            one_epoch(
                Moments.from_arrays([0.1] * 200), Moments.from_arrays([0.7] * 200)
            ),
            "mean",
            "same value",
        ),
        (
            one_epoch(Moments.from_arrays([1.0] * 200, [0.0] * 200), GOOD),
            "ratio",
            "denominator",
        ),
        (
            one_epoch(Moments.from_counts(0, 200), Moments.from_counts(0, 200)),
            "proportion",
            "same value",
        ),
    ],
)
def test_without_information_the_estimate_is_withheld(epochs, kind, words):
    options = {"kind": kind, "treatment": "b", "control": "a"}
    for result in (
        contrast(epochs, **options),
        contrast_sequence(epochs, planned_units=1000, **options),
        contrast_lift(epochs, **options),
    ):
        assert isinstance(result, Withheld)
        assert words in result.reason


def test_a_thin_estimate_is_withheld_with_its_overlap():
    epochs = one_epoch(GOOD, Moments.from_arrays([1.0, 2.0] * 49))
    options = {"kind": "mean", "treatment": "b", "control": "a"}
    result = contrast(epochs, **options)
    assert isinstance(result, Withheld)
    assert result.overlap.effective_sample_size == pytest.approx(98)
    assert "98" in result.reason
    allowed = contrast(epochs, minimum_effective_sample_size=90, **options)
    assert isinstance(allowed, Interval)


def test_a_weighted_rate_outside_its_range_is_withheld():
    # Two good epochs, then many units of b without success at a small weight: the
    # correction by 1 / weight overshoots 0.
    good = EpochMoments(
        weights={"a": 0.5, "b": 0.5},
        moments={"a": Moments.from_counts(40, 100), "b": Moments.from_counts(40, 100)},
    )
    bad = EpochMoments(
        weights={"a": 0.9, "b": 0.1},
        moments={"a": Moments.from_counts(40, 100), "b": Moments.from_counts(0, 900)},
    )
    result = contrast([good, bad], kind="proportion", treatment="b", control="a")
    assert isinstance(result, Withheld)
    assert "outside 0 and 1" in result.reason
    lift = contrast_lift([good, bad], kind="proportion", treatment="b", control="a")
    assert isinstance(lift, Withheld)
    assert "positive" in lift.reason
    mirrored = [
        EpochMoments(
            weights=epoch.weights,
            moments={
                key: Moments.from_counts(m.n - m.sum_y, m.n)
                for key, m in epoch.moments.items()
            },
        )
        for epoch in (good, bad)
    ]
    above = contrast_lift(mirrored, kind="proportion", treatment="b", control="a")
    assert isinstance(above, Withheld)
    assert "outside 0 and 1" in above.reason


def test_bad_arguments_raise():
    epochs = one_epoch(GOOD, GOOD)
    with pytest.raises(ValueError, match="none of the epochs"):
        contrast(epochs, kind="mean", treatment="z", control="a")
    with pytest.raises(ValueError, match="both 'a'"):
        contrast(epochs, kind="mean", treatment="a", control="a")
    with pytest.raises(ValueError, match="y = 0 or 1"):
        contrast(epochs, kind="proportion", treatment="a", control="b")
    for function in (contrast, contrast_lift):
        with pytest.raises(ValueError, match="level"):
            function(epochs, kind="mean", treatment="b", control="a", level=2)
    with pytest.raises(ValueError, match="level"):
        contrast_sequence(
            epochs, kind="mean", treatment="b", control="a", level=2, planned_units=10
        )
