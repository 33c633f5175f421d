"""The small threaded HTTP/1.1 server on which the stack's own parts stand: every request goes to the log, rules make faults.

A service's behaviour is kept by *scope* (the first segment of a repository's name, an access key's id, …), so that tests
which run side by side each set their own. A rule is an object:

    which requests   method, path (regular expression), target (X-Amz-Target's end), host
    which of those   at: N · every: N · first: N · after: N (counted from 1 since the rule was set); without any: all
    what happens     status, headers, body, code and message (a body in the service's error format) ·
                     close: true (no answer) · read_bytes: N (of the body, before that) · wait_seconds · cut_bytes (of the answer's body)
"""
import http.server, json, re, socket, socketserver, ssl, threading, time

BLOCK = 256 << 10


class Log:
    def __init__(self, path):
        self.lock, self.lines, self.file = threading.Lock(), [], open(path, "a", buffering=1)

    def add(self, line):
        with self.lock:
            line["n"] = len(self.lines) + 1
            self.lines.append(line)
            self.file.write(json.dumps(line) + "\n")

    def select(self, service, scope):
        with self.lock:
            lines = list(self.lines)
        return [line for line in lines if (not service or line["service"] == service) and (not scope or line["scope"] == scope)]


class State:
    """The switches and rules of one scope, and what was counted under them."""

    def __init__(self, defaults, given=None):
        given = given or {}
        unknown = set(given.get("switches", {})) - set(defaults)
        if unknown:
            raise ValueError(f"no such switch: {', '.join(sorted(unknown))}")
        self.switches = {**defaults, **given.get("switches", {})}
        self.rules = [(rule, [0]) for rule in given.get("rules", [])]
        self.lock, self.kept = threading.Lock(), {}

    def __getitem__(self, name):
        return self.switches[name]

    def count(self, name):
        with self.lock:
            self.kept[name] = self.kept.get(name, 0) + 1
            return self.kept[name]

    def fault(self, exchange):
        with self.lock:
            hit = [rule for rule, seen in self.rules if matches(rule, exchange) and due(rule, seen)]
        return hit[0] if hit else None


def matches(rule, exchange):
    return (
        rule.get("method", exchange.command) == exchange.command
        and re.search(rule.get("path", ""), exchange.path) is not None
        and exchange.host.startswith(rule.get("host", ""))
        and exchange.headers.get("X-Amz-Target", "").endswith(rule.get("target", ""))
    )


def due(rule, seen):
    seen[0] += 1
    number = seen[0]
    if not {"at", "every", "first", "after"} & set(rule):
        return True
    return (
        number == rule.get("at")
        or "every" in rule and number % rule["every"] == 0
        or number <= rule.get("first", 0)
        or "after" in rule and number > rule["after"]
    )


class Closed(Exception):
    """The connection ends here, without an answer."""


class Service:
    defaults = {}

    def __init__(self, name, log):
        self.name, self.log, self.states = name, log, {"": State(self.defaults)}

    def configure(self, scope, given):
        self.states[scope] = State(self.defaults, given)

    def state(self, scope):
        return self.states.get(scope) or self.states[""]

    def scope(self, exchange):
        parts = exchange.path.split("?")[0].split("/")
        return parts[2] if len(parts) > 3 and parts[1] == "v2" else ""

    def error_body(self, _exchange, code, message):
        return "application/json", json.dumps({"errors": [{"code": code, "message": message}]})

    def refuse(self, exchange, status, code, message, headers=None):
        media_type, body = self.error_body(exchange, code, message)
        exchange.reply(status, {"Content-Type": media_type, **(headers or {})}, body)

    def apply(self, exchange, rule):
        """Returns whether the rule answered."""
        exchange.cut_bytes = rule.get("cut_bytes")
        exchange.read_some(rule.get("read_bytes", 0))
        time.sleep(rule.get("wait_seconds", 0))
        if rule.get("close"):
            exchange.tell(0, "closed")
            raise Closed
        if "status" not in rule:
            return False
        headers = rule.get("headers", {})
        if "code" in rule:
            self.refuse(exchange, rule["status"], rule["code"], rule.get("message", ""), headers)
        else:
            exchange.reply(rule["status"], headers, rule.get("body", ""))
        return True

    def serve(self, exchange):
        exchange.scope_name = self.scope(exchange)
        state = self.state(exchange.scope_name)
        rule = state.fault(exchange)
        if rule is None or not self.apply(exchange, rule):
            self.handle(exchange, state)

    def handle(self, exchange, state):
        raise NotImplementedError


