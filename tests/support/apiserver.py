# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes API server for tests: VMIs by the real list-and-watch protocol, Events, reviews.

All over TLS.

It serves `ApiStore` the way kube-apiserver serves a custom resource: bearer tokens and RBAC verbs,
Status objects worded as the real ones, selectors, chunked lists with continue tokens, watches as
chunked JSON lines with bookmarks, 410 both as an HTTP status and as an ERROR event. It refuses what
the real server refuses, and query parameters the real one would silently ignore. Faults are asked
for with `inject`, or done to open watches with `end_watches`, `cut_watches`, `mute_watches`.
`restart` is the restart of a kube-apiserver, as its clients see it.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from urllib.parse import parse_qsl, urlsplit

from tests.support import apievents, apipods, apireviews
from tests.support.apievents import EventRefusedError, EventStore
from tests.support.apistore import (
    ApiStore,
    ExpiredError,
    JsonObject,
    Matcher,
    SelectorError,
    event_of,
    matcher,
)
from tests.support.certificates import Authority

GROUP = "kubevirt.io"
RESOURCE = "virtualmachineinstances"
USER = "system:serviceaccount:hvprobe:hvprobe"
ANONYMOUS = "system:anonymous"
_ROUTE = re.compile(rf"/apis/{re.escape(GROUP)}/v1(?:/namespaces/([^/]+))?/{RESOURCE}(?:/([^/]+))?")
_PARAMETERS = {
    "allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "pretty",
    "resourceVersion", "resourceVersionMatch", "timeoutSeconds", "watch",
}  # fmt: skip
_CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start "
    "a new list without the continue parameter, or use the continue token in this response to "
    "retrieve the remainder of the results."
)


class FaultKind(Enum):
    """What happens to a request instead of its answer."""

    HANG = "no answer, the connection stays open"
    STALL = "status and headers, then nothing"
    CLOSE = "the connection ends before an answer"
    RESET = "the connection is reset before an answer"
    STATUS = "a refusal"
    GARBAGE = "an answer that is not what was asked for"
    TRUNCATE = "half of a list's body, then the connection ends"
    SLOW = "the true answer of a list, in small pieces"
    EMPTY_WATCH = "a watch that ends in order at once"
    ERROR_EVENT = "a watch whose only line is an ERROR event"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What to do to the next `times` requests of this verb (None: any), from this page on."""

    kind: FaultKind
    verb: str | None = None
    times: int = 1
    code: int = 500
    message: str = "Internal error occurred: etcdserver: request timed out"
    reason: str = "InternalError"
    retry_after: str | None = None
    body: bytes = b"<html>502 Bad Gateway</html>\n"
    later_pages_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it came, and the HTTP status it got (0: none, a fault)."""

    verb: str
    path: str
    params: dict[str, str]
    authorization: str | None
    status: int
    at_s: float
    """time.monotonic() when it was answered."""


