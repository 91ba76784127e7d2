"""Files behind URLs, on a real S3 server in a process of its own, and what is said when it cannot be had."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gym_bridge.errors import ConfigError
from gym_bridge.io.remote_files import fetch, fetched_rows, log_elsewhere, send
from gym_bridge.schemas.remote_names import mirrored, shown, url_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SERVER = "import sys; from moto.server import main; main(['-p', sys.argv[1]])"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of an S3 server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "moto does not come up"
            time.sleep(0.1)
    yield url
    process.kill()
    process.wait()


@pytest.fixture
def bucket(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket's URL, reached with credentials of the environment alone; mirrors are in a directory of the test."""
    values = {"AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (values | {"GYM_BRIDGE_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    _files().mkdir(name)
    return f"s3://{name}"


def _files():
    import fsspec

    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.invalidate_cache()
    return files


def put(url: str, text: str) -> None:
    _files().pipe_file(url, text.encode())


def got(url: str) -> str:
    return _files().cat_file(url).decode()


def test_a_url_is_named_by_its_mirror_and_back():
    path = mirrored("s3://bucket/a/b.jsonl")
    assert (url_of(path), shown(path), path.name) == ("s3://bucket/a/b.jsonl", "s3://bucket/a/b.jsonl", "b.jsonl")
    assert mirrored("a/b.jsonl") == Path("a/b.jsonl")
    assert mirrored("file:///tmp/b.jsonl") == Path("/tmp/b.jsonl")
    assert url_of(Path("a/b.jsonl")) is None
    assert shown(Path("a//b.jsonl")) == "a/b.jsonl"


def test_a_file_is_fetched_once_and_again_when_it_has_changed(bucket: str):
    put(f"{bucket}/x.jsonl", "one\n")
    path = mirrored(f"{bucket}/x.jsonl")
    fetch(path)
    first = path.stat().st_mtime_ns
    fetch(path)
    assert (path.read_text(), path.stat().st_mtime_ns) == ("one\n", first)
    put(f"{bucket}/x.jsonl", "two\n")
    fetch(path)
    assert path.read_text() == "two\n"


def test_what_is_written_here_is_sent_whole(bucket: str):
    path = mirrored(f"{bucket}/deep/er/y.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text("ours\n")
    send(path)
    assert got(f"{bucket}/deep/er/y.jsonl") == "ours\n"
    fetch(path)
    assert path.read_text() == "ours\n"


def test_two_that_have_changed_are_told_and_none_is_overwritten(bucket: str):
    path = mirrored(f"{bucket}/z.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text("ours\n")
    send(path)
    path.write_text("ours, longer\n")
    put(f"{bucket}/z.jsonl", "theirs\n")
    with pytest.raises(ConfigError, match=r"z.jsonl has changed, and so has what was written to .* and not sent"):
        fetch(path)
    assert (path.read_text(), got(f"{bucket}/z.jsonl")) == ("ours, longer\n", "theirs\n")


def test_a_directory_means_its_shards_in_order_and_not_what_stands_beside_them(bucket: str, tmp_path: Path):
    names = [
        "b.jsonl",
        "a.jsonl",
        "c.v2_failures.jsonl",
        "a_failures.jsonl",
        "a_materialized_inputs.jsonl",
        "notes.txt",
        "c.jsonl.gz",
    ]
    for name in names:
        put(f"{bucket}/shards/{name}", name)
        (tmp_path / name).write_text(name)
    found = fetched_rows([mirrored(f"{bucket}/shards")])
    assert [url_of(one) for one in found] == [f"{bucket}/shards/{name}" for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz")]
    assert [one.read_text() for one in found] == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
    assert (found[0].parent / "a_materialized_inputs.jsonl").exists()
    assert fetched_rows([tmp_path]) == [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz")]


def test_what_cannot_be_had_is_one_line(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=f"^{bucket}/none.jsonl: there is no such file$"):
        fetch(mirrored(f"{bucket}/none.jsonl"))
    for odd in ("s3://b/a//c.jsonl", "s3://b/../c.jsonl"):
        with pytest.raises(ConfigError, match="cannot be kept here under this URL"):
            mirrored(odd)
    with pytest.raises(ConfigError, match=r"^cannot read s4://x/y: ValueError: Protocol not known: s4"):
        fetch(mirrored("s4://x/y"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"a directory without rollouts; expected files that end in \.jsonl"):
        fetched_rows([tmp_path / "empty"])
    path = mirrored("s3://no-such-bucket-anywhere/r.jsonl")
    path.parent.mkdir(parents=True)
    path.write_text("ours\n")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    with pytest.raises(ConfigError, match=r"^cannot (read|write) s3://no-such-bucket-anywhere/r.jsonl: .*it is whole in "):
        send(path)


def test_what_somebody_has_removed_is_not_read_from_the_cache(bucket: str):
    path = mirrored(f"{bucket}/gone.jsonl")
    put(f"{bucket}/gone.jsonl", "one\n")
    fetch(path)
    _files().rm_file(f"{bucket}/gone.jsonl")
    with pytest.raises(ConfigError, match="there is no such file"):
        fetch(path)
    assert not path.exists()
    path.write_text("ours, not sent yet\n")
    fetch(path)
    assert path.read_text() == "ours, not sent yet\n"


def log_of(url: str) -> tuple[Path, Path, Path]:
    """A log of rows, failures and a chunk of tokens."""
    rows = mirrored(f"{url}/R.jsonl")
    return rows, rows.with_name("R_failures.jsonl"), rows.with_name("R.tokens") / "chunk-000000.npz"


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_a_log_is_sent_whole_and_what_it_has_discarded_goes_there_too(bucket: str, scheme: str):
    url = f"{bucket}/log".replace("s3://", f"{scheme}://")
    rows, failures, chunk = log_of(url)
    with log_elsewhere([failures, rows], chunk.parent):
        chunk.parent.mkdir(parents=True)
        for path in (rows, failures, chunk):
            path.write_text("first")
    assert [got(f"{bucket}/log/{name}") for name in ("R.jsonl", "R_failures.jsonl", "R.tokens/chunk-000000.npz")] == ["first"] * 3
    with log_elsewhere([failures, rows], chunk.parent):
        failures.unlink()
        chunk.unlink()
        rows.write_text("second")
    assert got(f"{bucket}/log/R.jsonl") == "second"
    assert [one.rpartition("/")[2] for one in _files().find(f"{bucket}/log")] == ["R.jsonl"]


def test_a_log_that_another_machine_has_sent_meanwhile_is_left_alone(bucket: str):
    rows, failures, chunk = log_of(f"{bucket}/log")
    told = r"R\.jsonl has changed while this ran, and is left alone; it is whole in "
    with pytest.raises(ConfigError, match=told), log_elsewhere([failures, rows], chunk.parent):
        rows.parent.mkdir(parents=True)
        rows.write_text("ours")
        put(f"{bucket}/log/R.jsonl", "theirs")
    assert (rows.read_text(), got(f"{bucket}/log/R.jsonl")) == ("ours", "theirs")


def test_transform_reads_and_writes_urls(bucket: str, gym_bridge, tmp_path: Path):
    text = Path("fixtures/nemo_gym/example_multi_step.jsonl").read_text()
    put(f"{bucket}/run/rollouts.jsonl", text)
    (tmp_path / "here.jsonl").write_text(text)
    options = ["--to", "sft", "--min-reward", "none"]
    alone = gym_bridge("transform", tmp_path / "here.jsonl", *options, "--output", tmp_path / "sft.jsonl", "--bare")
    outputs = ["--output", f"{bucket}/out/sft.jsonl", "--report", f"{bucket}/out/r.json"]
    found = gym_bridge("transform", f"{bucket}/run", *options, *outputs, "--bare")
    assert (alone.code, found.code) == (0, 0), found.err
    assert found.out.startswith(f"{bucket}/out/sft.jsonl: ")
    assert got(f"{bucket}/out/sft.jsonl") == (tmp_path / "sft.jsonl").read_text()
    assert json.loads(got(f"{bucket}/out/r.json"))["rows_in"] == len(text.splitlines())


def test_a_collection_behind_a_url_goes_on_from_another_machine(bucket: str, gym_bridge, tmp_path: Path, monkeypatch):
    from tests.cli.counted_stage import Counted, command, lasting, write_counting_tasks

    tasks, alone = tmp_path / "tasks.jsonl", tmp_path / "alone.jsonl"
    write_counting_tasks(tasks, num_tasks=12)
    put(f"{bucket}/tasks.jsonl", tasks.read_text())
    with Counted() as servers:
        urls = {"server": servers.url, "model_url": servers.url, "workers": 1}
        assert gym_bridge(*command(tasks, alone, **urls)).code == 0
        argv = command(f"{bucket}/tasks.jsonl", f"{bucket}/run/rollouts.jsonl", **urls)
        first = gym_bridge(*argv, "--token-budget", 60)
        assert "stopped early" in first.out, first.err
        num_first = len(got(f"{bucket}/run/rollouts.jsonl").splitlines())
        monkeypatch.setenv("GYM_BRIDGE_CACHE", str(tmp_path / "another machine"))
        second = gym_bridge(*argv)
    assert second.code == 0, second.err
    (tmp_path / "all.jsonl").write_text(got(f"{bucket}/run/rollouts.jsonl"))
    assert 0 < num_first < len(lasting(alone))
    assert lasting(tmp_path / "all.jsonl") == lasting(alone)
    assert json.loads(got(f"{bucket}/run/rollouts_manifest.json"))["ledger"]["not_attempted"] == 0
