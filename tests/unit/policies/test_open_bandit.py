"""The Open Bandit sample: facts every reader must get, and values published for it.

The files are in the wheel of obp 0.4.1 on the package index; a machine that can't reach
it skips these tests, CI fails.
"""

import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from experiment_service.errors import InvalidRequest, NotFound
from experiment_service.replay.open_bandit import (
    read_open_bandit,
    read_production_prior,
)
from policies.off_policy import doubly_robust, ips, snips
from policies.probability_best import rank_probabilities
from policies.reward_model import fit_reward_model
from policies.scores import value
from policies.target import Target

WHEEL = "obp-0.4.1-py3-none-any.whl"
SHA256 = {
    ("random", "all"): "7168295b6e0a9eab",
    ("bts", "all"): "0ad874e4dbf6902f",
    ("random", "men"): "ede6d08c6877f99c",
    ("bts", "men"): "db6d1f7ed2d591ba",
    ("random", "women"): "e65f3bd3beb17664",
    ("bts", "women"): "e5d1b49a39b60858",
}


def download(directory: Path) -> str:
    """Fetch the wheel without what it depends on; return what went wrong, or nothing."""
    problems = []
    pips = (Path(".tools/uv/bin/pip"), *map(Path, ("pip3", "pip")))
    for pip in pips:
        program = shutil.which(pip)
        if program is None:
            continue
        # Not this environment: a download must neither read nor change its packages.
        environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
        run = subprocess.run(
            [
                program,
                "download",
                "--no-deps",
                "--quiet",
                "-d",
                directory,
                "obp==0.4.1",
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
        )
        if (directory / WHEEL).is_file():
            return ""
        problems.append(
            run.stderr.strip().splitlines()[-1:] or [f"exit {run.returncode}"]
        )
    return f"{pips[0]}, pip3 and pip gave no {WHEEL}: {problems}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.getbasetemp() / "open_bandit"
    directory.mkdir(exist_ok=True)
    if not (directory / WHEEL).is_file():
        problem = download(directory)
        if problem and os.environ.get("CI"):
            pytest.fail(problem)
        if problem:
            pytest.skip(problem)
    return directory / WHEEL


@pytest.fixture(scope="session")
def sample(wheel):
    return {
        (log, campaign): read_open_bandit(wheel, log=log, campaign=campaign)
        for log, campaign in SHA256
    }


def test_the_files_are_those_of_the_figures(wheel):
    with zipfile.ZipFile(wheel) as archive:
        for (log, campaign), digest in SHA256.items():
            text = archive.read(f"obp/dataset/obd/{log}/{campaign}/{campaign}.csv")
            assert hashlib.sha256(text).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("log", "clicks", "rows", "propensities"),
    [
        ("random", [13, 14, 11], [3322, 3412, 3266], (0.0125, 0.0125)),
        ("bts", [11, 15, 16], [3362, 3317, 3321], (4.5e-5, 0.95424)),
    ],
)
def test_facts_of_the_largest_campaign(sample, log, clicks, rows, propensities):
    rounds = sample[log, "all"]
    assert (rounds.rounds, len(rounds.arms)) == (10_000, 80)
    assert np.bincount(rounds.position)[1:].tolist() == rows
    assert np.bincount(rounds.position, rounds.reward)[1:].tolist() == clicks
    assert (rounds.propensity.min(), rounds.propensity.max()) == propensities
    # One week, 2019-11-24 to 30, UTC.
    assert 1574553600 <= rounds.time[0] < rounds.time[-1] < 1574553600 + 7 * 86400


def test_all_campaigns_and_their_priors_have_their_items(sample, wheel):
    for (_, campaign), rounds in sample.items():
        items = {"all": 80, "men": 34, "women": 46}[campaign]
        assert (rounds.rounds, len(rounds.arms)) == (10_000, items)
        alpha, beta = read_production_prior(wheel, campaign=campaign)
        assert alpha.shape == beta.shape == (items,)


