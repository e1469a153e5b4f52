"""Routes for those who run the service: keys, the audit log, erasure of a unit."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from experiment_service import erasure, keys
from experiment_service.api.access import Caller
from experiment_service.api.documents import (
    AuditDocument,
    ErasureDocument,
    ErasureRequest,
    KeyDocument,
    KeyRequest,
    KeysDocument,
    NewKeyDocument,
    RevokeRequest,
    RotateRequest,
)
from experiment_service.api.routes import ERRORS, Actor, Serving, answer
from experiment_service.api.schemas import Identifier
from experiment_service.api.services import clock
from experiment_service.domain.key import parse_scopes
from experiment_service.errors import InvalidState
from experiment_service.storage import keys as storage
from experiment_service.storage.audit import audit_document, page_of_audit
from experiment_service.storage.database import transaction

router = APIRouter(tags=["operation"], responses=ERRORS)

# Of one's own key: time to find out that its successor was lost on the way.
_OWN_OVERLAP = timedelta(hours=1)

KeyId = Annotated[Identifier, Path(description="Of the key: 12 digits after `es_`.")]


def _own(request: Request) -> str | None:
    caller: Caller = request.scope["caller"]
    return caller.key_id


@router.get("/v1/keys", response_model=KeysDocument)
def list_keys(services: Serving) -> Response:
    """List keys by age, also those that are refused; their secrets are nowhere."""
    with transaction(services.engine) as connection:
        found = storage.list_keys(connection)
    return answer({"keys": [key.document() for key in found]})


@router.post("/v1/keys", response_model=NewKeyDocument, status_code=201)
def create_key(services: Serving, body: KeyRequest, actor: Actor) -> Response:
    """Make a key; the answer is the only place that ever shows it."""
    with transaction(services.engine) as connection:
        made = keys.create(
            connection,
            body.name,
            parse_scopes(body.scopes),
            origins=body.origins,
            per_second=body.per_second,
            life=None if body.days is None else timedelta(days=body.days),
            actor=actor,
            now=clock(),
        )
    return _new(made)


@router.post("/v1/keys/{key_id}/revoke", response_model=KeyDocument)
def revoke_key(
    request: Request,
    services: Serving,
    key_id: KeyId,
    actor: Actor,
    body: RevokeRequest | None = None,
) -> Response:
    """Refuse another key from now on, for ever."""
    if key_id == _own(request):
        raise InvalidState(
            f"key {key_id} can't revoke itself, or nobody could be left to make another; "
            "use another key, or `experiment-service keys revoke`"
        )
    with transaction(services.engine) as connection:
        key = keys.revoke(
            connection,
            key_id,
            actor=actor,
            now=clock(),
            reason=body.reason if body else "",
        )
    return answer(key.document())


@router.post("/v1/keys/{key_id}/rotate", response_model=NewKeyDocument, status_code=201)
def rotate_key(
    request: Request,
    services: Serving,
    key_id: KeyId,
    actor: Actor,
    body: RotateRequest | None = None,
) -> Response:
    """Make a key like another one, which expires some hours later."""
    overlap = keys.OVERLAP if body is None else timedelta(hours=body.overlap_hours)
    if key_id == _own(request) and overlap < _OWN_OVERLAP:
        raise InvalidState(
            f"key {key_id} can't end itself at once; overlap_hours must be at least "
            f"{_OWN_OVERLAP / timedelta(hours=1):g} for one's own key"
        )
    with transaction(services.engine) as connection:
        made = keys.rotate(
            connection, key_id, overlap=overlap, actor=actor, now=clock()
        )
    return _new(made)


def _new(made: keys.NewKey) -> Response:
    response = answer({"key": made.written, "details": made.key.document()}, 201)
    response.headers["cache-control"] = "no-store"
    return response


@router.get("/v1/audit", response_model=AuditDocument)
def read_audit(
    services: Serving,
    before: Annotated[
        int | None, Query(ge=1, lt=2**63, description="`next` of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    subject: Annotated[
        Identifier | None, Query(description="Such as `experiment/home-carousel`.")
    ] = None,
) -> Response:
    """Show who changed what, before and after, the newest change first."""
    with transaction(services.engine) as connection:
        page = page_of_audit(connection, limit=limit, before=before, subject=subject)
    return answer(
        {
            "entries": [audit_document(number, entry) for number, entry in page],
            "next": page[-1][0] if len(page) == limit else None,
        }
    )


@router.post("/v1/erasures", response_model=ErasureDocument)
def erase(services: Serving, body: ErasureRequest, actor: Actor) -> Response:
    """Remove all that is stored of a unit, and what is on its way to the database."""
    with transaction(services.engine) as connection:
        erased = erasure.erase(
            connection,
            services.pseudonyms.all_of(body.unit_id),
            actor=actor,
            now=clock(),
            reason=body.reason,
        )
    return answer(
        {
            "rows": erased.rows,
            "overrides": erased.overrides,
            "archives": erased.archives,
        }
    )
