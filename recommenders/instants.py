"""Instants as integers: microseconds since 1970 in UTC, so that arrays can hold them."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Stands for an instant that is not known.
NO_TIME = int(np.iinfo(np.int64).min)

DAY = 86_400_000_000


def microseconds(instants: pd.Series) -> NDArray[np.int64]:
    """Return a column of times with a time zone as integers, gaps as `NO_TIME`."""
    naive = pd.to_datetime(instants, utc=True).dt.tz_convert(None)
    # NaT is the least int64 in NumPy, the very value of NO_TIME.
    whole: NDArray[np.int64] = naive.to_numpy("datetime64[us]").astype(np.int64)
    return whole


def microseconds_of(instant: datetime) -> int:
    """Return an instant with a time zone as an integer."""
    if instant.tzinfo is None:
        raise ValueError(f"instant {instant} has no time zone; give one, such as UTC")
    return (instant - _EPOCH) // timedelta(microseconds=1)


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
