import json
import signal
import socket
import urllib.request

import pytest


def test_serve_answers_until_ctrl_c_and_ends_cleanly(child):
    server = child("serve", "arithmetic")
    with urllib.request.urlopen(server.address(), timeout=10) as reply:
        assert json.load(reply) == {"status": "ok"}
    server.interrupt()
    ended = server.ended()
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_serve_ends_cleanly_on_sigterm_and_frees_its_port(child):
    server = child("serve", "arithmetic")
    port = int(server.address().rpartition(":")[2])
    server.process.send_signal(signal.SIGTERM)
    ended = server.ended()
    assert (ended.code, ended.err) == (0, "")
    assert child("serve", "arithmetic", "--port", port).address().endswith(f":{port}")


def test_serve_says_its_address_as_json(child):
    server = child("serve", "arithmetic", "--json")
    said = json.loads(server.process.stdout.readline())
    assert said["name"] == "arithmetic"
    assert said["url"].startswith("http://127.0.0.1:")


def test_a_port_in_use_is_the_users_mistake(gym_bridge):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = gym_bridge("serve", "arithmetic", "--port", port)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"gym-bridge: port {port} on 127.0.0.1 is in use; choose another or --port 0\n"


@pytest.mark.parametrize("port", [-1, 70000])
def test_a_port_that_does_not_exist_is_refused(gym_bridge, port: int):
    ended = gym_bridge("serve", "arithmetic", "--port", port)
    assert (ended.code, ended.err) == (2, f"gym-bridge: port {port} does not exist; choose one of 0 to 65535\n")


def test_an_unknown_server_offers_the_nearest(gym_bridge):
    ended = gym_bridge("serve", "arithmetc")
    assert (ended.code, ended.err) == (2, "gym-bridge: unknown resource server 'arithmetc'; did you mean 'arithmetic'?\n")
    ended = gym_bridge("serve", "my_package.servers:Mine")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "cannot load 'my_package.servers:Mine'" in ended.err
