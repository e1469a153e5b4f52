"""P(best): time, and error against mpmath at 30 digits.

python tests/benchmarks/bench_probability.py
"""

import statistics
import time

import mpmath
import numpy as np

from policies.probability_best import probability_best, rank_probabilities

REPEATS = 200


def cases():
    rng = np.random.default_rng(0)
    for arms in (2, 5, 10, 20, 100):
        units = rng.integers(2_000, 100_000, arms)
        seen = rng.binomial(units, 0.05 + 0.005 * rng.random(arms))
        yield f"K = {arms}", 1.0 + seen, 1.0 + units - seen
    yield (
        "fresh arm, two with 1e6 units",
        *np.array([[1, 50_001, 50_201], [1, 950_001, 949_801]], dtype=float),
    )
    yield (
        "Jeffreys prior, nearly no data",
        *np.array([[0.5, 0.5, 1.5, 0.5], [0.5, 1.5, 0.5, 2.5]]),
    )


def exact(alpha, beta):
    """P(best) of all arms by mpmath: F by cubature from cell to cell over logits.

    The sum over cells of f times the other F is the trapezoid rule, exact to all digits
    for an analytic integrand. For arms of like size only: its cells are all as narrow
    as the narrowest arm asks for.
    """
    arms = range(alpha.size)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    with mpmath.workdps(30):
        a, b = ([mpmath.mpf(x) for x in each.tolist()] for each in (alpha, beta))
        constant = [
            mpmath.loggamma(x) + mpmath.loggamma(y) - mpmath.loggamma(x + y)
            for x, y in zip(a, b, strict=True)
        ]

        def densities(z):
            below, above = mpmath.log1p(mpmath.exp(-z)), mpmath.log1p(mpmath.exp(z))
            return [
                mpmath.exp(-a[j] * below - b[j] * above - constant[j]) for j in arms
            ]

        centre, deviation = np.log(alpha / beta), np.sqrt(1 / alpha + 1 / beta)
        step = mpmath.mpf(deviation.min() / 3)
        z = mpmath.mpf((centre - 10 * deviation).min())
        high = (centre + 10 * deviation).max()
        cumulative = [mpmath.mpf(0)] * alpha.size
        best = [mpmath.mpf(0)] * alpha.size
        while z < high:
            for node, weight in zip(nodes, weights, strict=True):
                for j, f in enumerate(densities(z + step * (1 + float(node)) / 2)):
                    cumulative[j] += step / 2 * float(weight) * f
            z += step
            product = mpmath.fprod(cumulative)
            for j, f in enumerate(densities(z)):
                if product:
                    best[j] += step * f * product / cumulative[j]
        return np.array([float(each) for each in best])


def median_milliseconds(run):
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return 1000 * statistics.median(taken)


def main():
    print("| posteriors | P(best), ms | ranks 1 to 3, ms | sum - 1 | largest error |")
    print("|---|---|---|---|---|")
    for title, alpha, beta in cases():
        best = probability_best(alpha, beta)
        ranks = min(3, alpha.size)
        times = [
            median_milliseconds(lambda a=alpha, b=beta: probability_best(a, b)),
            median_milliseconds(
                lambda a=alpha, b=beta, r=ranks: rank_probabilities(a, b, ranks=r)
            ),
        ]
        error = "in the tests"
        if title.startswith("K = "):
            error = f"{np.abs(best - exact(alpha, beta)).max():.0e}"
        print(
            f"| {title} | {times[0]:.2f} | {times[1]:.2f} | {best.sum() - 1:.0e} | "
            f"{error} |"
        )


if __name__ == "__main__":
    main()
