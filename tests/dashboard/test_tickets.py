"""A ticket opens the page once; what is kept of it afterwards opens nothing."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urljoin

import pytest

from otf_core.dashboard.security import CSP
from otf_core.dashboard.tickets import LIFE_S, MAX_KEPT, NOTEBOOKS, Tickets
from otf_core.rendezvous import read_only_token
from tests.dashboard.bench import TOKEN, Bench, dashboard, in_loop


def test_a_ticket_carries_the_token_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue("s3cret")
    assert "s3cret" not in ticket
    first, again = tickets.use(ticket), tickets.use(ticket)
    assert first is not None
    assert first.endswith("#token=s3cret")
    assert again == first.removesuffix("#token=s3cret")
    assert tickets.use("another") is None
    assert tickets.use("") is None


@pytest.mark.parametrize(("age_s", "opens"), [(LIFE_S - 0.1, True), (LIFE_S, False)])
def test_a_ticket_is_worth_nothing_after_a_minute(age_s: float, opens: bool) -> None:
    now = 100.0
    tickets = Tickets(lambda: now)
    ticket = tickets.issue("s3cret")
    now += age_s
    assert ("token" in str(tickets.use(ticket))) is opens


def test_only_so_many_are_kept() -> None:
    tickets = Tickets()
    first = tickets.issue("s3cret")
    for _ in range(MAX_KEPT):
        last = tickets.issue("s3cret")
    assert tickets.use(first) is None
    assert tickets.use(last) is not None


def test_a_page_is_framed_by_this_machine_only_where_its_address_names_a_frame() -> None:
    tickets = Tickets()
    where = tickets.use(tickets.issue("s3cret"))
    assert where is not None
    frame = where.removeprefix("?frame=").partition("#")[0]
    assert tickets.policy(CSP, None) == tickets.policy(CSP, "guessed") == CSP
    framed = tickets.policy(CSP, frame)
    assert framed == CSP.replace("'self'; base", "'self'; base") + f" {NOTEBOOKS}"
    assert "*" not in NOTEBOOKS.replace("localhost:*", "").replace("127.0.0.1:*", "")


async def _ticket(bench: Bench, token: str = TOKEN) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    answer = await bench.http.post("api/tickets", headers=headers)
    assert answer.status_code == 200
    assert answer.json()["expires_s"] == LIFE_S
    return str(answer.json()["path"])


@in_loop
async def test_the_page_is_opened_from_where_it_lies(tmp_path: Path) -> None:
    async with dashboard(tmp_path, root_path="/user/me/proxy/8000") as bench:
        for prefix in ("", "user/me/proxy/8000/"):
            for token in (TOKEN, read_only_token(TOKEN)):
                path = await _ticket(bench, token)
                asked = urljoin(bench.dashboard.url, prefix + path)
                seen = await bench.http.head(asked)  # uses nothing up
                assert seen.status_code == 404
                answer = await bench.http.get(asked)
                assert answer.status_code == 303
                page = urljoin(asked, answer.headers["location"])
                assert page.startswith(f"{bench.dashboard.url}{prefix}?frame=")
                assert page.endswith(f"#token={token}")
                assert answer.headers["cache-control"] == "no-store"
                again = await bench.http.get(asked)
                assert "token" not in again.headers["location"]
                served = await bench.http.get(page)
                assert "http://localhost:*" in served.headers["content-security-policy"]
        plain = await bench.http.get("")
        assert plain.headers["content-security-policy"] == CSP
        guessed = await bench.http.get("?frame=guessed")
        assert guessed.headers["content-security-policy"] == CSP


@in_loop
async def test_without_a_token_there_is_no_ticket(tmp_path: Path) -> None:
    async with dashboard(tmp_path) as bench:
        answer = await bench.http.post("api/tickets", headers={"Authorization": "Bearer wrong"})
        assert answer.status_code == 401
        foreign = {"Origin": "http://evil.example"}
        answer = await bench.http.post("api/tickets", headers=foreign)
        assert answer.status_code == 403
        answer = await bench.http.get("open/guessed")
        assert answer.status_code == 404
        assert "location" not in answer.headers
