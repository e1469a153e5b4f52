"""Journal: accepted events, safe on disk until the database has them.

A folder per process, in a slot with two file locks: one for the process that appends, one
for the process that moves events on, which may be another. A lock dies with its process;
another one then takes over what waits. Payloads are bytes: the journal does not know what
they mean.

`groups` is the format of the files, `slot` their folder with its locks, `moving` the
reading and forgetting, `journal` what the service sees.
"""

from experiment_service.journal.journal import Journal

__all__ = ["Journal"]
