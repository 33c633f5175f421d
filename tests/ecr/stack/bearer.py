"""Registries with bearer tokens, as Docker Hub, GHCR and ECR Public have them: the token endpoint and the door of a docker-registry."""
import base64, secrets, threading, time, urllib.parse

from relay import forward
from web import Service

PUSH_ACTIONS = {"POST", "PUT", "PATCH", "DELETE"}


def repository_of(path):
    """The repository's name in `/v2/NAME/(blobs|manifests|tags|referrers)/…`."""
    parts = path.split("/")[2:]
    for at in range(len(parts) - 1, 0, -1):
        if parts[at] in ("blobs", "manifests", "tags", "referrers"):
            return "/".join(parts[:at])
    return ""


class Bearer(Service):
    defaults = {
        "realm": "",  # set by each kind of registry
        "service_name": "",
        "users": {},  # user: password
        "identity_tokens": [],
        "anonymous_pull": True,
        "field": "token",  # or access_token
        "expires_in": 300,  # None: the answer does not say
        "lifetime_seconds": None,  # the true life; None: as the answer says, 60 where it does not
        "dead_after": None,  # a token is refused after so many requests
        "first_scope_only": False,
        "refresh_tokens": False,  # answers to a POST hold a new one
        "get_status": None,  # refuses the GET of a token
        "post_status": 404,  # None: the token endpoint takes a POST (OAuth2)
        "denied_scopes": [],  # a request that names one of them gets 403
        "range_limit": None,  # bytes in a PATCH with Content-Range
        "redirect_to": None,
        "challenge_scope": True,
        "extra_challenge": "",
    }

    def __init__(self, name, log, upstream, bucket, **changed):
        self.defaults = {**Bearer.defaults, **changed}
        super().__init__(name, log)
        self.upstream, self.bucket, self.tokens, self.lock = upstream, bucket, {}, threading.Lock()

    def scope(self, exchange):
        """Of the registry's side the repository's first segment, of the token endpoint's side that of the first scope's."""
        if exchange.path.startswith("/v2/"):
            return super().scope(exchange)
        exchange.form = self.form(exchange)
        names = [scope.split(":")[1] for scope in exchange.form.get("scope", []) if scope.count(":") > 1]
        return names[0].split("/")[0] if names else ""

    def form(self, exchange):
        form = urllib.parse.parse_qs(exchange.path.partition("?")[2])
        if exchange.command == "POST":
            form.update(urllib.parse.parse_qs(exchange.body().decode()))
        form["scope"] = [one for scope in form.get("scope", []) for one in scope.split(" ")]
        return form

    def handle(self, exchange, state):
        if exchange.path.startswith("/v2/"):
            return self.registry(exchange, state)
        exchange.notes.update(scopes=exchange.form["scope"], grant=exchange.form.get("grant_type", [None])[0])
        return self.token(exchange, state)

    # ------------------------------------------------------------------ the token endpoint
    def token(self, exchange, state):
        status = state["post_status"] if exchange.command == "POST" else state["get_status"]
        if status:
            return self.refuse(exchange, status, "UNSUPPORTED", "this way to a token is closed")
        known, user = self.who(exchange, state)
        if not known:
            return self.refuse(exchange, 401, "UNAUTHORIZED", "incorrect username or password")
        wanted = exchange.form["scope"]
        if set(wanted) & set(state["denied_scopes"]):
            return self.refuse(exchange, 403, "DENIED", "requested access to the resource is denied")
        granted = [self.grant(scope, user, state) for scope in (wanted[:1] if state["first_scope_only"] else wanted)]
        return exchange.reply_json(200, self.issue(exchange, state, granted))

    def who(self, exchange, state):
        """Whether the caller is known, and as whom; None for anonymous."""
        form, (kind, _, value) = exchange.form, exchange.headers.get("Authorization", "").partition(" ")
        if exchange.command == "POST":
            if form.get("grant_type") == ["refresh_token"]:
                return form.get("refresh_token", [""])[0] in state["identity_tokens"], "identity"
            user, password = form.get("username", [""])[0], form.get("password", [""])[0]
            return state["users"].get(user) == password, user
        if not kind:
            return True, None
        user, _, password = base64.b64decode(value).decode().partition(":")
        return kind == "Basic" and state["users"].get(user) == password, user

    def grant(self, scope, user, state):
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if user is None:
            actions = "pull" if state["anonymous_pull"] and "pull" in actions.split(",") else ""
        return f"{kind}:{name}:{actions}"

    def issue(self, exchange, state, granted):
        token, life = secrets.token_urlsafe(48), state["lifetime_seconds"]
        life = (state["expires_in"] or 60) if life is None else life
        with self.lock:
            self.tokens[token] = {"scopes": granted, "until": time.time() + life, "left": state["dead_after"]}
        answer = {state["field"]: token, "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        if state["expires_in"] is not None:
            answer["expires_in"] = state["expires_in"]
        if state["refresh_tokens"] and exchange.command == "POST":
            state["identity_tokens"].append(secrets.token_urlsafe(24))
            answer["refresh_token"] = state["identity_tokens"][-1]
        return answer

    # ------------------------------------------------------------------ the registry's door
    def registry(self, exchange, state):
        repository = repository_of(exchange.path.partition("?")[0])
        needed = [(repository, "push" if exchange.command in PUSH_ACTIONS else "pull")] if repository else []
        source = urllib.parse.parse_qs(exchange.path.partition("?")[2]).get("from")
        needed += [(source[0], "pull")] if source else []
        if not self.allowed(exchange, needed):
            return self.challenge(exchange, state, needed)
        if self.is_over_limit(exchange, state):
            return self.refuse(exchange, 416, "BLOB_UPLOAD_INVALID", "the chunk is too large")
        if exchange.command == "GET" and "/blobs/sha256:" in exchange.path and state["redirect_to"]:
            key = self.bucket.sign(exchange.path)
            return exchange.reply(307, {"Location": f"https://{state['redirect_to']}/{key}"})
        return forward(exchange, self.upstream)

    def allowed(self, exchange, needed):
        kind, _, token = exchange.headers.get("Authorization", "").partition(" ")
        with self.lock:
            known = self.tokens.get(token)
            if kind != "Bearer" or known is None or known["until"] < time.time():
                return False
            if known["left"] is not None:
                known["left"] -= 1
                if known["left"] < 0:
                    return False
        return all(any(self.covers(scope, *one) for scope in known["scopes"]) for one in needed)

    def covers(self, scope, repository, action):
        name, _, actions = scope.removeprefix("repository:").rpartition(":")
        return name == repository and action in actions.split(",")

    def challenge(self, exchange, state, needed):
        scope = ""
        if needed and state["challenge_scope"]:
            repository, action = needed[0]
            scope = f',scope="repository:{repository}:{"pull,push" if action == "push" else "pull"}"'
        bearer = f'Bearer realm="{state["realm"]}",service="{state["service_name"]}"{scope}'
        challenges = [state["extra_challenge"], bearer] if state["extra_challenge"] else [bearer]
        self.refuse(exchange, 401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenges})

    def is_over_limit(self, exchange, state):
        ranged = exchange.command == "PATCH" and "Content-Range" in exchange.headers
        return bool(ranged and state["range_limit"] and int(exchange.headers.get("Content-Length", 0)) > state["range_limit"])


