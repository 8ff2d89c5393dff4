"""Which URLs a journal may have, and the line that names one."""

from pathlib import Path

import pytest

from evomerge.errors import ConfigError, RunError
from evomerge.experiments.journals.address import Address, new_address, problem_of, read_address, write_address
from evomerge.experiments.schema import parse_experiment, write_experiment
from evomerge.recipes import yaml

SECRET = "hunter22"
EXPERIMENT = (
    "parents: {a: x/a, b: x/b}\nsearch_space: {kind: parameter, method: linear}\nfitness: {objectives: [{task: t}]}\n"
)


@pytest.mark.parametrize(
    "url",
    [
        "redis://host:6379/0",
        "redis://user@host",
        "rediss://host:6379/2?ssl_ca_certs=/ca.pem",
        "redis:///1",
        "postgresql://user@host/db",
        "postgres://host:5432/db?sslmode=verify-full",
        "postgresql://user@one:5432,two:5433/db?target_session_attrs=read-write",
        "postgresql:///db?host=/var/run/postgresql&passfile=/home/me/.pgpass",
    ],
)
def test_urls_without_passwords_are_taken(url: str) -> None:
    assert problem_of(url) is None
    experiment = parse_experiment(yaml.loads(f"{EXPERIMENT}journal: {url}\n", "here"))
    assert experiment.journal == url
    assert parse_experiment(yaml.loads(write_experiment(experiment), "again")).journal == url


@pytest.mark.parametrize(
    ("url", "instead"),
    [
        (f"redis://:{SECRET}@host:6379/0", "REDISCLI_AUTH"),
        (f"redis://user:{SECRET}@host", "REDISCLI_AUTH"),
        ("redis://user:@host", "REDISCLI_AUTH"),
        (f"redis://user:12/{SECRET}@host", "REDISCLI_AUTH"),
        (f"redis://user:a#{SECRET}@host", "REDISCLI_AUTH"),
        (f"redis://user:a?{SECRET}@host", "REDISCLI_AUTH"),
        (f"rediss://host?ssl_password={SECRET}", "REDISCLI_AUTH"),
        (f"postgresql://user:{SECRET}@host/db", "PGPASSFILE"),
        (f"postgres://host/db?user=me&PASSWORD={SECRET}", "PGPASSWORD"),
        (f"postgresql://user:{SECRET}@one,two/db", "PGPASSWORD"),
        (f"mysql://user:{SECRET}@host/db", "redis://, rediss:// or postgresql://"),
        (f"postgresql+psycopg://user:{SECRET}@host/db", "redis://, rediss:// or postgresql://"),
        (f"{SECRET}.log", "left out, it is a file in the run folder"),
        (f"redis://[{SECRET}@host", "not a URL"),
    ],
)
def test_other_urls_are_refused_and_not_repeated(url: str, instead: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_experiment(yaml.loads(f"{EXPERIMENT}unknown_field: 1\njournal: '{url}'\n", "here.yaml"))
    assert instead in str(refused.value)
    assert "here.yaml:5" in str(refused.value)
    error: BaseException | None = refused.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


def test_an_address_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    assert read_address(path) is None
    address = new_address("redis://host:6379/0", "mine")
    write_address(path, address)
    assert read_address(path) == address
    assert [child.name for child in tmp_path.iterdir()] == ["journal.log"]
    assert new_address("redis://host:6379/0", "mine") != address


def test_a_journal_of_trials_names_no_address(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    for content in ("", '{"op_code":0}\n', '{"jour', "\0" * 100):
        path.write_text(content)
        assert read_address(path) is None


@pytest.mark.parametrize(
    "line", ['{"journal": 1', '{"journal": "redis://h"}', f'{{"journal": "redis://:{SECRET}@h", "run": "r"}}']
)
def test_a_damaged_address_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.log"
    path.write_text(line)
    with pytest.raises(RunError, match=r"journal\.log") as refused:
        read_address(path)
    assert SECRET not in str(refused.value)


def test_servers_are_told_by_their_scheme() -> None:
    assert [Address(f"{scheme}://h", "r").server for scheme in ("redis", "rediss", "postgres", "postgresql")] == [
        "redis",
        "redis",
        "postgresql",
        "postgresql",
    ]
