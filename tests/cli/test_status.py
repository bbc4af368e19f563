"""`erxhub serve --metrics` and `erxhub status`: what an operator of the machine sees."""

import http.client
import json
import socket
from pathlib import Path

import pytest

from erxhub.process import code as build_of_code
from tests.cli.conftest import Erxhub, erxhub_in, start_process, stop_process
from tests.cli.test_serve import ended, serve_words


@pytest.fixture
def founded(tmp_path: Path) -> Erxhub:
    """A folder with keys and certificates for `serve_words`."""
    erxhub = erxhub_in(tmp_path)
    for words in (
        ("ca", "init", "--trust-domain", "example.org"),
        ("ca", "issue", "hub/hub-1", "--host", "localhost", "--host", "127.0.0.1"),
        ("keys", "init"),
    ):
        assert erxhub(*words).exit_code == 0
    return erxhub


def test_status_of_a_running_hub_and_of_none(tmp_path: Path, founded: Erxhub) -> None:
    ready = tmp_path / "ready.json"
    words = serve_words(tmp_path, "--ready-file", str(ready), "--metrics", "127.0.0.1:0", "--hub-id", "hub-7")
    process, _ = start_process(*words, until="listens on port")
    try:
        while not ready.exists():
            assert process.poll() is None
        address = json.loads(ready.read_text())["metrics"]
        run = founded("status", "--metrics", address, "-o", "json")
        table = founded("status", ERXHUB_METRICS=address)
        connection = http.client.HTTPConnection(address)
        connection.request("GET", "/metrics")
        scraped = connection.getresponse().read().decode()
        connection.close()
    finally:
        code, _ = stop_process(process)
    assert code == 0
    assert run.exit_code == 0, run.stderr
    told = json.loads(run.stdout)
    assert (told["health"], told["hub_id"], told["store"], told["store_up"]) == ("SERVING", "hub-7", "sqlite", True)
    assert told["code"] == build_of_code()
    assert told["log_position"] > 0
    assert told["schema"] >= 1
    assert told["holds_sequencer_lease"] is None
    assert "SERVING" in table.stdout
    assert "erxhub_store_up 1" in scraped
    gone = founded("status", "--metrics", address)
    assert gone.exit_code == 6
    assert "erxhub serve --metrics" in gone.stderr


def test_an_address_that_others_can_reach_is_refused(tmp_path: Path, founded: Erxhub) -> None:
    served = ended(*serve_words(tmp_path, "--metrics", "0.0.0.0:0"))
    assert served.returncode == 2
    assert "loopback" in served.stderr
    assert founded("status", "--metrics", "0.0.0.0:1").exit_code == 2


def test_a_taken_port_is_named(tmp_path: Path, founded: Erxhub) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        served = ended(*serve_words(tmp_path, "--metrics", address))
    assert served.returncode == 2
    assert address in served.stderr