def hub(log, upstream, bucket):
    return Bearer("hub", log, upstream, bucket, realm="https://auth.docker.io/token", service_name="registry.docker.io",
                  users={"someone": "hub-password"}, redirect_to="production.cloudflare.docker.com", post_status=None)


def ghcr(log, upstream, bucket):
    return Bearer("ghcr", log, upstream, bucket, realm="https://ghcr.io/token", service_name="ghcr.io", expires_in=None,
                  users={"someone": "ghcr-password"}, range_limit=4 << 20, redirect_to="pkg-containers.githubusercontent.com")


def public(log, upstream, bucket):
    return Bearer("public", log, upstream, bucket, realm="https://public.ecr.aws/token/", service_name="public.ecr.aws",
                  users={"AWS": "123456789012-auth-token"})


class Door(Service):
    """A docker-registry that lets everybody in: a mirror, or what stands behind a client certificate."""

    defaults = {"status": None}

    def __init__(self, name, log, upstream):
        super().__init__(name, log)
        self.upstream = upstream

    def handle(self, exchange, state):
        if state["status"]:
            return self.refuse(exchange, state["status"], "UNAVAILABLE", "the switch says so")
        return forward(exchange, self.upstream)


class Foreign(Service):
    """Somebody else's server: takes everything, and asks for a password where told to."""

    defaults = {"challenge": False}

    def handle(self, exchange, state):
        exchange.read_some(None)
        if state["challenge"]:
            return exchange.reply(401, {"WWW-Authenticate": 'Basic realm="foreign"'}, "who are you?")
        if exchange.command == "POST":
            return exchange.reply(202, {"Location": f"https://{exchange.host}/v2/x/blobs/uploads/1"})
        return exchange.reply(201 if exchange.command == "PUT" else 404)
