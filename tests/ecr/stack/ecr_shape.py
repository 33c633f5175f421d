"""A proxy that makes a docker-registry behave as ECR does, where ECR differs from the specification, and fail as ECR fails."""
import base64, fnmatch, hashlib, json, re, threading
import urllib.parse

from names import CLEAN_ACCOUNT, SHAPED_ACCOUNT
from relay import forward
from web import Closed, Service

BUCKET_NAME = "prod-us-east-1-starport-layer-bucket.s3.us-east-1.amazonaws.com"
PASSWORD = re.compile(rf"({CLEAN_ACCOUNT}|{SHAPED_ACCOUNT})-auth-token(#\d+)?")
ROUTE = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>blobs|manifests)/(?P<name>.*)")
MANIFESTS = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " \
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"


class EcrShape(Service):
    # ECR as it is first; then what goes wrong only when a test asks for it.
    defaults = {
        "patch_status": 201,  # the specification says 202
        "lose_patches": True,  # bodies after the first PATCH of a session are thrown away
        "manifest_location": False,
        "redirect_blobs": True,  # GET of a blob: 307 to a signed address on another host
        "mount": "off",  # off: 202 with a session; on: 201 where the source has the blob; refuse: 403
        "head_403": False,  # HEAD of a missing blob: 403 without a body
        "expire_after": None,  # a password is refused after so many requests, until the control plane gave one again
        "expired_text": "Your authorization token has expired. Reauthenticate and try again.",
        "immutable": [],  # patterns of tags
        "immutable_wording": "tag",  # or "repository"
        "missing": False,  # only repositories that were created exist
        "missing_closes": False,  # … and the others are told by closing the connection
        "quota": False,  # no more manifests in the repository
        "denied": None,  # an action, as ecr:InitiateLayerUpload, that the caller may not do
        "pull_through": False,  # a digest is found only after a tag of it was asked for
        "upload_location": "own",  # foreign · plain · metadata · none · userinfo
    }

    def __init__(self, name, log, upstream, control_plane, bucket):
        super().__init__(name, log)
        self.upstream, self.control_plane, self.bucket = upstream, control_plane, bucket
        self.lock, self.expired, self.sessions, self.imported = threading.Lock(), {}, {}, set()

    # ------------------------------------------------------------------ who asks
    def password(self, exchange):
        kind, _, value = exchange.headers.get("Authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(value).decode().partition(":")
        except ValueError:
            return None
        good = kind.lower() == "basic" and user == "AWS" and PASSWORD.fullmatch(password)
        return password if good else None

    def unauthorized(self, exchange):
        challenge = f'Basic realm="https://{exchange.host}/",service="ecr.amazonaws.com"'
        exchange.reply(401, {"WWW-Authenticate": challenge, "Content-Type": "text/plain; charset=utf-8"}, "Not Authorized\n")

    def is_expired(self, exchange, state, password):
        """By scope and password: refused until another token call was answered."""
        key, calls = (exchange.scope_name, password), self.control_plane.token_calls
        with self.lock:
            if key in self.expired:
                if self.expired[key] < calls:
                    del self.expired[key]
                    state.kept["requests of " + password] = -(1 << 30)
                    return False
                return True
            if state["expire_after"] is None:
                return False
        if state.count("requests of " + password) <= state["expire_after"]:
            return False
        self.expired[key] = calls
        return True

    # ------------------------------------------------------------------ what is asked
    def handle(self, exchange, state):
        password = self.password(exchange)
        if password is None:
            return self.unauthorized(exchange)
        if self.is_expired(exchange, state, password):
            return self.refuse(exchange, 403, "DENIED", state["expired_text"])
        route = ROUTE.fullmatch(exchange.path.partition("?")[0])
        if route is None:
            return forward(exchange, self.upstream)
        repository, kind, name = route.group("repository", "kind", "name")
        # An upload's repository ends before "blobs/uploads".
        if self.is_missing(state, repository):
            return self.no_repository(exchange, state, repository)
        handler = {"blobs": self.blob, "manifests": self.manifest}[kind]
        return handler(exchange, state, repository, name)

    def is_missing(self, state, repository):
        return state["missing"] and repository not in self.control_plane.created

    def no_repository(self, exchange, state, repository):
        if state["missing_closes"] and exchange.command == "POST":
            exchange.tell(0, "closed")
            raise Closed
        registry = exchange.host.split(".")[0]
        text = f"The repository with name '{repository}' does not exist in the registry with id '{registry}'"
        self.refuse(exchange, 404, "NAME_UNKNOWN", text)

    def deny(self, exchange, action, repository):
        registry, region = exchange.host.split(".")[0], exchange.host.split(".")[3]
        user = f"arn:aws:sts::{registry}:assumed-role/builder/session"
        resource = f"arn:aws:ecr:{region}:{registry}:repository/{repository}"
        text = f"User: {user} is not authorized to perform: {action} on resource: {resource}"
        self.refuse(exchange, 403, "DENIED", text)

    # ------------------------------------------------------------------ blobs
    def blob(self, exchange, state, repository, name):
        if name.startswith("uploads/"):
            return self.upload(exchange, state, repository)
        if exchange.command == "HEAD" and state["head_403"]:
            status, _, _ = self.upstream.ask("HEAD", exchange.path)
            if status == 404:
                return exchange.reply(403)
        if exchange.command == "GET":
            if state["denied"] == "ecr:GetDownloadUrlForLayer":
                return self.deny(exchange, state["denied"], repository)
            status, _, _ = self.upstream.ask("HEAD", exchange.path)
            if status == 200 and state["redirect_blobs"]:
                return self.redirect(exchange)
        return forward(exchange, self.upstream)

    def redirect(self, exchange):
        key = self.bucket.sign(exchange.path)
        exchange.reply(307, {"Location": f"https://{BUCKET_NAME}/{key}", "Docker-Distribution-Api-Version": "registry/2.0"})

    def upload(self, exchange, state, repository):
        actions = {"POST": "ecr:InitiateLayerUpload", "PATCH": "ecr:UploadLayerPart", "PUT": "ecr:CompleteLayerUpload"}
        if state["denied"] and actions.get(exchange.command) == state["denied"]:
            return self.deny(exchange, state["denied"], repository)
        if exchange.command == "POST":
            return self.start_upload(exchange, state)
        if exchange.command == "PATCH":
            return self.patch(exchange, state)
        return forward(exchange, self.upstream)

    def start_upload(self, exchange, state):
        path, _, query = exchange.path.partition("?")
        if "mount" in urllib.parse.parse_qs(query):
            if state["mount"] == "refuse":
                return self.refuse(exchange, 403, "DENIED", "mounting blobs is disabled")
            if state["mount"] == "on":
                path = exchange.path
        return forward(exchange, self.upstream, path, lambda status, headers: (status, self.moved(exchange, state, headers)))

    def moved(self, exchange, state, headers):
        """The headers of a started upload, its Location bent as the switch says."""
        where = state["upload_location"]
        location = headers.get("Location", [""])[0]
        path = location.partition(exchange.host)[2]
        bent = {
            "own": location, "foreign": f"https://foreign.example{path}", "plain": f"http://{exchange.host}{path}",
            "metadata": f"https://169.254.169.254{path}", "userinfo": f"https://{exchange.host}@foreign.example{path}",
        }
        if where == "none":
            return {name: value for name, value in headers.items() if name not in ("Location", "Docker-Upload-Uuid")}
        return {**headers, "Location": [bent[where]]}

    def patch(self, exchange, state):
        session = exchange.path.partition("?")[0]
        with self.lock:
            before = self.sessions.get(session)
        if before and state["lose_patches"]:
            exchange.read_some(None)
            return exchange.reply(state["patch_status"], before)

        def change(status, headers):
            with self.lock:
                self.sessions[session] = {name: headers[name] for name in ("Location", "Range") if name in headers}
            return (state["patch_status"] if status == 202 else status), headers

        return forward(exchange, self.upstream, change=change)

    # ------------------------------------------------------------------ manifests
    def manifest(self, exchange, state, repository, name):
        if exchange.command == "PUT":
            return self.put_manifest(exchange, state, repository, name)
        if state["denied"] == "ecr:BatchGetImage":
            return exchange.reply(403) if exchange.command == "HEAD" else self.deny(exchange, state["denied"], repository)
        if state["pull_through"]:
            if not self.import_image(exchange, repository, name):
                return self.refuse(exchange, 404, "MANIFEST_UNKNOWN", "Requested image not found")
        return forward(exchange, self.upstream)

    def import_image(self, exchange, repository, name):
        """A GET by tag imports what it names; a digest that was never imported is not found."""
        if name.startswith("sha256:"):
            return (repository, name) in self.imported
        if exchange.command == "GET":
            status, headers, body = self.upstream.ask("GET", exchange.path, {"Accept": MANIFESTS})
            if status == 200:
                self.imported.add((repository, headers["Docker-Content-Digest"]))
                for child in json.loads(body).get("manifests", []):
                    self.imported.add((repository, child["digest"]))
        return True

    def put_manifest(self, exchange, state, repository, name):
        if state["denied"] == "ecr:PutImage":
            return self.deny(exchange, state["denied"], repository)
        if state["quota"]:
            text = f"The repository with name '{repository}' in registry with id '{exchange.host.split('.')[0]}' " \
                "already has the maximum allowed number of images which is '10000'"
            return self.refuse(exchange, 403, "DENIED", text)
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in state["immutable"]) and self.exists(exchange):
            text = f"The image tag '{name}' already exists in the '{repository}' repository " \
                f"and cannot be overwritten because the {state['immutable_wording']} is immutable."
            return self.refuse(exchange, 400, "TAG_INVALID", text)
        body = exchange.body()
        if not declares_media_type(exchange, body):
            return self.refuse(exchange, 405, "UNSUPPORTED", "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'")
        return self.store_manifest(exchange, state, body)

    def exists(self, exchange):
        return self.upstream.ask("HEAD", exchange.path, {"Accept": MANIFESTS})[0] == 200

    def store_manifest(self, exchange, state, body):
        headers = {"Content-Type": exchange.headers.get("Content-Type", ""), "Content-Length": str(len(body)), "Host": exchange.host}
        answer = self.upstream.request("PUT", exchange.path, {**headers, "X-Forwarded-Proto": "https"}, body)
        kept = {name: answer.headers[name] for name in ("Content-Type", "Docker-Content-Digest", "OCI-Subject") if answer.headers[name]}
        if state["manifest_location"] and answer.headers["Location"]:
            kept["Location"] = answer.headers["Location"]
        exchange.reply(answer.status, kept, answer.read())


