# SPDX-License-Identifier: Apache-2.0
"""``--authorization kubernetes``: who gets an answer, by what the API server says of tokens."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.serve.authorization import STRANGERS, Authorization
from probes.serve.endpoints import OPEN_TO_ALL
from probes.serve.reviews import LaneLimits
from probes.vmi.access import Presented, Ruling, User
from probes.vmi.kube.credentials import InCluster
from probes.vmi.kube.reviewer import Reviewer
from tests.support.apireviews import ACCESS, TOKENS
from tests.support.apiserver import ApiServer, Fault, FaultKind
from tests.support.certificates import Authority
from tests.support.kernel_world import wait_for
from tests.support.serving import DEADLINE_S, LOG, Answer, Peer, Serving, text

ROUTES = {
    "/": text("page"),
    "/metrics": text("samples"),
    "/why/*": text("why"),
    "/healthz": text("alive"),
    "/readyz": text("ready"),
}


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api").running() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


def reviewer(api: ApiServer, *, answer_deadline_s: float = DEADLINE_S) -> Reviewer:
    """The reviewer of an agent in a pod of the cluster."""
    account = InCluster(token_file=api.token_file, ca_file=api.authority.cert, environ=api.environ)
    return Reviewer(account, answer_deadline_s=answer_deadline_s)


@pytest.fixture
def serving(api: ApiServer, clock: Clock) -> Iterator[Serving]:
    """An agent whose clock stands still."""
    gate = Authorization(reviewer(api).review, log=LOG, clock_s=clock).refusal
    with Serving(ROUTES, open_to_all=OPEN_TO_ALL, gate=gate) as served:
        yield served


def ask(serving: Serving, path: str, *lines: str) -> Answer:
    """GET a path on a new connection."""
    with Peer(serving.port) as peer:
        peer.get(path, *lines)
        return peer.answer()


def with_token(serving: Serving, token: str, path: str = "/metrics") -> int:
    return ask(serving, path, f"Authorization: Bearer {token}").status


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [found.message for found in caplog.records if found.levelno == logging.ERROR]


def test_a_scraper_with_the_right(api: ApiServer, serving: Serving) -> None:
    """Its token is reviewed once and its access once, however often it scrapes."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    for _ in range(5):
        assert ask(serving, "/metrics", f"Authorization: Bearer {token}").body == b"samples"
    (_, asked), (_, access) = api.reviews.asked
    assert asked == {"token": token}
    assert access["user"] == "system:serviceaccount:monitoring:scraper"
    assert access["uid"] == "uid-of-scraper"
    assert access["groups"] == [
        "system:serviceaccounts",
        "system:serviceaccounts:monitoring",
        "system:authenticated",
    ]
    assert access["extra"] == {"authentication.kubernetes.io/pod-name": ["scraper-0"]}
    assert access["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}


def test_without_a_token(api: ApiServer, serving: Serving) -> None:
    """401 with the challenge; the API server is not asked. Kubelet's probes get their answer."""
    answer = ask(serving, "/metrics")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="hvprobe"'
    assert answer.body == b"a bearer token is required\n"
    for path in (
        "/",
        "/why/vms/alpha",
        "/nowhere",
        "/healthz/",
        "//healthz",
        "/healthz/../metrics",
    ):
        assert ask(serving, path).status == 401, path
    for path in OPEN_TO_ALL:
        assert ask(serving, path).status == 200
        assert ask(serving, f"{path}?verbose", "Authorization: Bearer nonsense").status == 200
    assert api.reviews.asked == []


def test_a_token_that_is_not_valid(api: ApiServer, serving: Serving) -> None:
    """401, and the same one is not reviewed again while the refusal holds."""
    for _ in range(3):
        answer = ask(serving, "/metrics", "Authorization: Bearer made.up.token")
        assert answer.status == 401
        assert answer.body == b"the API server does not accept this token\n"
    assert api.reviews.count(TOKENS) == 1
    assert api.reviews.count(ACCESS) == 0


@pytest.mark.parametrize("line", ["Authorization: Basic dTpw", "X-Hvprobe-Token: a b"])
def test_a_malformed_header(line: str, api: ApiServer, serving: Serving) -> None:
    """401 without a question to the API server."""
    assert ask(serving, "/metrics", line).status == 401
    assert api.reviews.asked == []


def test_two_tokens_are_none(api: ApiServer, serving: Serving) -> None:
    """A request with two Authorization headers is refused, whichever of them is valid."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    lines = [f"Authorization: Bearer {token}", "Authorization: Bearer other"]
    assert ask(serving, "/metrics", *lines).status == 401
    assert ask(serving, "/metrics", *reversed(lines)).status == 401


def test_a_user_without_the_right(api: ApiServer, serving: Serving) -> None:
    """403 names user, verb and path. What is allowed for one path opens no other one."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    answer = ask(serving, "/why/vms/alpha", f"Authorization: Bearer {token}")
    assert answer.status == 403
    assert answer.body.startswith(
        b"system:serviceaccount:monitoring:scraper may not get /why/vms/alpha: grant it by"
    )
    assert with_token(serving, token) == 200
    assert with_token(serving, token, "/") == 403


def test_a_right_on_a_folder(api: ApiServer, serving: Serving) -> None:
    """``/why/vms/*`` opens the VMs of that namespace, and no spelling of another one's."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/why/vms/*")
    assert with_token(serving, token, "/why/vms/alpha") == 200
    assert with_token(serving, token, "/why/vms/alpha?of=node") == 200
    for path in ("/why/other/alpha", "/why/%76ms/alpha", "/why//vms/alpha", "/why/vms", "/metrics"):
        assert with_token(serving, token, path) == 403, path


def test_head_is_reviewed_as_get(api: ApiServer, serving: Serving) -> None:
    """A HEAD request needs the right that GET needs."""
    token = api.reviews.token()
    with Peer(serving.port) as peer:
        peer.get("/metrics", f"Authorization: Bearer {token}", method="HEAD")
        assert peer.answer(bodiless=True).status == 403
    api.reviews.allow("monitoring", "scraper", "/metrics")
    other = api.reviews.token()
    with Peer(serving.port) as peer:
        peer.get("/metrics", f"Authorization: Bearer {other}", method="HEAD")
        assert peer.answer(bodiless=True).status == 200


def test_behind_the_pod_proxy(api: ApiServer, serving: Serving) -> None:
    """The header of our own takes tokens for agents only; the server is asked for that audience."""
    api.reviews.allow("hvprobe", "hvprobe-fleet", "/metrics")
    token = api.reviews.token("hvprobe", "hvprobe-fleet", audience="hvprobe")
    assert ask(serving, "/metrics", f"X-Hvprobe-Token: {token}").status == 200
    assert api.reviews.asked[0] == (TOKENS, {"token": token, "audiences": ["hvprobe"]})
    api_token = api.reviews.token("hvprobe", "hvprobe-fleet")
    assert ask(serving, "/metrics", f"X-Hvprobe-Token: {api_token}").status == 401
    # The same token, allowed as that of a scraper, stays refused as that of an agent's client.
    assert with_token(serving, api_token) == 200
    assert ask(serving, "/metrics", f"X-Hvprobe-Token: {api_token}").status == 401


def test_a_scrapers_token_for_agents_only(api: ApiServer, serving: Serving) -> None:
    """A projected token with the audience of agents works in the ordinary header, too."""
    token = api.reviews.token(audience="hvprobe")
    api.reviews.allow("monitoring", "scraper", "/metrics")
    assert with_token(serving, token) == 200
    assert with_token(serving, api.reviews.token(audience="another")) == 401


def test_a_server_without_audiences(api: ApiServer, serving: Serving) -> None:
    """Where the server does not confirm the audience, a token for agents is not valid."""
    api.reviews.knows_audiences = False
    api.reviews.allow("monitoring", "scraper", "/metrics")
    assert with_token(serving, api.reviews.token(audience="hvprobe")) == 401
    assert with_token(serving, api.reviews.token()) == 200


def test_a_right_that_is_taken_away(api: ApiServer, serving: Serving, clock: Clock) -> None:
    """It works until the decision ends, and then no longer; granted again, it works soon."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    assert with_token(serving, token) == 200
    api.reviews.allow("monitoring", "scraper")
    assert with_token(serving, token) == 200
    clock.now_s += 61
    assert with_token(serving, token) == 403
    api.reviews.allow("monitoring", "scraper", "/metrics")
    clock.now_s += 16
    assert with_token(serving, token) == 200


def test_a_token_that_ends(api: ApiServer, serving: Serving, clock: Clock) -> None:
    """A minute after the API server has stopped to accept it, it opens nothing."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    assert with_token(serving, token) == 200
    api.reviews.forget(token)
    clock.now_s += 61
    assert with_token(serving, token) == 401


def test_the_api_server_is_down(
    api: ApiServer, serving: Serving, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What was decided still holds for its time; everything else is refused with 503, logged once.

    Nothing is answered on an old decision. When the server is back, so is the scraper.
    """
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    assert with_token(serving, token) == 200
    api.stop()
    assert with_token(serving, token) == 200
    clock.now_s += 61
    for _ in range(5):
        answer = ask(serving, "/metrics", f"Authorization: Bearer {token}")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.body == b"the API server cannot be asked about the token; see the log\n"
    (line,) = errors(caplog)
    assert line.startswith("a client is refused, because cannot create tokenreviews.")
    assert token not in caplog.text
    assert ask(serving, "/healthz").status == 200
    clock.now_s += 61
    assert with_token(serving, token) == 503
    assert errors(caplog)[1].startswith("5 requests of clients are refused, because cannot create")
    api.start()
    assert with_token(serving, token) == 200
    assert "the API server decides about clients" in caplog.messages


@pytest.mark.parametrize("missing", ["tokenreviews", "subjectaccessreviews"])
def test_the_agent_may_not_review(
    missing: str, api: ApiServer, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """Every client gets 503, and the log names the right and the component that grants it."""
    api.reviews.may.remove(missing)
    api.reviews.allow("monitoring", "scraper", "/metrics")
    assert with_token(serving, api.reviews.token()) == 503
    (line,) = errors(caplog)
    assert f"not allowed to create {missing}." in line
    assert "apply deploy/components/authorization, or set --authorization none" in line


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.GARBAGE, verb="review"),
        Fault(kind=FaultKind.GARBAGE, verb="review", body=b'{"status": {"allowed": "yes"}}'),
        Fault(kind=FaultKind.CLOSE, verb="review"),
        Fault(kind=FaultKind.RESET, verb="review"),
        Fault(kind=FaultKind.STATUS, verb="review", code=500),
        Fault(kind=FaultKind.STATUS, verb="review", code=429, reason="TooManyRequests"),
    ],
    ids=lambda fault: f"{fault.kind.name}-{fault.code}-{len(fault.body)}",
)
def test_a_fault_opens_nothing(fault: Fault, api: ApiServer, serving: Serving) -> None:
    """A review that fails is a refusal, and is not remembered as one."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    api.inject(fault)
    assert with_token(serving, token) in (401, 503)
    api.clear_faults()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    other = api.reviews.token()
    assert with_token(serving, other) == 200


def test_a_review_that_hangs(api: ApiServer) -> None:
    """Its client gets 503 at the deadline, and other clients do not wait."""
    token, other = api.reviews.token(), api.reviews.token(name="another")
    api.reviews.allow("monitoring", "scraper", "/metrics")
    api.reviews.allow("monitoring", "another", "/metrics")
    gate = Authorization(reviewer(api).review, log=LOG, deadline_s=3.0).refusal
    with Serving(ROUTES, open_to_all=OPEN_TO_ALL, gate=gate) as serving:
        api.inject(Fault(kind=FaultKind.HANG, verb="review"))
        with Peer(serving.port) as slow:
            slow.get("/metrics", f"Authorization: Bearer {token}")
            api.wait_for(lambda requests: any(one.verb == "review" for one in requests))
            assert with_token(serving, other) == 200
            assert ask(serving, "/healthz").status == 200
            assert slow.answer().status == 503
            # The connection stays usable, and what was decided since is used.
            slow.get("/metrics", f"Authorization: Bearer {other}")
            assert slow.answer().status == 200


class Reviews:
    """Reviews that wait for the test, and know one scraper."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.lock = threading.Lock()
        self.seen: list[str] = []

    def review(self, presented: Presented, user: User | None, path: str) -> Ruling:
        with self.lock:
            self.seen.append(presented.token)
        if not presented.token.startswith("scraper"):
            assert self.gate.wait(DEADLINE_S)
            return Ruling(user=None, allowed=False)
        return Ruling(user=User(name=presented.token), allowed=True)


