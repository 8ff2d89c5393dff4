"""T19: pushing over real HTTP to a local Hub, by LFS and by Xet: interruptions, refusals, messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import _xet

from evomerge.errors import ExportError
from evomerge.export.hub import push
from evomerge.testing.hub_server import READ_TOKEN, TOKEN, Fault, HubServer
from evomerge.testing.tiny_models import tiny_family

# huggingface_hub 2.4.0 sends LFS files by a way that its own HTTP library calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning:httpx2")

REPO = "alice/merge"
WRONG_TOKEN = "hf_" + "wrong" * 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model folder with a card; larger than one Xet chunk."""
    folder = tiny_family(tmp_path_factory.mktemp("family"), parents=0, hidden=64, shard_size="100KB")["base"]
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A fresh Hub that HF_ENDPOINT points to; the client waits for nothing between its retries."""
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("evomerge.export.hub.get_token", lambda: None)
    _xet.abort_xet_session()
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
    _xet.abort_xet_session()


@pytest.fixture(params=["lfs", "xet"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways by which large files travel: with hf_xet, and without it."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way without hf_xet, where one can count which large file was sent how often."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way with hf_xet, which is what users have."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)


def assert_same_on_hub(hub: HubServer, folder: Path, cache: Path, ref: str = "main") -> None:
    """Every file of ``folder`` comes back from the Hub byte for byte, and nothing else is there."""
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(hub.files(REPO, ref)) == names
    for name in names:
        got = hf_hub_download(REPO, name, revision=ref, endpoint=hub.url, token=TOKEN, cache_dir=cache)
        assert Path(got).read_bytes() == (folder / name).read_bytes(), name


def test_push_creates_a_private_repository_with_the_same_bytes(
    hub: HubServer, model: Path, transport: str, tmp_path: Path
) -> None:
    assert push(model, REPO, token=TOKEN) == f"{hub.url}/{REPO}"
    assert hub.repositories[REPO].private
    assert_same_on_hub(hub, model, tmp_path / "cache")


def test_pushing_the_same_again_sends_no_weights(hub: HubServer, model: Path, transport: str) -> None:
    push(model, REPO, token=TOKEN)
    before = hub.bytes_received("PUT", "/lfs/") + hub.bytes_received("POST", "/cas/v1/xorbs/")
    push(model, REPO, token=TOKEN)
    assert hub.bytes_received("PUT", "/lfs/") + hub.bytes_received("POST", "/cas/v1/xorbs/") == before > 100_000
    assert len(hub.repositories[REPO].commits) == 1


def test_an_upload_cut_in_the_second_file_goes_on_where_it_stopped(
    hub: HubServer, model: Path, lfs: None, tmp_path: Path
) -> None:
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) >= 3
    with hub.failing(Fault("PUT", "/lfs/", "drop", skip=1)), pytest.raises(ExportError) as caught:
        push(model, REPO, token=TOKEN)
    assert "the connection failed" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert hub.files(REPO) == {}
    arrived = {sha: len(data) for sha, data in hub.large.items()}
    assert len(arrived) == 1
    sent = len(hub.requests)
    push(model, REPO, token=TOKEN)
    resent = [one.path.removeprefix("/lfs/") for one in hub.requests[sent:] if one.method == "PUT"]
    assert len(resent) == len(shards) - 1
    assert not set(resent) & set(arrived)
    assert_same_on_hub(hub, model, tmp_path / "cache")


@pytest.mark.parametrize("action", ["drop", 500])
@pytest.mark.parametrize("path", ["/cas/v1/xorbs/", "/cas/v1/shards", "/commit/"])
def test_an_upload_by_xet_that_fails_anywhere_is_completed_by_the_next(
    hub: HubServer, model: Path, action: int | str, path: str, xet: None, tmp_path: Path
) -> None:
    with hub.failing(Fault("POST", path, action)), pytest.raises(ExportError) as caught:  # type: ignore[arg-type]
        push(model, REPO, token=TOKEN)
    assert "run the same command again" in str(caught.value)
    assert hub.files(REPO) == {}
    weights = hub.bytes_received("POST", "/cas/v1/xorbs/")
    push(model, REPO, token=TOKEN)
    if path == "/commit/":  # the weights were registered: not sent again
        assert hub.bytes_received("POST", "/cas/v1/xorbs/") == weights > 100_000
    assert_same_on_hub(hub, model, tmp_path / "cache")


def test_a_fault_that_passes_is_not_even_noticed(hub: HubServer, model: Path, transport: str) -> None:
    with hub.failing(Fault("POST", "/preupload/", 503, times=2), Fault("PUT", "/lfs/", "drop", times=1)):
        push(model, REPO, token=TOKEN)
    assert len(hub.files(REPO)) == len(list(model.iterdir()))


def test_a_push_that_is_killed_is_completed_by_the_next(hub: HubServer, model: Path, lfs: None, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from evomerge.export.hub import push; "
        "push(Path(sys.argv[1]), sys.argv[2], token=sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(model), REPO, TOKEN]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": paths}
    with hub.failing(Fault("PUT", "/lfs/", "stall", skip=1)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        assert hub.stalled.wait(timeout=60)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=20) == -signal.SIGKILL
    assert hub.files(REPO) == {}
    push(model, REPO, token=TOKEN)
    assert_same_on_hub(hub, model, tmp_path / "cache")


def test_an_existing_private_repository_is_used(hub: HubServer, model: Path, lfs: None) -> None:
    push(model, REPO, token=TOKEN)
    assert hub.count("POST", "/api/repos/create") == 1
    push(model, REPO, token=TOKEN)
    assert list(hub.repositories) == [REPO]


def test_public_is_public_and_a_public_repository_is_not_taken_for_a_private_one(
    hub: HubServer, model: Path, lfs: None
) -> None:
    push(model, REPO, token=TOKEN, private=False)
    assert not hub.repositories[REPO].private
    with pytest.raises(ExportError, match="alice/merge exists and is public: add --public"):
        push(model, REPO, token=TOKEN)


def test_a_pull_request_is_opened_once_and_can_be_gone_on_with(
    hub: HubServer, model: Path, transport: str, tmp_path: Path
) -> None:
    fault = Fault("POST", "/commit/", 500)
    with hub.failing(fault), pytest.raises(ExportError, match=r"revision='refs/pr/1' instead of create_pr"):
        push(model, REPO, token=TOKEN, create_pr=True)
    push(model, REPO, token=TOKEN, revision="refs/pr/1")
    assert len(hub.repositories[REPO].pull_requests) == 1
    assert hub.files(REPO) == {}
    assert_same_on_hub(hub, model, tmp_path / "cache", "refs/pr/1")
    assert push(model, REPO, token=TOKEN, create_pr=True) == f"{hub.url}/{REPO}/discussions/2"


def test_create_pr_and_a_revision_exclude_each_other(hub: HubServer, model: Path) -> None:
    with pytest.raises(ExportError, match="leave out create_pr or 'refs/pr/1'"):
        push(model, REPO, token=TOKEN, create_pr=True, revision="refs/pr/1")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("POST", "/preupload/", 403), r"may not write to 'alice' \(403"),
        (Fault("POST", "/preupload/", 404), r"no such repository or revision \(404"),
        (
            Fault("POST", "/commit/", 409),
            r"somebody else changed the repository meanwhile .* run the same command",
        ),
        (
            Fault("POST", "/commit/", 412),
            r"somebody else changed the repository meanwhile .* run the same command",
        ),
        (Fault("POST", "/commit/", 413), r"so large a file .* smaller max_shard_size"),
        (Fault("GET", "whoami", 429), r"slow down \(429.* wait some minutes"),
        (Fault("POST", "/repos/create", 500), r"the Hub failed \(500.* run the same command again"),
        (Fault("POST", "/commit/", 400), r"the Hub refuses \(400: .*told to fail\)"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(
    hub: HubServer, model: Path, lfs: None, fault: Fault, words: str
) -> None:
    with hub.failing(fault), pytest.raises(ExportError, match=words):
        push(model, REPO, token=TOKEN)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("GET", "/xet-write-token/", 403), r"may not write to 'alice' \(403: Forbidden"),
        (Fault("POST", "/cas/v1/xorbs/", 413), r"so large a file"),
        (Fault("POST", "/cas/v1/xorbs/", 429), r"slow down \(429"),
        (Fault("POST", "/cas/v1/shards", 500), r"the Hub failed \(500: Internal Server Error"),
        (Fault("POST", "/cas/v1/xorbs/", "drop"), r"the connection failed .* check the network"),
    ],
)
def test_what_the_xet_store_refuses_is_said_in_words(
    hub: HubServer, model: Path, xet: None, fault: Fault, words: str
) -> None:
    with hub.failing(fault), pytest.raises(ExportError, match=words):
        push(model, REPO, token=TOKEN)


def test_a_wrong_token_says_how_to_log_in_and_is_not_shown(hub: HubServer, model: Path, lfs: None) -> None:
    with pytest.raises(ExportError, match=r"does not accept the token \(401\); run `hf auth login`") as caught:
        push(model, REPO, token=WRONG_TOKEN)
    assert WRONG_TOKEN not in str(caught.value)
    assert hub.repositories == {}


def test_a_token_that_may_only_read_is_said(hub: HubServer, model: Path, lfs: None) -> None:
    with pytest.raises(ExportError, match="may not write to 'alice'"):
        push(model, REPO, token=READ_TOKEN)


def test_somebody_elses_namespace_is_said(hub: HubServer, model: Path, lfs: None) -> None:
    with pytest.raises(ExportError, match=r"may not write to 'bob'.* under the namespace"):
        push(model, "bob/merge", token=TOKEN)


def test_without_a_token_nothing_is_asked(hub: HubServer, model: Path) -> None:
    with pytest.raises(ExportError, match="nobody is logged in"):
        push(model, REPO)
    assert hub.requests == []


def test_no_network_is_said_in_words(hub: HubServer, model: Path, lfs: None) -> None:
    hub.stop()
    with pytest.raises(ExportError, match=r"the connection failed .* check the network, then run the same"):
        push(model, REPO, token=TOKEN)


@pytest.mark.parametrize("name", ["merge", "a/b/c", "alice/", "/merge", "alice/my merge", "alice/a--b", "a/x.git", ""])
def test_a_malformed_id_is_refused_before_anything(hub: HubServer, model: Path, name: str) -> None:
    with pytest.raises(ExportError, match="is not a repository id: write namespace/name"):
        push(model, name, token=TOKEN)
    assert hub.requests == []


def test_an_incomplete_folder_is_refused_before_anything(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not a folder"):
        push(tmp_path / "absent", REPO, token=TOKEN)
    with pytest.raises(ExportError, match=r"config.json is missing; README.md is missing; no tokenizer.*no weights"):
        push(tmp_path, REPO, token=TOKEN)
    assert hub.requests == []


def test_a_server_that_repeats_the_token_does_not_make_us_show_it(hub: HubServer, model: Path, lfs: None) -> None:
    fault = Fault("POST", "/commit/", 400, headers={"X-Error-Message": f"bad token {TOKEN}"})
    with hub.failing(fault), pytest.raises(ExportError) as caught:
        push(model, REPO, token=TOKEN)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
