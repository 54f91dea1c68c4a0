"""Room that several share: who takes most of it loses his oldest first. Pure.

A limit that turns away the newest lets whoever fills it keep everybody out. Here the newest always
finds room, and what goes is the oldest of whoever has most: one who asks for little loses nothing,
however much others ask for.

Invariants: what is in has no more than ``room`` together, unless it is one thing alone.
"""

from collections import OrderedDict
from typing import Dict, List


class Shares:
    """Things by key, each with whose it is and the room that it takes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._taken = 0
        self._things: "Dict[int, OrderedDict[int, int]]" = {}  # whose -> key -> room, oldest first
        self._taken_by: Dict[int, int] = {}

    def add(self, key: int, whose: int, room: int) -> List[int]:
        """``key`` is new; the keys of those that had to go for it."""
        self._things.setdefault(whose, OrderedDict())[key] = room
        self._taken_by[whose] = self._taken_by.get(whose, 0) + room
        self._taken += room
        gone = []
        while self._taken > self._room:
            oldest = {each: next(iter(self._things[each])) for each in self._things}
            others = [each for each in oldest if oldest[each] != key]
            if not others:
                break
            greediest = max(others, key=lambda each: self._taken_by[each])
            gone.append(oldest[greediest])
            self.remove(oldest[greediest], greediest)
        return gone

    def remove(self, key: int, whose: int) -> None:
        """It is over; nothing happens if it has gone already."""
        things = self._things.get(whose)
        room = things.pop(key, None) if things is not None else None
        if room is None:
            return
        self._taken -= room
        self._taken_by[whose] -= room
        if not things:
            del self._things[whose], self._taken_by[whose]