def test_a_flood_of_tokens(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Made-up tokens take their own threads only; the scraper is answered, also after a minute.

    What is beyond the bounds is refused at once, and logged once.
    """
    reviews = Reviews()
    authorization = Authorization(reviews.review, log=LOG, clock_s=clock)
    bound = STRANGERS.parallel + STRANGERS.waiting_max
    with Serving(ROUTES, open_to_all=OPEN_TO_ALL, gate=authorization.refusal) as serving:
        assert with_token(serving, "scraper") == 200
        peers = [Peer(serving.port) for _ in range(bound)]
        try:
            for number, peer in enumerate(peers):
                peer.get("/metrics", f"Authorization: Bearer made-up-{number}")
            wait_for(
                lambda: len(authorization._strangers._waiting) == STRANGERS.waiting_max,
                "all other made-up tokens wait",
            )
            answer = ask(serving, "/metrics", "Authorization: Bearer one-more")
            assert (answer.status, answer.body) == (503, b"too many tokens wait for a review\n")
            assert with_token(serving, "scraper") == 200
            clock.now_s += 61
            assert with_token(serving, "scraper") == 200
            assert reviews.seen.count("scraper") == 2
            assert len(reviews.seen) == 2 + STRANGERS.parallel
            reviews.gate.set()
            statuses = [peer.answer().status for peer in peers]
        finally:
            reviews.gate.set()
            for peer in peers:
                peer.sock.close()
    assert statuses.count(401) == STRANGERS.parallel
    # The others waited for longer than a client does, by the clock.
    assert statuses.count(503) == STRANGERS.waiting_max
    first, later = errors(caplog)
    waiting = f"{STRANGERS.waiting_max} reviews wait for the API server"
    assert first == f"a client is refused, because {waiting}"
    assert later == "a client is refused, because no review began within 5 s"


def test_a_fast_flood_of_tokens(clock: Clock) -> None:
    """The API server is asked about so many made-up tokens a second, and no more."""
    reviews = Reviews()
    reviews.gate.set()
    limits = LaneLimits(parallel=3, waiting_max=16, wait_s=5.0, per_s=10, burst=5)
    gate = Authorization(reviews.review, log=LOG, clock_s=clock, strangers=limits).refusal
    with Serving(ROUTES, open_to_all=OPEN_TO_ALL, gate=gate) as serving:
        found = [with_token(serving, f"made-up-{number}") for number in range(20)]
        assert (found.count(401), found.count(503)) == (5, 15)
        clock.now_s += 0.1
        assert with_token(serving, "scraper") == 200
        assert len(reviews.seen) == 6


def test_requests_share_a_review() -> None:
    """Requests with one token that come at once cost one review."""
    reviews = Reviews()
    gate = Authorization(reviews.review, log=LOG).refusal
    with Serving(ROUTES, open_to_all=OPEN_TO_ALL, gate=gate) as serving:
        peers = [Peer(serving.port) for _ in range(20)]
        try:
            for peer in peers:
                peer.get("/metrics", "Authorization: Bearer the-same")
            wait_for(lambda: reviews.seen, "the review begins")
            assert ask(serving, "/healthz").status == 200
            reviews.gate.set()
            assert {peer.answer().status for peer in peers} == {401}
        finally:
            reviews.gate.set()
            for peer in peers:
                peer.sock.close()
    assert reviews.seen == ["the-same"]


def test_a_defect_in_a_review(caplog: pytest.LogCaptureFixture) -> None:
    """Anything that a review raises is a refusal, and the log does not hold the token."""

    def broken(presented: Presented, user: User | None, path: str) -> Ruling:
        raise ValueError(presented.token)

    with Serving(ROUTES, gate=Authorization(broken, log=LOG).refusal) as serving:
        assert with_token(serving, "s3cret") == 503
    assert errors(caplog) == ["a client is refused, because a review failed: ValueError"]
    assert "s3cret" not in caplog.text


def test_a_certificate_or_a_token(api: ApiServer, authority: Authority) -> None:
    """With a client CA, too, a certificate admits to everything, and a token replaces it."""
    token = api.reviews.token()
    api.reviews.allow("monitoring", "scraper", "/metrics")
    gate = Authorization(reviewer(api).review, log=LOG).refusal
    files = authority.server_files(client_ca=authority.cert)
    known = authority.client_context(authority.issue("scraper"))
    unknown = authority.client_context()
    with Serving(ROUTES, tls=files, open_to_all=OPEN_TO_ALL, gate=gate) as serving:
        for context, lines, path, status in (
            (known, [], "/", 200),
            (known, ["Authorization: Bearer nonsense"], "/", 200),
            (unknown, [], "/metrics", 401),
            (unknown, [f"Authorization: Bearer {token}"], "/metrics", 200),
            (unknown, [f"Authorization: Bearer {token}"], "/", 403),
            (unknown, [], "/healthz", 200),
        ):
            with Peer(serving.port, tls=context) as peer:
                peer.get(path, *lines)
                assert peer.answer().status == status, (lines, path)


def test_without_the_flag_tokens_are_not_looked_at() -> None:
    """A scraper that shows a token to an agent that asks for none gets its answer."""
    with Serving(ROUTES) as serving:
        assert with_token(serving, "anything") == 200
