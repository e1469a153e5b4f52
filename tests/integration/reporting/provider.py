"""An OpenID Connect provider of one user, who always says yes; over HTTP."""

import json
import threading
import time
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


class Provider:
    """Serves the authorization code flow while it is entered."""

    def __init__(self, *, client, secret):
        self.client, self.secret, self.email = client, secret, ""
        self.key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"})
        self.nonces = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def metadata(self):
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def tokens(self, code):
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": self.client,
            "sub": self.email,
            "email": self.email,
            "email_verified": True,
            "iat": now,
            "exp": now + 600,
        }
        if self.nonces[code] is not None:
            claims["nonce"] = self.nonces[code]
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key)
        return {"access_token": "x", "token_type": "Bearer", "id_token": signed}

    def handler(provider):  # noqa: N805 - the handler has a self of its own
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, document):
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                parts = urlsplit(self.path)
                asked = {name: each[0] for name, each in parse_qs(parts.query).items()}
                if parts.path == "/authorize":
                    code = f"code{len(provider.nonces)}"
                    provider.nonces[code] = asked.get("nonce")
                    back = urlencode({"code": code, "state": asked["state"]})
                    self.send_response(302)
                    self.send_header("location", f"{asked['redirect_uri']}?{back}")
                    self.end_headers()
                elif parts.path == "/keys":
                    key = provider.key.as_dict(private=False)
                    self.answer({"keys": [key]})
                else:
                    self.answer(provider.metadata())

            def do_POST(self):
                length = int(self.headers["content-length"])
                form = parse_qs(self.rfile.read(length).decode())
                given = self.headers.get("authorization", "Basic ").split()[-1]
                expected = f"{provider.client}:{provider.secret}"
                if (
                    b64decode(given).decode().replace("+", " ").replace("%20", " ")
                    != expected
                ):
                    self.send_error(401)
                    return
                self.answer(provider.tokens(form["code"][0]))

        return Handler
