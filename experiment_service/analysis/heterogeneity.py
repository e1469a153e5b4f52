"""Whether the effect of a variant differs between segments, such as new and old units.

Single segments that stand out are what chance gives when many are looked at; the test of
all of them together comes first. Knows no table and no attribute.
"""

import dataclasses
import math
from collections.abc import Mapping

from scipy import stats

from experiment_service.analysis.contrasts import Contrast
from experiment_service.analysis.interval import Withheld


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """Outcome of the test that all segments share one effect.

    Attributes
    ----------
    statistic : float
        Cochran's Q, >= 0.
    degrees : int
        Segments compared, less 1.
    p_value : float
        Chance of a Q as large when the effect is the same everywhere, for one look at a
        planned end. Over many attributes and metrics, correct it by
        `significance.corrected`.
    inconsistency : float
        I^2, the share of the spread between segments that is not chance, in [0, 1):
        max(0, (Q - degrees) / Q).
    effect : float
        Mean of the effects, weighted by 1 / variance; of little use when they differ.
    segments, left_out : tuple of str
        Those compared, and those with too few data to be.
    """

    statistic: float
    degrees: int
    p_value: float
    inconsistency: float
    effect: float
    segments: tuple[str, ...]
    left_out: tuple[str, ...]


def heterogeneity(
    contrasts: Mapping[str, Contrast | Withheld],
) -> Heterogeneity | Withheld:
    """Test that a variant differs from the control by the same in all segments.

    With d the difference in a segment, w = 1 / var(d) and m the mean of d weighted by w,
    Q = sum of w (d - m)^2. It has a chi-squared distribution with one degree less than
    there are segments when all differences are the same.

    Parameters
    ----------
    contrasts : mapping of str to Contrast or Withheld
        By segment: the levels of one attribute, each unit in one of them.

    Returns
    -------
    Heterogeneity or Withheld
        Withheld unless two segments have a contrast.

    References
    ----------
    Cochran (1954), The combination of estimates from different experiments, Biometrics
    10(1). Higgins and Thompson (2002), Quantifying heterogeneity in a meta-analysis,
    Statistics in Medicine 21(11), for I^2.
    """
    known = {
        name: each for name, each in contrasts.items() if isinstance(each, Contrast)
    }
    if len(known) < 2:
        return Withheld(
            reason="Fewer than two segments have enough data to compare their effects."
        )
    # Relative to the largest, so that tiny variances do not overflow.
    smallest = min(each.variance for each in known.values())
    weights = {name: smallest / each.variance for name, each in known.items()}
    effect = math.fsum(weights[name] * each.estimate for name, each in known.items())
    effect /= math.fsum(weights.values())
    statistic = math.fsum(
        (each.estimate - effect) ** 2 / each.variance for each in known.values()
    )
    degrees = len(known) - 1
    return Heterogeneity(
        statistic=statistic,
        degrees=degrees,
        p_value=float(stats.chi2.sf(statistic, degrees)),
        inconsistency=max(0.0, 1 - degrees / statistic) if statistic > 0 else 0.0,
        effect=effect,
        segments=tuple(known),
        left_out=tuple(name for name in contrasts if name not in known),
    )
