"""A version as MLflow shows it, and as the document from which it can be taken back.

The document beside the lists has every fact; parameters, metrics and tags are for people
to look at and compare.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.errors import InvalidRequest
from experiment_service.storage.models import ModelVersion

FORMAT = "experiment-service version"
FORMAT_VERSION = 1

#: Names of ours on the tracking server begin so.
PREFIX = "experiment_service."

#: Tag that a version is found again by.
KEY = f"{PREFIX}key"

#: Tag of the status, which others are set with.
STATUS = f"{PREFIX}status"

#: Tag with the digest of the document.
SHA256 = f"{PREFIX}sha256"

#: What a tag or a parameter may hold on every MLflow of the last years.
_MOST_CHARACTERS = 5000

#: What the units of an installation are told apart by, see `units_of`.
_PROBE = "experiment_service units"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDocument:
    """Facts of a version that was mirrored; fields as of `ModelVersion`.

    Attributes
    ----------
    units : str
        Of which installations' units it has lists, see `units_of`.
    """

    name: str
    version: int
    recommender: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, Any]
    checklist: Sequence[Mapping[str, Any]]
    data_from: datetime
    data_to: datetime
    data_digest: str
    data_profile: Mapping[str, Any] | None
    code_version: str
    sha256: str
    units: str


def units_of(pseudonyms: Pseudonyms) -> str:
    """Return what two installations have in common where they know units alike.

    With the same key, or both without one, a unit's list is found in both.
    """
    return pseudonyms.of(_PROBE)


def key_of(version: ModelVersion) -> str:
    """Return what no other version has, in any installation."""
    return f"{version.label}@{version.created_at.astimezone(UTC).isoformat()}"


def write_document(version: ModelVersion, *, units: str) -> str:
    """Return the document of a version, as JSON."""
    return json.dumps(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": version.name,
            "version": version.version,
            "recommender": version.recommender,
            "parameters": version.parameters,
            "metrics": version.metrics,
            "checklist": version.checklist,
            "data_from": version.data_from.astimezone(UTC).isoformat(),
            "data_to": version.data_to.astimezone(UTC).isoformat(),
            "data_digest": version.data_digest,
            "data_profile": version.data_profile,
            "code_version": version.code_version,
            "created_at": version.created_at.astimezone(UTC).isoformat(),
            "parent": version.parent,
            "sha256": version.sha256,
            "units": units,
        },
        indent=2,
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
    )


def read_document(content: bytes, *, source: str) -> VersionDocument:
    """Read a document.

    Raises
    ------
    InvalidRequest
        Names the source, and what is wrong with its document.
    """

    def refuse(what: str) -> InvalidRequest:
        return InvalidRequest(f"{source} can't be imported: its document {what}")

    try:
        read = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise refuse(f"is not JSON ({error})") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise refuse(f"is not of format {FORMAT!r}")
    if read.get("format_version") != FORMAT_VERSION:
        raise refuse(
            f"has format {read.get('format_version')!r}; this program reads "
            f"{FORMAT_VERSION}"
        )
    if b"\\u0000" in content:
        raise refuse("holds a NUL character, which the database can't store")
    values = {}
    for name, (kind, rule) in _FIELDS.items():
        try:
            values[name] = kind(read[name])
        except (KeyError, TypeError, ValueError) as error:
            shown = repr(read.get(name))[:80]
            raise refuse(f"has {name} {shown}; it must be {rule}") from error
    return VersionDocument(**values)


def digest(content: bytes) -> str:
    """Return the SHA-256 of a document, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parameters_of(version: ModelVersion) -> dict[str, str]:
    """Return parameters by name, such as ``recommender.factors``; lists as JSON."""
    flat = {"model": version.recommender, **_flat(version.parameters, ".", {})}
    return {_named(name): _clipped(_as_text(value)) for name, value in flat.items()}


def metrics_of(version: ModelVersion) -> dict[str, float]:
    """Return figures by name, such as ``repeats_allowed/intervals/ndcg/low``.

    Slices are in the document only: their names are those of categories and markets.
    """
    return {
        _named(name): float(value)
        for name, value in _flat(version.metrics, "/", {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def facts_of(version: ModelVersion) -> dict[str, str]:
    """Return tags that never change: what it is, of which data, by which protocol."""
    facts = {
        KEY: key_of(version),
        f"{PREFIX}version": version.label,
        f"{PREFIX}code_version": version.code_version,
        f"{PREFIX}data_from": version.data_from.astimezone(UTC).isoformat(),
        f"{PREFIX}data_to": version.data_to.astimezone(UTC).isoformat(),
        f"{PREFIX}data_digest": version.data_digest,
        f"{PREFIX}parent": "" if version.parent is None else str(version.parent),
    }
    for name, figures in version.metrics.items():
        if isinstance(figures, Mapping) and "protocol" in figures:
            facts[_named(f"protocol/{name}")] = _clipped(str(figures["protocol"]))
    return facts


def standing_of(version: ModelVersion) -> dict[str, str]:
    """Return tags that follow decisions."""
    decided = version.decided_at
    return {
        STATUS: str(version.status),
        f"{PREFIX}reason": _clipped(version.reason or ""),
        f"{PREFIX}decided_at": ""
        if decided is None
        else decided.astimezone(UTC).isoformat(),
    }


def _flat(
    nested: Mapping[str, Any], separator: str, into: dict[str, Any], path: str = ""
) -> dict[str, Any]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            _flat(value, separator, into, f"{path}{name}{separator}")
        else:
            into[f"{path}{name}"] = value
    return into


def _named(name: str) -> str:
    """Return a name that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_\-./]+", "_", name)[:250]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clipped(text: str) -> str:
    return (
        text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _whole(value: object) -> int:
    if type(value) is not int or value < 1:
        raise TypeError
    return value


def _digest(value: object) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", _text(value)):
        raise ValueError
    return str(value)


def _instant(value: object) -> datetime:
    read = datetime.fromisoformat(_text(value))
    if read.tzinfo is None:
        raise ValueError
    return read


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _optional_mapping(value: object) -> dict[str, Any] | None:
    return None if value is None else _mapping(value)


def _checks(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError
    for check in map(_mapping, value):
        _text(check["name"])
        if check["passed"] is not True:
            raise ValueError
    return value


_FIELDS: Mapping[str, tuple[Callable[[object], Any], str]] = {
    "name": (_text, "a text"),
    "version": (_whole, "a whole number, 1 or more"),
    "recommender": (_text, "a text"),
    "parameters": (_mapping, "an object"),
    "metrics": (_mapping, "an object"),
    "checklist": (_checks, "a list of checks that all passed"),
    "data_from": (_instant, "an instant with a time zone"),
    "data_to": (_instant, "an instant with a time zone"),
    "data_digest": (_digest, "64 hexadecimal digits"),
    "data_profile": (_optional_mapping, "an object or null"),
    "code_version": (_text, "a text"),
    "sha256": (_digest, "64 hexadecimal digits"),
    "units": (_text, "a text"),
}
