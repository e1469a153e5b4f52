"""Password hashes: salted scrypt, as one line that fits in a setting.

``scrypt:16384:8:1:SALT:KEY``, salt and key in URL-safe base64. A guess costs 16 MB and
some 50 ms.
"""

import base64
import hashlib
import hmac
import secrets

from experiment_service.errors import InvalidRequest

MINIMUM_LENGTH = 10
_MAXIMUM_LENGTH = 1000
_N, _R, _P = 1 << 14, 8, 1
_KEY_BYTES, _SALT_BYTES = 32, 16
_RULE = "it must be what `experiment-service hash-password` printed"


def hash_password(password: str) -> str:
    """Return the hash of a new password, with a salt of its own.

    Raises
    ------
    InvalidRequest
        When it is too short or too long.
    """
    if not MINIMUM_LENGTH <= len(password) <= _MAXIMUM_LENGTH:
        raise InvalidRequest(
            f"the password has {len(password)} characters; it must have "
            f"{MINIMUM_LENGTH} to {_MAXIMUM_LENGTH}"
        )
    salt = secrets.token_bytes(_SALT_BYTES)
    key = _derive(password, salt)
    return ":".join(["scrypt", str(_N), str(_R), str(_P), _text(salt), _text(key)])


def check_hash(text: str) -> str:
    """Return a stored hash as it is.

    Raises
    ------
    ValueError
        When it is none of `hash_password`.
    """
    _parts(text)
    return text


def verify_password(password: str, stored: str) -> bool:
    """Whether a password is the one of a hash, in a time that does not tell how near.

    Raises
    ------
    ValueError
        When the hash is none of `hash_password`.
    """
    salt, key = _parts(stored)
    if len(password) > _MAXIMUM_LENGTH:
        return False
    return hmac.compare_digest(_derive(password, salt), key)


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        # A lone surrogate, which no keyboard makes, is no reason to fail.
        password.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=_N,
        r=_R,
        p=_P,
        maxmem=64 << 20,
        dklen=_KEY_BYTES,
    )


def _parts(text: str) -> tuple[bytes, bytes]:
    """Return salt and key of a hash."""
    name, *numbers, salt, key = text.split(":") if text.count(":") == 5 else [""] * 6
    if [name, *numbers] != ["scrypt", str(_N), str(_R), str(_P)]:
        raise ValueError(_RULE)
    try:
        read = base64.urlsafe_b64decode(salt), base64.urlsafe_b64decode(key)
    except ValueError:
        raise ValueError(_RULE) from None
    if len(read[0]) != _SALT_BYTES or len(read[1]) != _KEY_BYTES:
        raise ValueError(_RULE)
    return read


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode()