class Exchange(http.server.BaseHTTPRequestHandler):
    """One request and its answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120

    def setup(self):
        # The handshake is made here, on the connection's own thread.
        if self.server.tls:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle_any(self):
        service = self.server.service
        self.host = self.headers.get("Host", "").lower()
        self.scope_name, self.cut_bytes, self.notes, self.left = "", None, {}, self.body_length()
        self.told = False
        try:
            service.serve(self)
            self.read_some(None)
        except Closed:
            self.close_connection = True
        except (ConnectionError, ssl.SSLError, TimeoutError):
            self.tell(0, "gone")
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    # ------------------------------------------------------------------ the request's body
    def body_length(self):
        """Bytes to come; None where they come in chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return None
        return int(self.headers.get("Content-Length", 0))

    def chunks(self):
        """The body in pieces, read once."""
        if self.left is None:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.left = 0
        while self.left:
            piece = self.rfile.read(min(BLOCK, self.left))
            if not piece:
                raise ConnectionError("the body was cut")
            self.left -= len(piece)
            yield piece

    def read_some(self, count):
        """Reads and drops so many bytes of the body, all of it for None."""
        seen = 0
        if count is None or count:
            for piece in self.chunks():
                seen += len(piece)
                if count is not None and seen >= count:
                    return

    def body(self):
        return b"".join(self.chunks())

    # ------------------------------------------------------------------ the answer
    def tell(self, status, fault=None):
        """Writes the request's line of the log, once and before the answer goes out."""
        if self.told:
            return
        self.told = True
        given = self.headers.get("Authorization")
        line = {
            "time": round(time.time(), 3), "service": self.server.service.name, "scope": self.scope_name,
            "host": self.host, "method": self.command, "path": self.path, "status": status,
            "headers": sorted({name.lower() for name in self.headers}),
            "authorization": given.split(" ")[0] if given else None,
            "connection": f"{self.client_address[0]}:{self.client_address[1]}",
        }
        if target := self.headers.get("X-Amz-Target"):
            line["target"] = target.rpartition(".")[2]
        if fault:
            line["fault"] = fault
        self.server.service.log.add({**line, **self.notes})

    def reply(self, status, headers=None, body=b""):
        body = body.encode() if isinstance(body, str) else body
        length = {} if status in (204, 304) else {"Content-Length": str(len(body))}
        self.reply_stream(status, {**length, **(headers or {})}, [body])

    def reply_json(self, status, value, headers=None):
        self.reply(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value))

    def reply_stream(self, status, headers, pieces):
        if status >= 400 and self.left != 0:
            self.read_some(1 << 20)
            if self.left != 0:
                headers, self.close_connection = {**headers, "Connection": "close"}, True
        self.tell(status)
        self.send_response_only(status)
        for name, value in headers.items():
            for one in value if isinstance(value, list) else [value]:
                self.send_header(name, one)
        self.end_headers()
        if self.command != "HEAD":
            self.write_pieces(pieces)

    def write_pieces(self, pieces):
        left = self.cut_bytes
        for piece in pieces:
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            self.wfile.write(piece)
            if left == 0:
                raise Closed

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, service, tls=None):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.service, self.tls = service, tls
        super().__init__(address, Exchange)

    def server_bind(self):
        # HTTPServer would look the name of its own address up.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, _request, _address):
        # A client that goes away or refuses the certificate is what tests do; anything else is shown.
        import sys, traceback
        if not isinstance(sys.exc_info()[1], OSError):
            traceback.print_exc()

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()


def tls_context(directory, name, client_ca=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/{name}.pem", f"{directory}/{name}.key")
    context.set_alpn_protocols(["http/1.1"])
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
