"""`python -I -S post_child.py`: one POST of JSON, told by a line of JSON on standard input.

Exit codes: 0 the server took it, 3 it never will, 1 another try may go better; why is one line on standard output, with
nothing of the address or of the answer in it. A redirection is not followed: the message is for the address that the
user gave. It ends itself when its time is over, should whoever started it be gone.
"""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

FINAL, AGAIN = 3, 1


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        return None


def main() -> int:
    given = json.loads(sys.stdin.readline())
    timeout = float(given["timeout_s"])
    signal.setitimer(signal.ITIMER_REAL, timeout + 1.0)
    code, words = post(given["url"], given["body"], timeout_s=timeout)
    print(words)
    return code


def post(url: str, body: dict[str, Any], *, timeout_s: float) -> tuple[int, str]:
    parts = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "raft-agent"}
    if parts.username is not None:
        user = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
    try:
        request = urllib.request.Request(plain, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s) as answer:
            return 0, f"answered {answer.status}"
    except urllib.error.HTTPError as error:
        again = error.code >= 500 or error.code in (408, 425, 429)
        redirects = " (a redirection, which is not followed)" if 300 <= error.code < 400 else ""
        return AGAIN if again else FINAL, f"answered {error.code}{redirects}"
    except urllib.error.URLError as error:
        return _why(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return _why(error)
    except ValueError:
        return FINAL, "is no address that can be asked"


def _why(reason: object) -> tuple[int, str]:
    """In words that have nothing of the address in them."""
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FINAL, f"has no good certificate ({reason.verify_message})"
    if isinstance(reason, ssl.SSLError):
        return AGAIN, "failed in the TLS handshake"
    if isinstance(reason, socket.gaierror):
        return AGAIN, "cannot be found (name look-up)"
    if isinstance(reason, TimeoutError):
        return AGAIN, "did not answer in time"
    if isinstance(reason, http.client.HTTPException):
        return AGAIN, "answered what is not HTTP"
    return AGAIN, f"cannot be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"


if __name__ == "__main__":
    sys.exit(main())
