"""The AWS APIs: moto's server as ECR and STS behind one door, with what moto lacks, and errors in each service's own format."""
import base64, json, re, time, urllib.parse

from names import CLEAN_ACCOUNT
from relay import Upstream, passed_headers
from web import Service

CREDENTIAL = re.compile(r"Credential=([^/,]+)/\d+/([^/,]+)/([^/,]+)/")


class ControlPlane(Service):
    """Its scope is the access key's id, so that tests side by side are told apart."""

    defaults = {
        "token_generations": False,  # every token is another password (`#1`, `#2`, …), which only the ECR-shaped registry takes
        "expires_in_seconds": None,  # moto's own answer expired in 2015
        "public_tokens": True,
    }

    def __init__(self, name, log, port):
        super().__init__(name, log)
        self.upstream, self.token_calls, self.created = Upstream(port), 0, set()

    def scope(self, exchange):
        found = CREDENTIAL.search(exchange.headers.get("Authorization", ""))
        return found[1] if found else ""

    def serve(self, exchange):
        found = CREDENTIAL.search(exchange.headers.get("Authorization", ""))
        if found:
            exchange.notes.update(region=found[2], api=found[3])
        exchange.kept_body = exchange.body()
        if "X-Amz-Target" not in exchange.headers:
            form = urllib.parse.parse_qs(exchange.kept_body.decode(errors="replace"))
            exchange.notes["target"] = form.get("Action", [""])[0]
            exchange.notes["form"] = sorted(form)
            exchange.notes.update({name: form[name][0] for name in ("RoleArn", "RoleSessionName", "ExternalId", "DurationSeconds") if name in form})
            # Rules find an STS call by its action too.
            exchange.headers["X-Amz-Target"] = exchange.notes["target"]
        super().serve(exchange)

    def error_body(self, exchange, code, message):
        if exchange.headers.get("Content-Type", "").startswith("application/x-amz-json"):
            return "application/x-amz-json-1.1", json.dumps({"__type": f"com.amazonaws.ecr#{code}", "message": message})
        text = f"<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>" \
            f"<Message>{message}</Message></Error><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>"
        return "text/xml", text

    def handle(self, exchange, state):
        target = exchange.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if exchange.host.startswith(("api.ecr-public.", "ecr-public.")):
            return self.public(exchange, state, target)
        headers = passed_headers(exchange, {"x-amz-target"} if "Action=" in exchange.kept_body.decode(errors="replace") else ())
        # moto tells services and regions by the signature and the host.
        if "Authorization" in exchange.headers:
            headers["Authorization"] = exchange.headers["Authorization"]
        headers["Content-Length"] = str(len(exchange.kept_body))
        answer = self.upstream.request(exchange.command, exchange.path, headers, exchange.kept_body)
        body = self.after(state, target, exchange, answer.status, answer.read())
        kept = {name: value for name, value in answer.headers.items() if name.lower() in ("content-type", "x-amzn-requestid")}
        exchange.reply(answer.status, kept, body)

    def after(self, state, target, exchange, status, body):
        if status != 200:
            return body
        if target == "CreateRepository":
            self.created.add(json.loads(exchange.kept_body)["repositoryName"])
        if target == "DeleteRepository":
            self.created.discard(json.loads(exchange.kept_body)["repositoryName"])
        if target == "GetAuthorizationToken":
            return self.token(state, json.loads(body))
        return body

    def token(self, state, answer):
        self.token_calls += 1
        for entry in answer["authorizationData"]:
            if state["token_generations"]:
                pair = base64.b64decode(entry["authorizationToken"]).decode() + f"#{self.token_calls}"
                entry["authorizationToken"] = base64.b64encode(pair.encode()).decode()
            if state["expires_in_seconds"] is not None:
                entry["expiresAt"] = time.time() + state["expires_in_seconds"]
        return json.dumps(answer)

    def public(self, exchange, state, target):
        if target != "GetAuthorizationToken" or not state["public_tokens"]:
            return self.refuse(exchange, 400, "UnsupportedCommandException", f"{target} is not there")
        if exchange.notes.get("region") != "us-east-1":
            return self.refuse(exchange, 400, "InvalidSignatureException", "Credential should be scoped to a valid region, not another one")
        self.token_calls += 1
        token = base64.b64encode(f"AWS:{CLEAN_ACCOUNT}-auth-token".encode()).decode()
        life = 43200 if state["expires_in_seconds"] is None else state["expires_in_seconds"]
        exchange.reply_json(200, {"authorizationData": {"authorizationToken": token, "expiresAt": time.time() + life}})
