"""What ``HubServer`` answers: one function for each page, and ``ROUTES``, which says who may ask for it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.testing.hub_server import HubRequestHandler as Handler

CREATED = "2026-01-01T00:00:00.000Z"
NEVER = 4102444800  # when Xet tokens expire: in 2100


@dataclass(frozen=True)
class Entry:
    """A file of a repository: its bytes, or the SHA-256 of a large one."""

    data: bytes | None = None
    sha256: str = ""
    size: int = 0


@dataclass
class Repository:
    """A model repository: the files of each branch and pull request, and the commits' messages."""

    private: bool
    refs: dict[str, dict[str, Entry]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)
    pull_requests: list[str] = field(default_factory=list)


def _whoami(request: Handler) -> None:
    request.send({"type": "user", "name": request.hub.namespace, "orgs": [], "auth": {"type": "access_token"}})


def _create(request: Handler) -> None:
    asked = request.json()
    owner = asked.get("organization") or request.hub.namespace
    repo_id = f"{owner}/{asked['name']}"
    answer = {"url": f"{request.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
    if owner != request.hub.namespace:
        request.error(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    elif repo_id in request.hub.repositories:
        request.send(answer | {"error": "You already created this model repo"}, 409)
    else:
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        request.hub.repositories[repo_id] = Repository(private)
        request.send(answer)


def _info(request: Handler, repo: str, ref: str = "main") -> None:
    repository = request.hub.repositories[repo]
    if ref not in repository.refs:
        request.error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        return
    siblings = [{"rfilename": path} for path in sorted(repository.refs[ref])]
    known = {"id": repo, "modelId": repo, "private": repository.private, "sha": _sha(repository, ref)}
    request.send(known | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})


def _preupload(request: Handler, repo: str, ref: str) -> None:
    files = request.hub.repositories[repo].refs.get(ref)
    if files is None:
        request.error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        return
    answers = []
    for file in request.json()["files"]:
        large = file["path"].endswith(".safetensors") or file["size"] > 10_000_000
        known = files.get(file["path"])
        answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": _oid(known)} if known else {}))
    request.send({"files": answers})


def _lfs_batch(request: Handler, repo: str) -> None:
    objects = []
    for one in request.json()["objects"]:
        answer: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
        if not request.hub.has_large(one["oid"]):
            answer["actions"] = {"upload": {"href": f"{request.hub.url}/lfs/{one['oid']}"}}
        objects.append(answer)
    request.send({"transfer": "basic", "objects": objects})


def _lfs_put(request: Handler, sha256: str) -> None:
    if hashlib.sha256(request.body).hexdigest() != sha256:
        request.error(400, "the content does not have this hash")
        return
    request.hub.large[sha256] = request.body
    request.send(b"", headers={"ETag": f'"{sha256}"'})


def _commit(request: Handler, repo: str, ref: str) -> None:
    repository = request.hub.repositories[repo]
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    files = dict(repository.refs[ref])
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            data = base64.b64decode(value["content"])
            files[value["path"]] = Entry(data, size=len(data))
        elif line["key"] == "lfsFile":
            if not request.hub.has_large(value["oid"]):
                request.error(400, f"{value['path']}: the large file {value['oid']} was not uploaded")
                return
            files[value["path"]] = Entry(sha256=value["oid"], size=value.get("size", 0))
        else:
            files.pop(value["path"], None)
    with request.hub.lock:
        repository.refs[ref] = files
        repository.commits.append(lines[0]["value"]["summary"])
    sha = _sha(repository, ref)
    request.send({"commitUrl": f"{request.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})


def _open_pull_request(request: Handler, repo: str) -> None:
    repository = request.hub.repositories[repo]
    repository.pull_requests.append(request.json()["title"])
    number = len(repository.pull_requests)
    repository.refs[f"refs/pr/{number}"] = dict(repository.refs["main"])
    request.send({"num": number})


def _pull_request(request: Handler, repo: str, number: str) -> None:
    title = request.hub.repositories[repo].pull_requests[int(number) - 1]
    details = {"title": title, "num": int(number), "status": "draft", "isPullRequest": True, "events": []}
    place = {"repo": {"name": repo, "type": "model"}, "changes": {"base": "refs/heads/main"}}
    request.send(details | place | {"createdAt": CREATED, "filesWithConflicts": []})


def _resolve(request: Handler, repo: str, ref: str, path: str) -> None:
    repository = request.hub.repositories[repo]
    branch = next((name for name in repository.refs if ref in (name, _sha(repository, name))), "")
    entry = repository.refs[branch].get(path) if branch else None
    if entry is None:
        request.error(404, "Entry not found", "EntryNotFound" if branch else "RevisionNotFound")
        return
    headers = {"X-Repo-Commit": _sha(repository, branch), "ETag": f'"{_oid(entry)}"'}
    stored = request.hub.xet.by_sha256.get(entry.sha256)
    if stored:
        token = f"{request.hub.url}/api/models/{repo}/xet-read-token/{_sha(repository, branch)}"
        headers |= {"X-Xet-Hash": stored, "X-Xet-Refresh-Route": token, "X-Linked-Size": str(entry.size)}
        request.send(b"", headers=headers | {"X-Linked-ETag": f'"{entry.sha256}"'})
    else:
        request.send(entry.data if entry.data is not None else request.hub.large[entry.sha256], headers=headers)


def _xet_token(request: Handler, repo: str, ref: str) -> None:
    store = f"{request.hub.url}/cas"
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(NEVER)}
    request.send({"casUrl": store, "accessToken": "xet", "exp": NEVER}, headers=headers)


def _put_xorb(request: Handler, name: str) -> None:
    request.send({"was_inserted": request.hub.xet.put_xorb(name, request.body)})


def _put_shard(request: Handler) -> None:
    try:
        request.hub.xet.put_shard(request.body)
    except ValueError as error:
        request.error(400, str(error))
    else:
        request.send({"result": 1})


def _rebuild(request: Handler, name: str) -> None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range") or "")
    bounds = (int(found[1]), int(found[2])) if found else (0, None)
    if name not in request.hub.xet.files:
        request.error(404, "no such file")
    elif bounds[0] >= request.hub.xet.size(name):
        request.error(416, "past the end")
    else:
        request.send(request.hub.xet.reconstruction(name, f"{request.hub.url}/cas/xorb", *bounds))


def _get_xorb(request: Handler, name: str) -> None:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range") or "")
    data = request.hub.xet.xorbs[name]
    request.send(data[int(found[1]) : int(found[2]) + 1] if found else data, 206 if found else 200)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REF = r"(?P<ref>refs/pr/\d+|[^/]+)"
ROUTES: tuple[tuple[str, str, str, Callable[..., None]], ...] = (
    ("GET", r"/api/whoami-v2", "read", _whoami),
    ("POST", r"/api/repos/create", "write", _create),
    ("POST", r"/api/validate-yaml", "nothing", lambda request: request.send({"errors": [], "warnings": []})),
    ("GET", rf"/api/models/{_REPO}", "read", _info),
    ("GET", rf"/api/models/{_REPO}/revision/{_REF}", "read", _info),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REF}", "write", _preupload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REF}", "write", _commit),
    ("POST", rf"/api/models/{_REPO}/discussions", "write", _open_pull_request),
    ("GET", rf"/api/models/{_REPO}/discussions/(?P<number>\d+)", "read", _pull_request),
    ("GET", rf"/api/models/{_REPO}/xet-write-token/{_REF}", "write", _xet_token),
    ("GET", rf"/api/models/{_REPO}/xet-read-token/{_REF}", "read", _xet_token),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "write", _lfs_batch),
    ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", "nothing", _lfs_put),
    ("HEAD", rf"/{_REPO}/resolve/{_REF}/(?P<path>.+)", "read", _resolve),
    ("GET", rf"/{_REPO}/resolve/{_REF}/(?P<path>.+)", "read", _resolve),
    ("POST", r"/cas/v1/xorbs/default/(?P<name>[0-9a-f]{64})", "nothing", _put_xorb),
    ("POST", r"/cas/v1/shards", "nothing", _put_shard),
    ("GET", r"/cas/v1/reconstructions/(?P<name>[0-9a-f]{64})", "nothing", _rebuild),
    ("GET", r"/cas/xorb/(?P<name>[0-9a-f]{64})", "nothing", _get_xorb),
)


def _oid(entry: Entry) -> str:
    """Return the id that the Hub compares files by: SHA-256 for large ones, else git's blob hash."""
    if entry.data is None:
        return entry.sha256
    return hashlib.sha1(b"blob %d\0" % len(entry.data) + entry.data).hexdigest()


def _sha(repository: Repository, ref: str) -> str:
    """Return a commit id that depends on the files at ``ref``."""
    listing = sorted((path, _oid(entry)) for path, entry in repository.refs[ref].items())
    return hashlib.sha1(json.dumps(listing).encode()).hexdigest()
