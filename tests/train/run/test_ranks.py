import json
import socket
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from seodang.data.errors import UserError
from seodang.train.run import ranks
from seodang.train.run.ranks import Rank, Watch, beginning, check_devices, refuse_odd_ones


def test_who_differs_from_most_is_named_with_both_values():
    alike = {"the version of torch": "2.13.0", "--seed": 1}
    refuse_odd_ones([alike, dict(alike), dict(alike)])
    with pytest.raises(UserError, match=r"do not agree on --seed: rank 2 has 3, rank 0 has 1: give all of them the same"):
        refuse_odd_ones([alike, alike, {**alike, "--seed": 3}])
    with pytest.raises(UserError, match=r'on the version of torch: rank 0 has "2.12.0", rank 1 has "2.13.0"'):
        refuse_odd_ones([{**alike, "the version of torch": "2.12.0"}, alike, alike])
    with pytest.raises(UserError, match="rank 1 has null, rank 0 has 1"):
        refuse_odd_ones([{"--seed": 1}, {}])


def test_more_processes_than_devices_are_refused_where_there_are_devices(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="4 processes were launched on .*, which has 2 devices: set --num_processes to 2"):
        check_devices(2)
    check_devices(4)
    check_devices(0)  # CPUs


@pytest.mark.parametrize("told", ["soon", "", "0", "-1", "nan", "inf"])
def test_a_time_to_wait_that_is_none_is_refused(told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("SEODANG_START_SECONDS", told)
    with pytest.raises(UserError, match="SEODANG_START_SECONDS must be a number of seconds above 0"), beginning():
        pass


def test_a_port_in_use_is_named(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"rank 0 of 2 cannot join the others: port 127.0.0.1:{port} is in use: give another one"), beginning():
            dist.init_process_group("gloo")
    assert not dist.is_initialized()


def watch_of(rank, connections):
    """The watch of one of three ranks, which ends this process not before the tests are over."""
    return Watch(rank, [Rank(each, f"host{each}", 100 + each) for each in range(3)], connections, grace=86400)


@pytest.fixture
def three():
    """The watches of three ranks, and the ends of their connections."""
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    watches = [watch_of(0, {rank: pair[0] for rank, pair in pairs.items()}), *(watch_of(rank, {0: pairs[rank][1]}) for rank in (1, 2))]
    yield SimpleNamespace(watches=watches, pairs=pairs)
    for pair in pairs.values():
        for end in pair:
            end.close()


def test_all_hear_why_a_process_has_ended_and_that_it_was_which(three):
    three.watches[1].leave("has ended: no such file")
    for rank in (0, 2):
        assert three.watches[rank].lost(10) == "rank 1 (host1, process 101) of 3 has ended: no such file"


def test_all_hear_that_a_process_is_gone_without_a_word(three):
    three.pairs[2][1].shutdown(socket.SHUT_RDWR)  # as the kernel does for one that is killed
    for rank in (0, 1):
        assert three.watches[rank].lost(10) == "rank 2 (host2, process 102) of 3 is gone: it was killed, or its machine is"


def test_the_first_process_is_missed_by_all():
    for rank in (1, 2):
        first, own = socket.socketpair()
        watch = watch_of(rank, {0: own})
        first.close()  # whose own watch would tell the others of the first that it loses
        assert watch.lost(10) == "rank 0 (host0, process 100) of 3 is gone: it was killed, or its machine is"
        own.close()


def test_a_process_that_has_done_its_work_is_not_missed(three):
    three.watches[1].leave(None)
    three.pairs[1][1].close()
    three.watches[2].leave("has ended: later")
    assert three.watches[0].lost(10) == "rank 2 (host2, process 102) of 3 has ended: later"  # and nothing of rank 1


def test_a_stranger_without_the_token_is_not_let_in():
    listener = socket.create_server(("127.0.0.1", 0))
    stranger = socket.create_connection(listener.getsockname())
    stranger.sendall(b"gu\xffss 1\n")
    friend = socket.create_connection(listener.getsockname())
    friend.sendall(b"secret 2\n")
    found = ranks._accepted(listener, "secret", 1)
    assert list(found) == [2] and stranger.recv(1) == b""
    found[2].sendall(json.dumps("hello").encode())
    assert friend.recv(100) == b'"hello"'
    for each in (stranger, friend, found[2]):
        each.close()