class StatusError(Exception):
    """A refusal: HTTP status, reason and message of a Status object."""

    def __init__(self, code: int, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.code = code
        self.body: JsonObject = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


class ApiServer:
    """The server; `start`, `stop` and `start` again keep port and objects."""

    def __init__(self, directory: Path, *, bookmark_interval_s: float = 60.0) -> None:
        self.store = ApiStore()
        self.events = EventStore()
        self.pods = apipods.PodStore()
        self.reviews = apireviews.ReviewStore()
        self.authority = Authority(directory / "ca", "kubernetes")
        self.tokens = {"token-1": USER}
        """Accepted bearer tokens and the user each names."""
        self.grants = {"get", "list", "watch"}
        """RBAC verbs on the resource; the same for every user but anonymous. ``create`` is the verb
        on Events."""
        self.bookmark_interval_s = bookmark_interval_s
        self.expire_over_http = False
        """True: a watch from too old a version gets HTTP 410 (old servers); else an ERROR event."""
        self.close_after_watch = False
        """True: watches end with their connection, as behind some proxies."""
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self.generation = 0
        """Open watches of an earlier generation end, each in the way of `ending`."""
        self.ending: FaultKind | bytes = FaultKind.EMPTY_WATCH
        self.context = self.authority.server_context()
        self._directory = directory
        self._faults: list[Fault] = []
        self._port = 0
        self._tcp: _Tcp | None = None
        self._thread: threading.Thread | None = None
        self.token_file = directory / "serviceaccount" / "token"
        self.token_file.parent.mkdir(parents=True)
        self.token_file.write_text("token-1")

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def environ(self) -> dict[str, str]:
        """What Kubernetes sets in a pod."""
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._port),
        }

    def kubeconfig(self) -> Path:
        """A kubeconfig with the CA inline and the token, as JSON, which is YAML."""
        ca = base64.b64encode(self.authority.cert.read_bytes()).decode()
        file = self._directory / "kubeconfig"
        cluster = {"server": self.url, "certificate-authority-data": ca}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "agent", "user": {"token": next(iter(self.tokens))}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "agent"}}],
        }
        file.write_text(json.dumps(config))
        return file

    def start(self) -> None:
        self.stopping.clear()
        self._tcp = _Tcp(("127.0.0.1", self._port), self)
        self._port = self._tcp.server_address[1]
        self._thread = threading.Thread(target=self._tcp.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on and cut the open ones; returns when all threads ended."""
        if self._tcp is None or self._thread is None:
            return
        self.stopping.set()
        self._notify()
        self._tcp.shutdown()
        self._tcp.cut()
        self._tcp.server_close()
        self._thread.join()
        self._tcp = None

    def restart(self, *, busy: int) -> None:
        """Stop and start with an empty watch cache: no watch may begin from before the start.

        While the cache fills, which is for the first `busy` watches here, they get 429.
        """
        self.stop()
        self.store.compact()
        self.inject(
            Fault(
                kind=FaultKind.STATUS,
                verb="watch",
                times=busy,
                code=429,
                reason="TooManyRequests",
                message="storage is (re)initializing",
                retry_after="1",
            )
        )
        self.start()

    @contextmanager
    def running(self) -> Iterator[ApiServer]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def inject(self, fault: Fault) -> None:
        with self.store.changed:
            self._faults.extend([fault] * fault.times)

    def clear_faults(self) -> None:
        with self.store.changed:
            self._faults.clear()

    def end_watches(self) -> None:
        """End all open watches in order, as at their timeoutSeconds."""
        self._end(FaultKind.EMPTY_WATCH)

    def cut_watches(self) -> None:
        """Cut the connections of all open watches."""
        self._end(FaultKind.RESET)

    def mute_watches(self) -> None:
        """Send nothing more on all open watches and keep them open."""
        self._end(FaultKind.HANG)

    def send_raw(self, line: bytes) -> None:
        """Send these bytes on all open watches, then end them in order."""
        self._end(line)

    def wait_for(
        self, condition: Callable[[list[Request]], bool], deadline_s: float = 10.0
    ) -> None:
        """Wait until the requests answered so far satisfy `condition`."""
        with self.store.changed:
            met = self.store.changed.wait_for(lambda: condition(self.requests), deadline_s)
        assert met, f"not met within {deadline_s} s; requests so far: {self.requests}"

    def answered(self, verb: str, status: int = 200) -> int:
        """How many requests of a verb got this status."""
        with self.store.changed:
            return sum(r.verb == verb and r.status == status for r in self.requests)

    def record(self, request: Request) -> None:
        with self.store.changed:
            self.requests.append(request)
            self.store.changed.notify_all()

    def take_fault(self, verb: str, later_page: bool) -> Fault | None:
        with self.store.changed:
            for fault in self._faults:
                if fault.verb in {None, verb} and (later_page or not fault.later_pages_only):
                    self._faults.remove(fault)
                    return fault
        return None

    def _end(self, how: FaultKind | bytes) -> None:
        with self.store.changed:
            self.ending = how
            self.generation += 1
            self.store.changed.notify_all()

    def _notify(self) -> None:
        with self.store.changed:
            self.store.changed.notify_all()


class _Tcp(ThreadingMixIn, TCPServer):
    """Accepts; the TLS handshake is each connection's own thread's business."""

    allow_reuse_address = True
    request_queue_size = 64
    daemon_threads = False
    block_on_close = True

    def __init__(self, address: tuple[str, int], api: ApiServer) -> None:
        self.api = api
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        assert isinstance(request, socket.socket)
        with suppress(OSError):  # the peer may leave at any time, even before the socket is wrapped
            tls = self.api.context.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
            self._open.add(tls)
            try:
                with tls:
                    if not self.api.stopping.is_set():
                        tls.do_handshake()
                        self.finish_request(tls, client_address)
            finally:
                self._open.discard(tls)

    def cut(self) -> None:
        """End all connections, whatever their threads are at."""
        for each in list(self._open):
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Tcp

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nothing: the requests are recorded."""

    def do_GET(self) -> None:
        self._api = self.server.api
        split = urlsplit(self.path)
        self._params = dict(parse_qsl(split.query, keep_blank_values=True))
        self._verb = "watch" if _true(self._params.get("watch")) else "list"
        if apipods.PROXY.fullmatch(split.path):
            self._verb = "proxy"
        route = _ROUTE.fullmatch(split.path)
        if route is not None and route[2] is not None:
            self._verb = "get"
        fault = self._api.take_fault(self._verb, "continue" in self._params)
        if fault is not None and self._do_fault(fault):
            return
        try:
            self._authorize(route)
            if route is None and self._serve_pods(split.path, split.query):
                return
            if route is None:
                raise _not_found("the server could not find the requested resource")
            self._serve(route[1], route[2], fault)
        except StatusError as error:
            self._answer(error.code, json.dumps(error.body).encode())

    def _refuse_verb(self) -> None:
        self._api = self.server.api
        self._verb, self._params = self.command.lower(), {}
        body = StatusError(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ).body
        self.close_connection = True
        self._answer(405, json.dumps(body).encode())

    def do_POST(self) -> None:
        split = urlsplit(self.path)
        route = apievents.ROUTE.fullmatch(split.path)
        if route is None and apipods.TOKEN.fullmatch(split.path):
            self._serve_token(split.path)
            return
        if split.path in apireviews.RESOURCES:
            self._serve_review(split.path)
            return
        if route is None:
            self._refuse_verb()
            return
        self._api, self._verb = self.server.api, "create"
        self._params = dict(parse_qsl(split.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self._api.take_fault(self._verb, False)
        if fault is not None and self._do_fault(fault):
            return
        try:
            self._authorize(route, "events", apievents.GROUP)
            if self.headers["Content-Type"] != "application/json":
                raise StatusError(415, "UnsupportedMediaType", "the media type is not supported")
            self._answer(201, json.dumps(self._api.events.create(route[1], body)).encode())
        except EventRefusedError as error:
            refused = StatusError(error.code, error.reason, str(error)).body
            refused["details"] = error.details
            self._answer(error.code, json.dumps(refused).encode())
        except StatusError as error:
            self._answer(error.code, json.dumps(error.body).encode())

    def _serve_token(self, path: str) -> None:
        """Make the token of a service account, as its TokenRequest asks for."""
        self._api, self._verb, self._params = self.server.api, "create", {}
        spec = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["spec"]
        found = apipods.TOKEN.fullmatch(path)
        assert found is not None
        try:
            self._authorize(None)
            if not self._api.pods.may_have_token:
                scope = f'in the namespace "{found[1]}"'
                what = f'serviceaccounts "{found[2]}" is'
                raise _forbidden(what, "create", "serviceaccounts/token", scope)
            (audience,) = spec["audiences"]
            token = self._api.reviews.token(found[1], found[2], audience=audience)
            answer = {"kind": "TokenRequest", "spec": spec, "status": {"token": token}}
            self._answer(201, json.dumps(answer).encode())
        except StatusError as error:
            self._answer(error.code, json.dumps(error.body).encode())

    def _serve_review(self, path: str) -> None:
        """Answer a review of a token or of access; ``review`` is its verb for faults."""
        self._api, self._verb, self._params = self.server.api, "review", {}
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self._api.take_fault(self._verb, False)
        if fault is not None and self._do_fault(fault):
            return
        resource, group, _ = apireviews.RESOURCES[path]
        try:
            user = self._user()
            if user == ANONYMOUS or resource not in self._api.reviews.may:
                raise StatusError(
                    403,
                    "Forbidden",
                    f'{resource}.{group} is forbidden: User "{user}" cannot create resource '
                    f'"{resource}" in API group "{group}" at the cluster scope',
                )
            self._answer(201, json.dumps(self._api.reviews.review(path, body)).encode())
        except apireviews.ReviewRefusedError as error:
            self._answer(400, json.dumps(_bad(str(error)).body).encode())
        except StatusError as error:
            self._answer(error.code, json.dumps(error.body).encode())

    # The names http.server calls.
    do_PUT = _refuse_verb  # noqa: N815
    do_PATCH = _refuse_verb  # noqa: N815
    do_DELETE = _refuse_verb  # noqa: N815
    do_HEAD = _refuse_verb  # noqa: N815

    def _user(self) -> str:
        """Whose the request's token is."""
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if not scheme:
            return ANONYMOUS
        known = self._api.tokens.get(token) if scheme.lower() == "bearer" else None
        if known is None:
            raise StatusError(401, "Unauthorized", "Unauthorized")
        return known

    def _authorize(
        self, route: re.Match[str] | None, resource: str = RESOURCE, group: str = GROUP
    ) -> None:
        user = self._user()
        if route is not None and (user == ANONYMOUS or self._verb not in self._api.grants):
            scope = f'in the namespace "{route[1]}"' if route[1] else "at the cluster scope"
            raise StatusError(
                403,
                "Forbidden",
                f'{resource}.{group} is forbidden: User "{user}" cannot {self._verb} resource '
                f'"{resource}" in API group "{group}" {scope}',
            )

    def _serve(self, namespace: str | None, name: str | None, fault: Fault | None) -> None:
        unknown = set(self._params) - _PARAMETERS
        if unknown:
            raise _bad(f"unknown query parameters: {sorted(unknown)}")
        if name is not None:
            obj = self._api.store.get(namespace or "", name)
            if obj is None:
                raise _not_found(f'{RESOURCE}.{GROUP} "{name}" not found')
            self._answer(200, json.dumps(obj).encode())
            return
        try:
            matches = matcher(
                self._params.get("labelSelector", ""),
                self._params.get("fieldSelector", ""),
                namespace,
            )
        except SelectorError as error:
            raise _bad(str(error)) from error
        if self._verb == "watch":
            self._watch(matches, empty=fault is not None)
        else:
            self._list(
                matches,
                slow=fault is not None and fault.kind is FaultKind.SLOW,
                truncated=fault is not None and fault.kind is FaultKind.TRUNCATE,
            )

    def _serve_pods(self, path: str, query: str) -> bool:
        """Answer a request that is about pods. Returns False for any other."""
        pods = self._api.pods
        if listed := apipods.LIST.fullmatch(path):
            if not {None, listed[1]} & pods.may_list:
                scope = f'in the namespace "{listed[1]}"' if listed[1] else "at the cluster scope"
                raise _forbidden("pods is", "list", "pods", scope)
            self._answer(200, json.dumps(pods.listed(listed[1], self._params)).encode())
            return True
        proxy = apipods.PROXY.fullmatch(path)
        if proxy is None:
            return False
        if not pods.may_proxy:
            scope = f'in the namespace "{proxy[1]}"'
            raise _forbidden(f'pods "{proxy[3]}" is', "get", "pods/proxy", scope)
        try:
            found = pods.proxied(proxy, query, dict(self.headers))
        except apipods.UnreachableError as error:
            message = f"error trying to reach service: {error}"
            raise StatusError(503, "ServiceUnavailable", message) from error
        self._record(found.status)
        self.send_response(found.status)
        for name, value in found.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        self.wfile.write(found.body)
        return True

    def _list(self, matches: Matcher, *, slow: bool, truncated: bool) -> None:
        limit = self._integer("limit") or 0
        asked = self._integer("resourceVersion") or 0
        start: tuple[str, str] | None = None
        version: int | None = None
        if token := self._params.get("continue"):
            if "resourceVersion" in self._params:
                raise _bad("specifying resource version is not allowed when using continue")
            version, start = _open_continue(token)
        with self._api.store.changed:
            if asked > self._api.store.resource_version:
                raise _too_large(asked, self._api.store.resource_version)
            try:
                version, items = self._api.store.snapshot(version)
            except ExpiredError:
                raise StatusError(
                    410, "Expired", _CONTINUE_EXPIRED, **{"continue": token or ""}
                ) from None
        kept = [item for item in items if matches(item) and (start is None or _key(item) > start)]
        page = kept[:limit] if limit else kept
        metadata = {"resourceVersion": str(version)}
        if len(page) < len(kept):
            metadata["continue"] = _continue(version, _key(page[-1]))
        body = json.dumps(
            {
                "apiVersion": f"{GROUP}/v1",
                "items": page,
                "kind": "VirtualMachineInstanceList",
                "metadata": metadata,
            }
        ).encode()
        if truncated:
            self._answer(200, body, sent=len(body) // 2)
        elif slow:
            self._begin_stream()
            for at in range(0, len(body), 97):
                self._chunk(body[at : at + 97])
            self._chunk(b"")
        else:
            self._answer(200, body + b"\n")

    def _watch(self, matches: Matcher, *, empty: bool) -> None:
        version = self._integer("resourceVersion") or 0
        timeout_s = self._integer("timeoutSeconds")
        deadline_s = time.monotonic() + (timeout_s or 3600)
        store = self._api.store
        with store.changed:
            if version > store.resource_version:
                raise _too_large(version, store.resource_version)
            generation = self._api.generation
        try:
            store.admit(version or store.resource_version)
        except ExpiredError:
            gone = StatusError(
                410, "Expired", f"too old resource version: {version} ({store.resource_version})"
            )
            if self._api.expire_over_http:
                raise gone from None
            self._begin_stream()
            self._event({"type": "ERROR", "object": gone.body})
            self._chunk(b"")
            return
        self._begin_stream()
        if empty:
            self._chunk(b"")
            return
        if version == 0:
            version, items = store.snapshot(None)
            for item in filter(matches, items):
                self._event({"type": "ADDED", "object": item})
        self._follow(matches, version, deadline_s, generation)

    def _follow(self, matches: Matcher, version: int, deadline_s: float, generation: int) -> None:
        """Send events until the deadline, the server's stop, or what `ending` says."""
        api, store = self._api, self._api.store
        interval_s = api.bookmark_interval_s
        bookmarks = _true(self._params.get("allowWatchBookmarks"))
        bookmark_s = time.monotonic() + interval_s
        while not api.stopping.is_set():
            with store.changed:
                if api.generation == generation and store.resource_version == version:
                    until_s = min(deadline_s, bookmark_s) - time.monotonic()
                    store.changed.wait(max(0.0, until_s))
                changes = store.changes_after(version)
                reached, ended = store.resource_version, api.generation != generation
            if ended:
                self._end_as(api.ending)
                return
            for change in changes:
                if (event := event_of(change, matches)) is not None:
                    self._event(event)
            version = reached
            now_s = time.monotonic()
            if now_s >= deadline_s:
                break
            if bookmarks and now_s >= bookmark_s:
                self._event({"type": "BOOKMARK", "object": _bookmark(version)})
                bookmark_s = now_s + interval_s
        self._chunk(b"")

    def _end_as(self, how: FaultKind | bytes) -> None:
        if isinstance(how, bytes):
            self._chunk(how)
        elif how is FaultKind.RESET:
            self._reset()
            return
        elif how is FaultKind.HANG:
            self._api.stopping.wait()
            self.close_connection = True
            return
        self._chunk(b"")

    def _do_fault(self, fault: Fault) -> bool:
        """Do what replaces the answer; False: the answer itself is to be bent."""
        match fault.kind:
            case FaultKind.HANG:
                self._record(0)
                self._api.stopping.wait()
            case FaultKind.STALL:
                self._begin_stream()
                self._api.stopping.wait()
            case FaultKind.CLOSE:
                self._record(0)
            case FaultKind.RESET:
                self._record(0)
                self._reset()
            case FaultKind.STATUS:
                body = StatusError(fault.code, fault.reason, fault.message).body
                self._answer(fault.code, json.dumps(body).encode(), retry_after=fault.retry_after)
                return True
            case FaultKind.GARBAGE:
                self._answer(200, fault.body)
                return True
            case FaultKind.ERROR_EVENT:
                body = StatusError(fault.code, fault.reason, fault.message).body
                self._begin_stream()
                self._event({"type": "ERROR", "object": body})
                self._chunk(b"")
                return True
            case _:
                return False
        self.close_connection = True
        return True

    def _reset(self) -> None:
        """Close so that the peer gets RST, not FIN."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _record(self, status: int) -> None:
        self._api.record(
            Request(
                verb=self._verb,
                path=urlsplit(self.path).path,
                params=self._params,
                authorization=self.headers.get("Authorization"),
                status=status,
                at_s=time.monotonic(),
            )
        )

    def _answer(
        self, code: int, body: bytes, *, retry_after: str | None = None, sent: int | None = None
    ) -> None:
        self._record(code)
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Cache-Control", "no-cache, private")
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = self.close_connection or sent is not None

    def _begin_stream(self) -> None:
        self._record(200)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        if self._api.close_after_watch and self._verb == "watch":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.flush()

    def _event(self, event: JsonObject) -> None:
        self._chunk(json.dumps(event).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _integer(self, name: str) -> int | None:
        text = self._params.get(name)
        if text is None or text == "":
            return None
        if not text.isascii() or not text.isdigit():
            raise _bad(f'strconv.ParseUint: parsing "{text}": invalid syntax')
        return int(text)


def _true(text: str | None) -> bool:
    """Go's conversion of a query parameter: anything but these is true."""
    return text is not None and text.lower() not in {"0", "false"}


def _bad(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def _forbidden(what: str, verb: str, resource: str, scope: str) -> StatusError:
    return StatusError(
        403,
        "Forbidden",
        f'{what} forbidden: User "{USER}" cannot {verb} resource "{resource}" in API group "" '
        f"{scope}",
    )


def _not_found(message: str) -> StatusError:
    return StatusError(404, "NotFound", message)


def _too_large(asked: int, current: int) -> StatusError:
    return StatusError(
        504, "Timeout", f"Timeout: Too large resource version: {asked}, current: {current}"
    )


def _bookmark(version: int) -> JsonObject:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"creationTimestamp": None, "resourceVersion": str(version)},
    }


def _key(obj: JsonObject) -> tuple[str, str]:
    metadata = obj["metadata"]
    assert isinstance(metadata, dict)
    return (metadata["namespace"], metadata["name"])


def _continue(version: int, last: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps({"rv": version, "start": last}).encode()).decode()


def _open_continue(token: str) -> tuple[int, tuple[str, str]]:
    try:
        opened = json.loads(base64.urlsafe_b64decode(token))
        return opened["rv"], tuple(opened["start"])
    except (ValueError, LookupError, TypeError) as error:
        raise _bad(f"continue key is not valid: {error}") from error
