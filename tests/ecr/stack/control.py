"""The stack's control endpoint: HTTP over a Unix socket, which the network namespace does not hide.

    PUT /SERVICE/SCOPE   {"switches": {…}, "rules": […]}: how SERVICE treats SCOPE from now on, counted from zero; SCOPE may be empty
    GET /log?service=&scope=   the requests so far, as a JSON list
    GET /counts          {"token_calls": …}
    POST /created        {"repositories": […]}: as if they had been created
"""
import http.server, json, os, socketserver, threading, urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def given(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")

    def do_PUT(self):
        service, _, scope = self.path.strip("/").partition("/")
        try:
            self.server.services[service].configure(scope, self.given())
        except (KeyError, ValueError) as error:
            return self.answer(400, {"error": repr(error)})
        return self.answer(200, {})

    def do_POST(self):
        self.server.services["control-plane"].created.update(self.given()["repositories"])
        self.answer(200, {})

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/counts":
            return self.answer(200, {"token_calls": self.server.services["control-plane"].token_calls})
        query = {name: values[0] for name, values in urllib.parse.parse_qs(query).items()}
        return self.answer(200, self.server.log.select(query.get("service"), query.get("scope")))

    def log_message(self, *_):
        pass


class Control(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path, services, log):
        self.services, self.log = {service.name: service for service in services}, log
        super().__init__(path, Handler)
        os.chmod(path, 0o600)

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
