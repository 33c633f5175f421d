"""Stand-ins for the places that give keys and tokens: IMDSv2, ECS, EKS Pod Identity, GitHub's id-token endpoint."""
import base64, json, time, urllib.parse

from web import Closed, Service


def at(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


class InstanceMetadata(Service):
    """EC2's metadata service, version 2 only."""

    defaults = {
        "role": "node-role",  # None: no instance profile
        "key": "AKIAINSTANCE",
        "expires_in_seconds": 21600,
        "region": "us-east-1",
        "silent": False,  # takes the connection and says nothing
    }

    def handle(self, exchange, state):
        if state["silent"]:
            exchange.tell(0, "silent")
            time.sleep(60)
            raise Closed
        if exchange.path == "/latest/api/token":
            return self.token(exchange)
        if exchange.headers.get("X-Aws-Ec2-Metadata-Token") != "imds-token":
            return exchange.reply(401, {}, "Unauthorized")
        answers = {
            "/latest/meta-data/placement/region": state["region"],
            "/latest/dynamic/instance-identity/document": json.dumps({"region": state["region"], "accountId": "123456789012"}),
        }
        root = "/latest/meta-data/iam/security-credentials"
        if state["role"]:
            answers[root], answers[root + "/"] = state["role"], state["role"]
            answers[f"{root}/{state['role']}"] = json.dumps(instance_keys(state))
        if exchange.path not in answers:
            return exchange.reply(404, {}, "Not Found")
        return exchange.reply(200, {"Content-Type": "text/plain"}, answers[exchange.path])

    def token(self, exchange):
        name = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
        seconds = exchange.headers.get(name, "")
        if exchange.command != "PUT" or not seconds.isdigit():
            return exchange.reply(405 if exchange.command != "PUT" else 400)
        return exchange.reply(200, {name: seconds, "Content-Type": "text/plain"}, "imds-token")


def instance_keys(state):
    keys = container_keys(state)
    return {"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": at(0), **keys}


def container_keys(state):
    return {
        "AccessKeyId": state["key"], "SecretAccessKey": "secret-of-the-stack", "Token": "session-token-of-the-stack",
        "Expiration": at(state["expires_in_seconds"]),
    }


class Container(Service):
    """ECS's task credentials; with a token, EKS Pod Identity's."""

    def __init__(self, name, log, key, token=None):
        self.defaults = {"key": key, "token": token, "expires_in_seconds": 3600}
        super().__init__(name, log)

    def handle(self, exchange, state):
        if state["token"] and exchange.headers.get("Authorization") != state["token"]:
            return exchange.reply_json(401, {"message": "the token is not valid"})
        return exchange.reply_json(200, container_keys(state))


class IdTokens(Service):
    """GitHub's id-token endpoint: a bearer token in, a short-lived JWT out. Its URL has a query already."""

    defaults = {"request_token": "github-request-token", "expires_in_seconds": 300}

    def handle(self, exchange, state):
        query = urllib.parse.parse_qs(exchange.path.partition("?")[2])
        exchange.notes["audience"] = query.get("audience", [""])[0]
        if exchange.headers.get("Authorization", "").lower() != f"bearer {state['request_token']}":
            return exchange.reply_json(401, {"message": "the request token is not valid"})
        if query.get("api-version") != ["2.0"]:
            return exchange.reply_json(400, {"message": "the query that the URL came with is lost"})
        return exchange.reply_json(200, {"count": state.count("tokens"), "value": jwt(exchange.notes["audience"], state)})


def jwt(audience, state):
    now = int(time.time())
    claims = {"iss": "https://token.actions.githubusercontent.com", "aud": audience, "sub": "repo:octo/app:ref:refs/heads/main",
              "iat": now, "exp": now + state["expires_in_seconds"], "jti": str(state.count("jti"))}
    parts = [{"alg": "RS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])
