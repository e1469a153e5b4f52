import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import allocate_with_floor


@st.composite
def policy_weights(draw):
    parts = np.array(draw(st.lists(st.floats(0, 1), min_size=1, max_size=30)))
    total = parts.sum()
    return parts / total if total > 1e-6 else np.full(parts.size, 1 / parts.size)


@settings(deadline=None)
@given(weights=policy_weights(), share=st.floats(0, 1))
def test_floor_sum_and_order_hold(weights, share):
    floor = share / weights.size
    final = allocate_with_floor(weights, floor=floor)
    assert final.shape == weights.shape
    assert (final >= floor).all()
    assert (final <= 1).all()
    assert math.fsum(final) == pytest.approx(1, abs=1e-12)
    order = np.argsort(weights)
    assert (np.diff(final[order]) >= 0).all()


@settings(deadline=None)
@given(data=st.data(), weights=policy_weights(), share=st.floats(0, 1))
def test_control_has_its_share_and_the_others_the_rest(data, weights, share):
    control_share = data.draw(st.floats(0, 1, exclude_min=True))
    control = data.draw(st.integers(0, weights.size))
    floor = share * (1 - control_share) / weights.size * (1 - 1e-12)
    final = allocate_with_floor(
        weights, floor=floor, control=control, control_share=control_share
    )
    others = np.delete(final, control)
    assert final.size == weights.size + 1
    assert final[control] == control_share
    assert (others >= floor).all()
    assert (final <= 1).all()
    assert math.fsum(final) == pytest.approx(1, abs=1e-12)
    order = np.argsort(weights)
    assert (np.diff(others[order]) >= 0).all()


def test_is_a_mixture_with_the_floor():
    """5 % to each of 4 arms, and the other 80 % as the policy says."""
    final = allocate_with_floor([0.7, 0.2, 0.1, 0.0], floor=0.05)
    np.testing.assert_allclose(final, [0.61, 0.21, 0.13, 0.05], rtol=0, atol=1e-15)


def test_policy_shares_out_what_control_and_floor_leave():
    """20 % to control, 10 % to each of 2 others, and the other 60 % by 3 to 1."""
    final = allocate_with_floor([0.75, 0.25], floor=0.1, control=1, control_share=0.2)
    np.testing.assert_allclose(final, [0.55, 0.2, 0.25], rtol=0, atol=1e-15)


@pytest.mark.parametrize("arms", [1, 3, 7, 10, 49, 200])
def test_largest_floor_shares_equally(arms):
    weights = np.zeros(arms)
    weights[0] = 1
    final = allocate_with_floor(weights, floor=1 / arms)
    np.testing.assert_allclose(final, 1 / arms, rtol=0, atol=1e-15)


def test_one_arm_beside_control():
    final = allocate_with_floor([1.0], floor=0.05, control=0, control_share=0.3)
    np.testing.assert_allclose(final, [0.3, 0.7], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [0.5, 0.4]}, r"weights sums to 0\.9; it must sum to 1"),
        ({"weights": [1.5, -0.5]}, r"weights of arm 1 is -0\.5; it must be .* >= 0"),
        ({"weights": [np.nan, 1]}, "weights of arm 0 is nan"),
        ({"weights": [np.inf, 1]}, "weights sums to inf"),
        ({"weights": []}, r"weights has shape \(0,\)"),
        ({"weights": [[1.0]]}, r"weights has shape \(1, 1\)"),
        ({"floor": -0.01}, r"floor is -0\.01; it must lie in 0 to 1"),
        ({"floor": np.nan}, "floor is nan"),
        ({"floor": 0.51}, r"floor is 0\.51 for 2 arms; it must be at most 0\.5,"),
        (
            {"floor": 0.45, "control": 0, "control_share": 0.2},
            r"floor is 0\.45 for 2 arms beside a control_share of 0\.2; .* most 0\.4,",
        ),
        ({"control": 0, "control_share": 1.2}, r"control_share is 1\.2; it must lie"),
        ({"control": 3, "control_share": 0.2}, "control is 3; of 3 arms .* 0 to 2"),
        ({"control": -1, "control_share": 0.2}, "control is -1; of 3 arms"),
        ({"control": 0}, "control is 0 and control_share is 0; a control has a share"),
        ({"control_share": 0.2}, r"control is None and control_share is 0\.2"),
    ],
)
def test_refuses_what_cannot_be_allocated(arguments, message):
    arguments = {"weights": [0.5, 0.5], "floor": 0.1, **arguments}
    with pytest.raises(ValueError, match=message):
        allocate_with_floor(**arguments)
