"""Collects what the slow tests measured and prints it as the rows of calibration.md."""

import pytest

ROWS = pytest.StashKey[list]()


@pytest.fixture
def report(request):
    """Note what was measured: report(method, setting, value, trials=None, error=None).

    A value is exact, a share of independent trials, or comes with its standard error.
    """
    rows = request.config.stash.setdefault(ROWS, [])

    def note(method, setting, share, trials=None, error=None):
        if trials is not None:
            error = (share * (1 - share) / trials) ** 0.5
        by = "exact" if error is None else f"{error:.4f}"
        rows.append(f"| {method} | {setting} | {share:.4f} | {by} |")

    return note


@pytest.fixture
def tolerance():
    """Four standard errors of a share that was estimated from independent trials."""
    return lambda share, trials: 4 * (share * (1 - share) / trials) ** 0.5


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("calibration")
        terminalreporter.write_line("| method | setting | measured | standard error |")
        terminalreporter.write_line("|---|---|---|---|")
        for row in rows:
            terminalreporter.write_line(row)