def declares_media_type(exchange, body):
    """ECR refuses an OCI manifest whose document does not name its own type."""
    try:
        return ".oci." not in exchange.headers.get("Content-Type", "") or bool(json.loads(body).get("mediaType"))
    except (ValueError, AttributeError):
        return False


class Bucket(Service):
    """The object store behind: signed addresses, and none of somebody's Authorization."""

    defaults = {"status": None}

    def __init__(self, name, log, upstream):
        super().__init__(name, log)
        self.upstream, self.signed = upstream, {}

    def sign(self, path):
        signature = hashlib.sha256(f"{len(self.signed)} {path}".encode()).hexdigest()
        key = f"{path.rpartition(':')[2]}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature={signature}"
        self.signed[f"/{key}"] = path
        return key

    def scope(self, exchange):
        parts = self.signed.get(exchange.path, "").split("/")
        return parts[2] if len(parts) > 2 else ""

    def error_body(self, _exchange, code, message):
        return "application/xml", f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"

    def handle(self, exchange, state):
        path = self.signed.get(exchange.path)
        if path is None:
            return self.refuse(exchange, 403, "AccessDenied", "Access Denied")
        if "Authorization" in exchange.headers:
            text = "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter or the Authorization header should be specified"
            return self.refuse(exchange, 400, "InvalidArgument", text)
        return forward(exchange, self.upstream, path)
