"""Four grants, their refusals, and what becomes of a session."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator, SimulatorError

from .conftest import Client, error

JWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
LOGIN, TEST = "https://login.salesforce.com", "https://test.salesforce.com"
DIGEST = bytes.fromhex("3031300d060960864801650304020105000420")


def numbers_of(pem: str) -> list[int]:
    """The integers of a PKCS #8 key: version, modulus, exponent, private exponent, …"""
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))

    def element(data: bytes) -> tuple[int, bytes, bytes]:
        size, start = data[1], 2
        if size & 128:
            start = 2 + (size & 127)
            size = int.from_bytes(data[2:start])
        return data[0], data[start : start + size], data[start + size :]

    _, whole, _ = element(der)
    _, _, rest = element(whole)
    _, _, rest = element(rest)
    _, octets, _ = element(rest)
    _, inner, _ = element(octets)
    found = []
    while inner:
        _, number, inner = element(inner)
        found.append(int.from_bytes(number))
    return found


def jwt(pem: str, **claims: Any) -> str:
    """An RS256 token, made without the simulator's own arithmetic."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    head = json.dumps({"alg": "RS256"}).encode()
    text = f"{part(head)}.{part(json.dumps(claims).encode())}"
    _, modulus, _, private, *_ = numbers_of(pem)
    digest = DIGEST + hashlib.sha256(text.encode()).digest()
    padded = b"\x00\x01" + b"\xff" * (256 - 3 - len(digest)) + b"\x00" + digest
    return f"{text}.{part(pow(int.from_bytes(padded), private, modulus).to_bytes(256))}"


def refusal(answer: requests.Response) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error"], answer.json()["error_description"]


def test_client_credentials_by_body_and_by_basic_header(
    client: Client, simulator: Simulator
) -> None:
    given = simulator.credentials
    assert set(given) == {"instance_url", "client_id", "client_secret"}
    url = f"{simulator.url}/services/oauth2/token"
    keys = (given["client_id"], given["client_secret"])
    answer = requests.post(url, data={"grant_type": "client_credentials"}, auth=keys, timeout=5)
    body = answer.json()
    assert "expires_in" not in body
    assert "refresh_token" not in body
    assert body["token_type"] == "Bearer"
    assert body["access_token"].startswith("00D")
    assert "!" in body["access_token"]
    assert body["issued_at"].isdigit()
    wrong = client.token(grant_type="client_credentials", client_id=keys[0], client_secret="no")
    assert refusal(wrong)[:2] == (400, "invalid_client")
    unknown = client.token(grant_type="client_credentials", client_id="x", client_secret="y")
    assert refusal(unknown)[:2] == (400, "invalid_client_id")


def test_client_credentials_are_refused_on_the_login_hosts(client: Client) -> None:
    keys = {name: client.credentials[name] for name in ("client_id", "client_secret")}
    form = {"grant_type": "client_credentials"} | keys
    assert refusal(client.token("/login.salesforce.com", **form))[:2] == (400, "invalid_grant")
    url = f"{client.simulator.url}/services/oauth2/token"
    host = {"Host": "login.example.com"}
    assert requests.post(url, data=form, headers=host, timeout=5).status_code == 400


def test_jwt_bearer_checks_signature_audience_and_expiry(
    client: Client, simulator: Simulator
) -> None:
    given = simulator.control("credentials", grant="jwt")["credentials"]
    assert set(given) == {"instance_url", "client_id", "username", "private_key"}
    claims = {"iss": given["client_id"], "sub": given["username"], "aud": LOGIN}

    def ask(**changes: Any) -> requests.Response:
        told = claims | {"exp": int(time.time()) + 180} | changes
        return client.token(grant_type=JWT, assertion=jwt(given["private_key"], **told))

    assert ask().json()["access_token"]
    assert refusal(ask(aud=TEST))[2] == "audience is invalid"
    assert refusal(ask(exp=int(time.time()) - 1))[2] == "assertion is expired"
    assert "too far" in refusal(ask(exp=int(time.time()) + 3600))[2]
    assert "approved" in refusal(ask(sub="somebody@else.example"))[2]
    assert refusal(ask(iss="unknown"))[1] == "invalid_client_id"
    sound = jwt(given["private_key"], **claims, exp=int(time.time()) + 180)
    assert refusal(client.token(grant_type=JWT, assertion=sound[:-8] + "AAAAAAAA"))[2] == (
        "invalid assertion"
    )


def test_a_refresh_token_is_rotated_and_the_old_one_dies(
    client: Client, simulator: Simulator
) -> None:
    given = simulator.control("credentials", grant="refresh_token")["credentials"]
    form = {name: value for name, value in given.items() if name != "instance_url"}
    form |= {"grant_type": "refresh_token"}
    first = client.token(**form).json()
    assert first["refresh_token"] != given["refresh_token"]
    assert refusal(client.token(**form)) == (400, "invalid_grant", "expired access/refresh token")
    again = client.token(**(form | {"refresh_token": first["refresh_token"]}))
    assert again.status_code == 200
    simulator.control("rotation", on=False)
    form["refresh_token"] = again.json()["refresh_token"]
    answers = [client.token(**form) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "refresh_token" not in answers[0].json()


def test_the_sixth_grant_kills_the_oldest(client: Client, simulator: Simulator) -> None:
    given = [simulator.control("credentials", grant="refresh_token") for _ in range(6)]

    def status(one: dict[str, Any]) -> int:
        form = {k: v for k, v in one["credentials"].items() if k != "instance_url"}
        return client.token(grant_type="refresh_token", **form).status_code

    assert [status(one) for one in given] == [400, 200, 200, 200, 200, 200]


def test_password_grant_wants_the_security_token(client: Client, simulator: Simulator) -> None:
    given = simulator.control("credentials", grant="password")["credentials"]
    form = {"grant_type": "password", "client_id": given["client_id"]}
    form |= {"client_secret": given["client_secret"], "username": given["username"]}
    whole = given["password"] + given["security_token"]
    assert client.token(**form, password=whole).status_code == 200
    refused = (400, "invalid_grant", "authentication failure")
    assert refusal(client.token(**form, password=given["password"])) == refused


def test_sandbox_and_production_hosts_are_not_mixed_up(
    client: Client, simulator: Simulator
) -> None:
    simulator.control("add_company", company_id="box", sandbox=True, sizes={"cases": 5})
    given = simulator.control("credentials", company_id="box", grant="password")["credentials"]
    assert given["username"].endswith(".sandbox")
    form = {"grant_type": "password", "client_id": given["client_id"]}
    form |= {"client_secret": given["client_secret"], "username": given["username"]}
    form["password"] = given["password"] + given["security_token"]
    assert refusal(client.token("/login.salesforce.com", **form))[1] == "invalid_client_id"
    assert client.token("/test.salesforce.com", **form).status_code == 200
    simulator.control("sandbox", company_id="box", on=False)
    assert refusal(client.token("/test.salesforce.com", **form))[1] == "invalid_client_id"


def test_soap_login_and_its_invalid_login(client: Client, simulator: Simulator) -> None:
    given = simulator.control("credentials", grant="password")["credentials"]

    def ask(password: str, host: str = "") -> requests.Response:
        body = (
            f"<n1:username>{given['username']}</n1:username><n1:password>{password}</n1:password>"
        )
        url = f"{simulator.url}{host}/services/Soap/u/60.0"
        return requests.post(url, data=body, timeout=5)

    whole = given["password"] + given["security_token"]
    told = ask(whole).text
    assert "<serverUrl>" in told
    token = told.partition("<sessionId>")[2].partition("<")[0]
    client.session.headers["Authorization"] = f"Bearer {token}"
    assert client.get("limits").status_code == 200
    assert ask(given["password"]).status_code == 500
    assert "INVALID_LOGIN" in ask(whole, "/test.salesforce.com").text


def test_a_session_ends_after_its_lifetime_and_at_once(
    client: Client, simulator: Simulator
) -> None:
    simulator.control("advance", seconds=7190)
    assert client.get("limits").status_code == 200
    simulator.control("advance", seconds=20)
    assert error(client.get("limits")) == (401, "INVALID_SESSION_ID")
    simulator.control("session", lifetime_seconds=60)
    client.login()
    simulator.control("advance", seconds=61)
    assert error(client.get("limits")) == (401, "INVALID_SESSION_ID")
    client.login()
    assert simulator.control("expire")["expired"] == 1
    assert error(client.get("limits")) == (401, "INVALID_SESSION_ID")
    client.session.headers["Authorization"] = "Bearer nonsense"
    assert error(client.get("limits")) == (401, "INVALID_SESSION_ID")


def test_a_session_dies_in_the_middle_of_a_stream(client: Client, simulator: Simulator) -> None:
    simulator.control("hostility", faults=[{"kind": "session_expired", "at": [2]}])
    statuses = [client.soql("SELECT Id FROM Case").status_code for _ in range(3)]
    assert statuses == [200, 401, 401]
    client.login()
    assert client.soql("SELECT Id FROM Case").status_code == 200


def test_the_same_code_for_a_missing_permission(client: Client, simulator: Simulator) -> None:
    simulator.control("api", rest=False)
    answer = client.get("limits")
    assert error(answer) == (401, "INVALID_SESSION_ID")
    assert answer.json()[0]["message"] == "This session is not valid for use with the REST API"
    client.login()
    assert client.get("limits").status_code == 401
    simulator.control("api", rest=True, enabled=False)
    assert error(client.get("limits")) == (403, "API_DISABLED_FOR_ORG")


@pytest.mark.parametrize("to", ["localhost", "port"])
def test_the_instance_is_another_host_than_the_login(
    client: Client, simulator: Simulator, to: str
) -> None:
    moved = simulator.control("instance", to=to)["instance_url"]
    assert moved != simulator.url
    assert error(client.get("limits")) == (401, "INVALID_SESSION_ID")
    client.login()
    assert client.root == moved
    assert client.get("limits").status_code == 200


def test_a_revoked_app(client: Client, simulator: Simulator) -> None:
    simulator.control("revoke")
    assert error(client.get("limits")) == (401, "INVALID_SESSION_ID")
    keys = {name: client.credentials[name] for name in ("client_id", "client_secret")}
    answer = client.token(grant_type="client_credentials", **keys)
    assert refusal(answer) == (400, "invalid_grant", "inactive user")
    simulator.control("restore")
    assert client.get("limits").status_code == 200


def test_an_unknown_grant_is_explained(simulator: Simulator, client: Client) -> None:
    with pytest.raises(SimulatorError, match="there are"):
        simulator.control("credentials", grant="magic")
    answer = client.token(grant_type="magic", client_id=client.credentials["client_id"])
    assert refusal(answer)[1] == "unsupported_grant_type"
    url = f"{simulator.url}/services/oauth2/token"
    assert requests.get(url, timeout=5).json()["error_description"] == "must use HTTP POST"


def test_secrets_stay_out_of_the_log(client: Client, simulator: Simulator) -> None:
    secret = client.credentials["client_secret"]
    url = f"{simulator.url}/services/oauth2/token?client_secret={secret}"
    requests.post(url, data={"grant_type": "client_credentials"}, timeout=5)
    assert secret not in json.dumps(simulator.control("stats", log=50))
