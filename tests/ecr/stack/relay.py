"""Passing a request on to a server behind, and its answer back."""
import http.client, itertools, threading

from web import BLOCK

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization", "expect"}


class Upstream:
    """A plain HTTP server on loopback; one connection for each thread that asks."""

    def __init__(self, port):
        self.port, self.local = port, threading.local()

    def connection(self):
        if getattr(self.local, "connection", None) is None:
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        return self.local.connection

    def drop(self):
        self.local.connection.close()
        self.local.connection = None

    def request(self, method, path, headers, body=None):
        """The answer, its body not read yet. Sent once more on a connection that had gone stale, if there is no body."""
        for last in (False, True):
            try:
                self.connection().request(method, path, body=body, headers=headers)
                return self.connection().getresponse()
            except (http.client.HTTPException, ConnectionError):
                self.drop()
                if last or body is not None:
                    raise ConnectionError("the server behind does not answer") from None

    def ask(self, method, path, headers=None):
        """Status, headers and the whole body."""
        answer = self.request(method, path, headers or {})
        return answer.status, answer.headers, answer.read()


def passed_headers(exchange, drop):
    drop = {*HOP_BY_HOP, "authorization", *drop}
    # Lines of one name (Accept) are one list.
    kept = {name: ", ".join(exchange.headers.get_all(name)) for name in exchange.headers.keys()}
    headers = {name: value for name, value in kept.items() if name.lower() not in drop}
    return {**headers, "X-Forwarded-Proto": "https"}


def forward(exchange, upstream, path=None, change=None, drop=()):
    """Sends the request on without its credential and answers with what came, after `change(status, headers)`."""
    headers = passed_headers(exchange, drop)
    body = None
    if exchange.command in ("POST", "PUT", "PATCH"):
        body = exchange.chunks() if exchange.left != 0 else b""
        if exchange.left is None:
            headers["Transfer-Encoding"] = "chunked"
            body = (b"%x\r\n%s\r\n" % (len(piece), piece) for piece in itertools.chain(body, [b""]))
    answer = upstream.request(exchange.command, path or exchange.path, headers, body)
    kept = {}
    for name, value in answer.headers.items():
        if name.lower() not in HOP_BY_HOP:
            kept.setdefault(name, []).append(value)
    status = answer.status
    if change:
        status, kept = change(status, kept)
    if not any(name.lower() == "content-length" for name in kept) and exchange.command != "HEAD":
        exchange.reply(status, kept, answer.read())
    else:
        exchange.reply_stream(status, kept, iter(lambda: answer.read(BLOCK), b""))
        answer.read()
    return status, kept