def test_an_unzipped_wheel_gives_the_same(sample, wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    rounds = read_open_bandit(tmp_path, log="bts", campaign="men")
    ours = sample["bts", "men"]
    assert rounds.arms == ours.arms
    for name in ("arm", "propensity", "reward", "time", "position"):
        assert np.array_equal(getattr(rounds, name), getattr(ours, name))


def test_value_of_uniform_from_the_bandits_log(sample):
    rounds = sample["bts", "all"]
    target = Target.constant(np.full(80, 1 / 80))
    # obp 0.4.1 itself; the first also in its published notebook.
    assert ips(rounds, target).estimate == pytest.approx(0.0023596, abs=5e-8)
    assert snips(rounds, target).estimate == pytest.approx(0.0023337139, abs=5e-11)
    overlap = ips(rounds, target).overlap
    assert overlap.mean_weight == pytest.approx(1.0111, abs=5e-5)
    assert overlap.effective_sample_size == pytest.approx(340.4, abs=0.05)
    assert overlap.largest_weight == pytest.approx(277.8, abs=0.05)
    assert overlap.smallest_propensity == 4.5e-5
    assert overlap.verdict == "warning"


def test_value_of_the_production_prior_from_the_random_log(sample, wheel):
    rounds = sample["random", "all"]
    alpha, beta = read_production_prior(wheel, campaign="all")
    table = rank_probabilities(alpha, beta, ranks=3)
    assert (table[0].argmax(), table[0].max()) == (
        61,
        pytest.approx(0.198288, abs=5e-7),
    )
    target = Target.from_positions(table, rounds)
    weighted, normalised = (
        value(estimator(rounds, target)) for estimator in (ips, snips)
    )
    assert weighted.estimate == pytest.approx(0.0045627, abs=5e-8)
    assert weighted.standard_error == pytest.approx(0.00209, abs=5e-6)
    assert normalised.estimate == pytest.approx(0.0047860, abs=5e-8)
    assert normalised.standard_error == pytest.approx(0.00219, abs=5e-6)
    overlap = weighted.overlap
    assert overlap.mean_weight == pytest.approx(0.95335, abs=5e-6)
    assert overlap.effective_sample_size == pytest.approx(1643.2, abs=0.05)
    assert overlap.largest_weight == pytest.approx(19.606, abs=5e-4)
    assert overlap.verdict == "fine"


def test_first_ranks_by_another_integration(wheel):
    alpha, beta = read_production_prior(wheel, campaign="all")
    ours = rank_probabilities(alpha, beta, ranks=1)[0]
    grid = np.linspace(0, 0.2, 40_001)
    log_below = np.log(np.maximum(stats.beta.cdf(grid[:, None], alpha, beta), 1e-300))
    others = np.exp(log_below.sum(axis=1)[:, None] - log_below[:, [61, 18, 7]])
    density = stats.beta.pdf(grid[:, None], alpha[[61, 18, 7]], beta[[61, 18, 7]])
    plain = integrate.simpson(density * others, x=grid, axis=0)
    assert plain == pytest.approx(ours[[61, 18, 7]], abs=1e-9)


def test_doubly_robust_is_near_what_obp_gives(sample, wheel):
    """Obp's reward model is a logistic regression, so only the size can agree."""
    rounds = sample["random", "all"]
    alpha, beta = read_production_prior(wheel, campaign="all")
    target = Target.from_positions(rank_probabilities(alpha, beta, ranks=3), rounds)
    scores = doubly_robust(rounds, target, model=fit_reward_model(rounds))
    assert abs(scores.estimate - 0.0046456) < scores.standard_error / 4


def test_sources_that_are_not_the_wheel_are_refused(tmp_path):
    with pytest.raises(NotFound, match="there is no file or directory"):
        read_open_bandit(tmp_path / "none.whl", log="bts", campaign="all")
    with pytest.raises(NotFound, match="there is no 'obp/dataset/obd/bts/all/item_co"):
        read_open_bandit(tmp_path, log="bts", campaign="all")
    (tmp_path / "text.whl").write_text("no zip")
    with pytest.raises(InvalidRequest, match=r"'text.whl' is no wheel"):
        read_open_bandit(tmp_path / "text.whl", log="bts", campaign="all")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/file", "")
    with pytest.raises(NotFound, match=r"there is no 'obp/.*' in 'other.whl'"):
        read_open_bandit(tmp_path / "other.whl", log="bts", campaign="all")
