"""Basic authentication and OAuth, with the ways in which both say no."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from avesa_dagster.sandbox.process import Simulator

from .conftest import NOW, Client

NOT_AUTHENTICATED = {
    "error": {
        "message": "User Not Authenticated",
        "detail": "Required to provide Auth information",
    },
    "status": "failure",
}


def keys(client: Client) -> dict[str, str]:
    """All four: client_id, client_secret, username and password."""
    given = client.control("companies")["companies"]["acme_msp"]["password"]
    return {name: value for name, value in given.items() if name != "instance_url"}


def ask(client: Client, **form: str) -> requests.Response:
    return requests.post(f"{client.url}/oauth_token.do", data=form, timeout=10)


def token(client: Client, grant: str = "password") -> dict[str, Any]:
    answer = ask(client, grant_type=grant, **keys(client))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def status_with(client: Client, authorization: str) -> int:
    answer = requests.get(
        f"{client.url}/api/now/table/incident",
        params={"sysparm_limit": 1},
        headers={"Authorization": authorization} if authorization else {},
        timeout=10,
    )
    if answer.status_code == 401:
        assert answer.json() == NOT_AUTHENTICATED
    return answer.status_code


def test_without_good_credentials_nothing_is_given(client: Client) -> None:
    assert status_with(client, "") == 401
    assert status_with(client, "Basic bm9ib2R5Om5vdGhpbmc=") == 401
    assert status_with(client, "Basic %%%") == 401
    assert status_with(client, "Bearer made-up") == 401
    assert client.get("table/incident", limit=1).status_code == 200


def test_revoked_credentials_and_their_return(client: Client) -> None:
    bearer = f"Bearer {token(client)['access_token']}"
    client.control("revoke")
    assert client.get("table/incident").status_code == 401
    assert status_with(client, bearer) == 401
    assert ask(client, grant_type="password", **keys(client)).status_code == 401
    client.control("restore")
    assert client.get("table/incident").status_code == 200


def test_password_grant(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    given = token(client)
    assert set(given) == {
        "access_token",
        "refresh_token",
        "scope",
        "token_type",
        "expires_in",
    }
    assert (given["scope"], given["token_type"]) == ("useraccount", "Bearer")
    assert given["expires_in"] == 1800
    assert status_with(client, f"Bearer {given['access_token']}") == 200
    assert client.control("stats")["by_kind"] == {"token": 1, "list": 1}


def test_asking_again_gives_the_same_token_with_less_time(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    first = token(client)
    client.control("advance", seconds=700)
    second = token(client)
    assert second["access_token"] == first["access_token"]
    assert second["expires_in"] == 1100
    client.control("advance", seconds=1100)
    assert status_with(client, f"Bearer {first['access_token']}") == 401
    assert token(client)["access_token"] != first["access_token"]


def test_refreshing_changes_only_the_access_token(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    first, client_keys = token(client), keys(client)
    client_keys |= {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
    second = ask(client, **client_keys).json()
    assert second["access_token"] != first["access_token"]
    assert second["refresh_token"] == first["refresh_token"]
    assert status_with(client, f"Bearer {second['access_token']}") == 200
    client.control("advance", seconds=8_640_001)
    refused = ask(client, **client_keys)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_grant")


def test_lifetime_can_be_set_and_all_tokens_ended(client: Client) -> None:
    client.control("clock", now=NOW, stopped=True)
    client.control("token", lifetime=60)
    given = token(client)
    assert given["expires_in"] == 60
    client.control("expire_tokens")
    assert status_with(client, f"Bearer {given['access_token']}") == 401
    again = token(client)
    assert again["refresh_token"] == given["refresh_token"]
    client.control("expire_tokens", refresh=True)
    refused = ask(
        client,
        **keys(client),
        grant_type="refresh_token",
        refresh_token=again["refresh_token"],
    )
    assert refused.status_code == 401


def test_only_a_form_in_the_body_is_read(client: Client) -> None:
    form = keys(client) | {"grant_type": "password"}
    there = f"{client.url}/oauth_token.do"
    for answer in (
        requests.post(there, json=form, timeout=10),
        requests.post(there, params=form, timeout=10),
        ask(client, **form | {"client_secret": "wrong"}),
        ask(client, **form | {"password": "wrong"}),
    ):
        assert answer.status_code == 401
        assert answer.json() == {"error": "access_denied", "error_description": "access_denied"}
    assert ask(client, **form | {"grant_type": "magic"}).json()["error"] == "server_error"


def test_client_credentials_need_a_property_and_have_no_refresh_token(client: Client) -> None:
    form = keys(client) | {"grant_type": "client_credentials"}
    refused = ask(client, **form)
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized_client")
    client.control(
        "property",
        name="glide.oauth.inbound.client.credential.grant_type.enabled",
        value=True,
    )
    given = ask(client, **form).json()
    assert "refresh_token" not in given
    assert status_with(client, f"Bearer {given['access_token']}") == 200


def test_the_password_grant_can_be_disabled(client: Client) -> None:
    client.control("property", name="glide.oauth.inbound.ropc.grant_type.disabled", value="true")
    refused = ask(client, grant_type="password", **keys(client))
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized_client")


def test_a_hibernating_instance_answers_everything_with_a_page(client: Client) -> None:
    client.control("hibernate")
    for answer in (client.get("table/incident"), ask(client, grant_type="password")):
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "hibernating" in answer.text
    client.control("hibernate", on=False)
    assert client.get("table/incident").json()["result"]


@pytest.mark.parametrize(
    ("grant", "names"),
    [("password", 4), ("client_credentials", 2)],
)
def test_the_shape_of_the_credentials_can_be_chosen(grant: str, names: int) -> None:
    with Simulator("servicenow", grant=grant, incidents=1) as simulator:
        given = dict(simulator.credentials)
        there = given.pop("instance_url")
        assert len(given) == names
        form = given | {"grant_type": grant}
        assert requests.post(f"{there}/oauth_token.do", data=form, timeout=10).status_code == 200
