"""Advice on when a bandit has learnt enough, by one rule that is written down here.

Stop when the variants that may still beat the leader would, with 95 % probability, add
less than 1 % to its value. Advice only: it stops nothing, and a posterior says nothing of
how often it is wrong.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from experiment_service.reporting.values import Advice, Posterior
from policies.stopping import (
    expected_loss,
    expected_loss_normal,
    value_remaining,
    value_remaining_normal,
)

#: Gain over the leader, as a share of its value, that is not worth waiting for.
THRESHOLD = 0.01
QUANTILE = 0.95

RULE = (
    f"The rule: stop when, with {QUANTILE:.0%} probability, no variant beats the leader "
    f"by {THRESHOLD:.0%} of its value or more."
)

State = Literal["draft", "running", "stopped"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    leader: str
    remaining: float
    loss: float


def advise(
    posteriors: Sequence[Posterior],
    *,
    state: str,
    healthy: bool,
    forgets: bool,
    lower_is_better: bool,
) -> Advice:
    """Say whether a bandit may stop, from the posteriors of its variants.

    Parameters
    ----------
    state : {"draft", "running", "stopped"}
        Of the experiment.
    healthy : bool
        Whether no health check failed.
    forgets : bool
        Whether the policy discounts old rewards, as it expects values to change.
    """
    if state == "draft":
        return _none("Not started, so there is nothing to stop.")
    if not healthy:
        return _none("No advice while a health check fails: its rewards may be wrong.")
    if min(each.units for each in posteriors) < 1:
        return _none("No advice yet: a variant has no units that count.")
    left = _left(posteriors, lower_is_better=lower_is_better)
    if left is None:
        return _none("No advice yet: rewards are alike, or the leader's value is 0.")
    enough = left.remaining < THRESHOLD
    if state == "stopped":
        lead = "It has stopped"
    elif forgets:
        lead = "No end is advised, as the policy expects values to change"
    else:
        lead = "It may stop" if enough else "Keep it running"
    what = (
        f"with {QUANTILE:.0%} probability no variant beats {left.leader} by more than "
        f"{_percent(left.remaining)} of its value"
        if enough
        else f"another variant may still beat {left.leader} by {_percent(left.remaining)} "
        f"of its value ({QUANTILE:.0%} quantile)"
    )
    return Advice(
        action="stop" if enough and state == "running" and not forgets else "go on",
        leader=left.leader,
        value_remaining=left.remaining,
        expected_loss=left.loss,
        sentence=f"{lead}: {what}.",
        rule=RULE,
    )


def _none(sentence: str) -> Advice:
    return Advice(
        action="none",
        leader=None,
        value_remaining=None,
        expected_loss=None,
        sentence=sentence,
        rule=RULE,
    )


def _left(posteriors: Sequence[Posterior], *, lower_is_better: bool) -> _Left | None:
    """Return what is left to gain; None without spread or with a leader at 0."""
    leader = int(np.argmax([each.probability_best for each in posteriors]))
    alphas = [each.alpha for each in posteriors if each.alpha is not None]
    if alphas:
        betas = [each.beta for each in posteriors if each.beta is not None]
        remaining = value_remaining(
            alphas, betas, lower_is_better=lower_is_better, quantile=QUANTILE
        )
        loss = expected_loss(alphas, betas, lower_is_better=lower_is_better)
    else:
        means = [each.mean for each in posteriors]
        deviations = [each.deviation for each in posteriors if each.deviation]
        if len(deviations) < len(means) or means[leader] == 0:
            return None
        remaining = value_remaining_normal(
            means, deviations, lower_is_better=lower_is_better, quantile=QUANTILE
        ) / abs(means[leader])
        loss = expected_loss_normal(means, deviations, lower_is_better=lower_is_better)
    return _Left(
        leader=posteriors[leader].variant,
        remaining=float(remaining),
        loss=float(loss[leader]),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.001 else "0.1%"
