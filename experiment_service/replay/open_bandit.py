"""The Open Bandit files, from the wheel of obp 0.4.1 or a directory it was unzipped to.

A small public log of a real fashion shop, two policies over the same week (Saito, Aihara,
Matsutani and Narita 2021). obp is never imported; its files are read.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import yaml
from numpy.typing import NDArray

from experiment_service.errors import InvalidRequest, NotFound
from experiment_service.replay.files import ColumnMapping, csv_batches, gather
from policies.logged import LoggedRounds

Log = Literal["random", "bts"]
Campaign = Literal["all", "men", "women"]

_DATA = "obp/dataset/obd"
_PRIOR = "obp/policy/conf/prior_bts.yaml"
_COLUMNS = ColumnMapping(
    arm="item_id",
    propensity="propensity_score",
    reward="click",
    time="timestamp",
    position="position",
)


def read_open_bandit(source: Path, *, log: Log, campaign: Campaign) -> LoggedRounds:
    """Read one log of one campaign: 10,000 rows, one item at one position each.

    Parameters
    ----------
    source : Path
        The wheel obp-0.4.1-py3-none-any.whl, or a directory that holds `obp/`.
    log : "random" or "bts"
        Policy that wrote it: equal chances, or Bernoulli Thompson sampling.
    campaign : "all", "men" or "women"
        With 80, 34 or 46 items.

    Returns
    -------
    LoggedRounds
        Arms named "0", "1", ... as the item ids; reward is the click. No units: the
        files do not say which rows were one shopper or one page.

    Raises
    ------
    NotFound
        If the source or a file in it is missing.
    InvalidRequest
        If the source is no wheel, or a row breaks a rule.
    """
    folder = f"{_DATA}/{log}/{campaign}"
    try:
        with _opened(source, f"{folder}/item_context.csv") as file:
            items = pa_csv.read_csv(file)["item_id"].to_pylist()
        with _opened(source, f"{folder}/{campaign}.csv") as file:
            return gather(
                csv_batches(file, _COLUMNS), _COLUMNS, arms=[str(i) for i in items]
            )
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise InvalidRequest(f"{folder}/{campaign}.csv: {error}") from error


def read_production_prior(
    source: Path, *, campaign: Campaign
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the Beta prior of the shop's Thompson sampling: alpha, beta, shape (K,).

    Raises
    ------
    NotFound, InvalidRequest
        As `read_open_bandit`.
    """
    with _opened(source, _PRIOR) as file:
        prior = yaml.safe_load(file)[campaign]
    return np.array(prior["alpha"], float), np.array(prior["beta"], float)


@contextmanager
def _opened(source: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file of the wheel or the directory for reading."""
    if source.is_dir():
        if not (source / name).is_file():
            raise NotFound(f"there is no {name!r} in {str(source)!r}")
        with (source / name).open("rb") as file:
            yield file
        return
    if not source.is_file():
        raise NotFound(f"there is no file or directory {str(source)!r}")
    if not zipfile.is_zipfile(source):
        raise InvalidRequest(
            f"{source.name!r} is no wheel; it must be obp-0.4.1-py3-none-any.whl or "
            "the directory that it was unzipped to"
        )
    with zipfile.ZipFile(source) as wheel:
        if name not in wheel.namelist():
            raise NotFound(f"there is no {name!r} in {source.name!r}")
        with wheel.open(name) as member:
            yield member
