"""Uploading an exported folder to the Hugging Face Hub, so that a failed upload goes on where it stopped.

Only ``create_repo(exist_ok=True)`` and ``upload_folder`` are used: huggingface_hub has them since 0.34, and
they go on when called again. A pull request is opened before the upload, not by it, since
``upload_folder(create_pr=True)`` would open another one at each attempt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from evomerge.errors import ExportError
from evomerge.export.contents import check_folder
from evomerge.redaction import redact

REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
NOT_UPLOADED = [".*", "**/.*", "*.partial*", "*.tmp", "*.log"]
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)"
RESUME = "run the same command again: what has arrived is not sent twice"
NETWORK = ("httpx", "httpx2", "requests", "urllib3")  # the HTTP libraries of the client's versions
XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3}) ([^)]*)\)")  # hf_xet gives a status in words only


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload merged model",
    revision: str | None = None,
) -> str:
    """Upload ``folder`` to the model repository ``repo_id`` (created when missing) and return its address.

    The endpoint is ``$HF_ENDPOINT``, read at each call. Interrupted uploads resume when the call is repeated.

    Args:
        folder: an exported model; checked before anything is sent.
        repo_id: ``namespace/name``.
        private: create the repository private; refused when it exists and is public.
        token: a write token; None means the one of ``hf auth login`` or ``$HF_TOKEN``.
        create_pr: upload to a new pull request instead of the main branch.
        revision: a branch, or ``refs/pr/N`` to go on with a pull request.

    Raises:
        ExportError: the folder is not complete, the id is malformed, or the Hub refuses; says how to go on.
    """
    check_repo_id(repo_id)
    if create_pr and revision:
        raise ExportError(f"a new pull request starts from the main branch: leave out create_pr or {revision!r}")
    check_folder(folder)
    token = token or get_token()
    if not token:
        raise ExportError(f"cannot push to {repo_id}: nobody is logged in to the Hub; {LOGIN}")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with _in_words(repo_id, token):
        api.whoami()
    with _in_words(repo_id, token):
        api.create_repo(repo_id, private=private, exist_ok=True)
        public = not api.repo_info(repo_id).private
    if private and public:
        raise ExportError(f"{repo_id} exists and is public: add --public to upload to it, or choose another name")
    return _upload(api, folder, repo_id, create_pr, commit_message, revision, token)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no ``namespace/name`` that the Hub takes.

    Raises:
        ExportError: says what is wrong with it.
    """
    if not REPOSITORY_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id or repo_id.endswith((".git", ".")):
        raise ExportError(
            f"{repo_id!r} is not a repository id: write namespace/name, such as alice/my-merge "
            "(letters, digits, '-', '_', '.'; no '--' and no '..')"
        )


def _upload(
    api: HfApi, folder: Path, repo_id: str, create_pr: bool, message: str, revision: str | None, token: str
) -> str:
    url = f"{api.endpoint}/{repo_id}"
    how = RESUME
    with _in_words(repo_id, token):
        if create_pr:
            request = api.create_pull_request(repo_id, title=message)
            revision, url = request.git_reference, request.url
            how = f"go on with the pull request {url}: pass revision={revision!r} instead of create_pr"
    with _in_words(repo_id, token, how):
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            ignore_patterns=list(NOT_UPLOADED),
        )
    return url


@contextmanager
def _in_words(repo_id: str, token: str, resume: str = RESUME) -> Iterator[None]:
    """Turn what the Hub's client raises into an ExportError that says what to do, without the token."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # what it raises differs between versions and between transports
        chain = list(_chain(error))
        message = redact(f"cannot push to {repo_id}: {_explain(chain, repo_id, resume)}", [token])
        leaks = any(redact(str(one), [token]) != str(one) for one in chain)
        raise ExportError(message) from (None if leaks else error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _explain(chain: list[BaseException], repo_id: str, resume: str) -> str:
    for one in chain:
        response = getattr(one, "response", None) if isinstance(one, HfHubHTTPError) else None
        if response is not None:
            return _explain_status(response.status_code, _said(one), repo_id, resume)
        if found := XET_STATUS.search(str(one)):
            return _explain_status(int(found[1]), found[2], repo_id, resume)
    if any(
        isinstance(one, ConnectionError | TimeoutError) or type(one).__module__.split(".")[0] in NETWORK
        for one in chain
    ):
        return f"the connection failed ({_last_line(chain[-1])}); check the network, then {resume}"
    cause = "" if len(chain) == 1 else f" ({_last_line(chain[-1])})"
    return f"{_last_line(chain[0])}{cause}; mend that, then {resume}"


def _explain_status(status: int, said: str, repo_id: str, resume: str) -> str:
    namespace = repo_id.split("/")[0]
    if status == 401:
        return f"the Hub does not accept the token (401); {LOGIN}"
    if status == 403:
        return f"the token may not write to {namespace!r} (403: {said}); use a token with write access to it"
    if status == 404:
        return f"no such repository or revision (404: {said}); check its name and the token's rights"
    if status in (409, 412):
        return f"somebody else changed the repository meanwhile ({status}: {said}); {resume}"
    if status == 413:
        return f"the Hub refuses so large a file (413: {said}); export again with a smaller max_shard_size"
    if status == 429:
        return f"the Hub asks to slow down (429: {said}); wait some minutes, then {resume}"
    if status >= 500:
        return f"the Hub failed ({status}: {said}); wait a little, then {resume}"
    return f"the Hub refuses ({status}: {said})"


def _said(error: BaseException) -> str:
    """Return the server's own words where it gave any, without its full stop."""
    words = getattr(error, "server_message", None)
    return " ".join(str(words).split()).rstrip(".") if words else _last_line(error)


def _last_line(error: BaseException) -> str:
    """Return the last line of what the error says, or its class if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
