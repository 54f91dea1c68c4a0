"""Room that several share."""

import random

from sshunt.relay.shares import Shares


def test_the_newest_finds_room_and_whoever_has_most_loses_his_oldest() -> None:
    shares = Shares(10)
    assert shares.add(1, whose=1, room=4) == []
    assert shares.add(2, whose=2, room=3) == []
    assert shares.add(3, whose=2, room=3) == []
    assert shares.add(4, whose=3, room=2) == [2]
    assert shares.add(5, whose=1, room=2) == [1]


def test_a_finished_entry_makes_room_and_may_be_removed_twice() -> None:
    shares = Shares(10)
    shares.add(1, whose=1, room=10)
    shares.remove(1, whose=1)
    shares.remove(1, whose=1)
    shares.remove(2, whose=7)
    assert shares.add(3, whose=2, room=10) == []


def test_an_entry_larger_than_the_limit_goes_in_alone() -> None:
    shares = Shares(10)
    shares.add(1, whose=1, room=5)
    shares.add(2, whose=2, room=5)
    assert sorted(shares.add(3, whose=3, room=11)) == [1, 2]


def test_one_user_s_few_entries_survive_another_s_flood() -> None:
    shares, gone = Shares(1000), set()
    for key in range(5):
        gone.update(shares.add(key, whose=1, room=90))
    sizes = random.Random(1)
    for key in range(5, 5000):
        gone.update(shares.add(key, whose=2, room=sizes.randrange(1, 200)))
    assert not gone & set(range(5))
