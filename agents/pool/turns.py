"""Whose turn it is: which engine gets which requests, what is loaded next, and who gives way for it.

Nothing in here waits, and no clock but the `now` of its calls is read, so that every decision can be
replayed. The rules, in this order:

1. An engine at work gets further requests of its group, unless it has to give way.
2. Groups that nobody serves come in the order: those that have waited longer than `patience`, longest
   first; then the plan's order; then the order of arrival.
3. Such a group takes a free lane if its weights are loaded. Otherwise it is woken, takes the place of weights
   of the same shape that are not needed any more, or is loaded where memory is free, after idle models, least
   recently used first, have been put to sleep or unloaded. As long as a loaded model has requests, it stays.
4. Only for a group that has waited longer than `patience` do models that have requests give way: those that
   have had their turn longest, and each after at least `min_residency` seconds of it.
5. With nobody waiting, a group with much left to do gets a second engine on a free lane, where the time saved
   is longer than the load.

So a group with requests is unserved at most `patience` and then, for itself and each group that has waited
longer, `min_residency`, what the model that gives way has in flight, and one load.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .actions import Action, Begin, End, Refuse, Rest, Start, Swap, Wake
from .devices import Device
from .groups import Group
from .queues import Queues
from .residents import Need, Resident
from .rooms import Rooms

__all__ = ["TurnSettings", "Turns"]

ARRIVAL_SECONDS = 2.0
"""How long after a plan its first requests may take to arrive."""
MOST_ASLEEP = 8
"""Engines that sleep at a time: each keeps a process, and may keep its weights in main memory."""
LEAST_ANSWERS = 8
"""Before so many answers nobody knows how fast an engine is."""
SWAP_SECONDS = 1.0
"""What replacing weights in place is taken to cost where a second engine may be worth it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """What the pool file says about turns; see `PoolFile`."""

    patience: float = math.inf
    """Seconds; infinite in batch mode, where nothing is unloaded that still has requests."""
    min_residency: float = 2.0
    max_resident: int | None = None
    swap_in_place: bool = True
    sleep: bool = True
    replicate: bool = True


class Turns:
    """The state of the loop: what waits, and what is loaded where.

    Args:
        settings: See `TurnSettings`.
        reach: Bytes that further engines could take on a device now, whoever takes the rest.
    """

    def __init__(self, settings: TurnSettings, reach: Callable[[Device], int]) -> None:
        self.settings = settings
        self.queues = Queues()
        self.residents: dict[int, Resident] = {}
        self.needs: dict[str, Need] = {}
        self.expected: Counter[str] = Counter()
        """Requests that a plan announced and that were not answered yet, by group."""
        self.speed: dict[str, float] = {}
        """Requests that one engine of a group answers in a second, as measured."""
        self.solitary: set[str] = set()
        """Groups of which a replica failed: they get no other."""
        self.unswappable: set[str | None] = set()
        """Families of which a swap in place went wrong: they are loaded afresh from now on."""
        self._rank: Mapping[str, int] = {}
        self._preferred: Mapping[str, str] = {}
        self._announced_at = -math.inf
        self._yielding: set[int] = set()
        self._rooms = Rooms(self.residents, settings.max_resident, reach)
        self._numbers = itertools.count(1)

    def follow(self, ranks: Mapping[str, int], devices: Mapping[str, str], now: float) -> None:
        """Take a plan's order of groups, and the name of the device for each."""
        self._rank, self._preferred, self._announced_at = dict(ranks), dict(devices), now

    def _awaits_others(self, key: str, now: float) -> bool:
        """Whether weights are not loaded yet because others that the plan wants first are on their way.

        The requests of a plan arrive one after the other, within moments; whoever comes first must not
        take the place of whoever is to be loaded first.
        """
        if now >= self._announced_at + ARRIVAL_SECONDS or key not in self._rank:
            return False
        present = {resident.group.key for resident in self.residents.values()}
        return key not in present and any(
            rank < self._rank[key] and self.expected[other] > 0
            for other, rank in self._rank.items()
            if other not in self.queues and other not in present
        )

    def decide(self, now: float) -> list[Action]:
        """What is to be done now. The state is already as if it were being done."""
        self._rooms.begin()
        self._yielding = set()
        actions: list[Action] = []
        for group, is_due in self._waiting_groups(now):
            if not self._awaits_others(group.key, now):
                actions += self._help(group, is_due, now)
        for resident in list(self.residents.values()):
            # One without requests stands beside another of its group; whoever waits was served above.
            if resident.state == "ready" and (
                resident.slices or self._rooms.has_lane(resident.device)
            ):
                actions += self._feed(resident, now)
        if self.settings.replicate and not self._waiting_groups(now):
            actions += self._replicate(now)
        return actions

    def _help(self, group: Group, is_due: bool, now: float) -> list[Action]:
        """Serve a group, if need be by having others give way; keep what it is waiting for."""
        actions = self._serve(group, now)
        if actions is None and is_due:
            device, memory = self._ask_to_yield(group, now)
            actions = self._serve(group, now)  # who has to give way may be idle already
            if actions is None:
                # Nobody who came later may take it, not even where this one cannot have it yet.
                self._rooms.claim(device, memory)
        return actions or []

    def next_change(self, now: float) -> float | None:
        """When, without any message, a decision could be another one; None for never."""
        times: list[float] = []
        for group, is_due in self._waiting_groups(now):
            if self._awaits_others(group.key, now):
                times.append(self._announced_at + ARRIVAL_SECONDS)
            if not is_due:
                times.append(self.queues.waiting_since(group.key) + self.settings.patience)
            else:
                times += [r.turn_at + self.settings.min_residency for r in self.residents.values()]
        return min((time for time in times if now < time < math.inf), default=None)

    def _waiting_groups(self, now: float) -> list[tuple[Group, bool]]:
        """Groups with requests that nobody serves, in their order, and whether each is due."""
        served = {r.group.key for r in self.residents.values() if r.is_busy and not r.is_dead}
        rows: list[tuple[bool, float, int, Group]] = []
        for key in self.queues:
            if key not in served and key in self.needs:
                first, since = self.queues.first(key), self.queues.waiting_since(key)
                is_due = now >= since + self.settings.patience  # as `next_change` adds it up
                place = since if is_due else self._rank.get(key, len(self._rank))
                rows.append((not is_due, place, first.number, first.group))
        rows.sort(key=lambda row: row[:3])
        return [(group, not is_patient) for is_patient, _, _, group in rows]

    def next_to_load(self) -> Group | None:
        """The group that will be loaded next, as far as anybody can tell now."""
        loaded = {resident.group.key for resident in self.residents.values()}
        waiting = (group for group, _ in self._waiting_groups(-math.inf))
        return next((group for group in waiting if group.key not in loaded), None)

    def note_speed(self, resident: Resident, now: float) -> None:
        """Learn how fast a group's engines are, from what one has answered in this turn."""
        seconds = now - resident.turn_at
        if resident.answered >= LEAST_ANSWERS and seconds > 0:
            self.speed[resident.group.key] = resident.answered / seconds

    def of(self, key: str, state: str) -> list[Resident]:
        """A group's engines in a state, by number; dead ones are none."""
        return [
            r
            for r in self.residents.values()
            if r.group.key == key and r.state == state and not r.is_dead
        ]

    def _feed(self, resident: Resident, now: float) -> Iterator[Action]:
        if resident.number in self._yielding or resident.is_dead:
            return
        sharers = max(1, len(self.of(resident.group.key, "ready")))
        for slice_ in self.queues.feed(resident, now, sharers=sharers):
            if not resident.slices and now > resident.used_at:
                resident.turn_at, resident.answered = now, 0
            resident.slices.append(slice_)
            resident.used_at = now
            yield Begin(resident, slice_)

    def _serve(self, group: Group, now: float) -> list[Action] | None:
        """Give a group that nobody serves a lane, or a place to be loaded; None if there is none."""
        loaded = self.of(group.key, "ready")
        for resident in loaded:
            if self._rooms.has_lane(resident.device) or self._goes_on(resident, now):
                return list(self._feed(resident, now))
        if loaded:
            return None
        devices = self._choices(group.key)
        action = self._seat(group, devices, now)
        if action is not None:
            return [action]
        cleared = self._clear(group, devices)
        if cleared is None and self._is_hopeless(devices):
            return [Refuse(group)]
        return cleared

    def _is_hopeless(self, devices: Sequence[Device]) -> bool:
        """Whether nothing of ours is in the way that would ever go by itself: others take the memory."""
        return all(
            len(self._idle(device)) == len(self._rooms.on(device)) and self._rooms.has_lane(device)
            for device in devices
        )

    def _goes_on(self, resident: Resident, now: float) -> bool:
        """Whether it has answered all it had just now, in the middle of its turn, and its lane is free still."""
        is_its_turn = now < resident.turn_at + self.settings.min_residency
        return (
            is_its_turn
            and resident.used_at == now
            and self._rooms.has_lane(resident.device, promised=False)
        )

    def _seat(
        self, group: Group, devices: Sequence[Device], now: float, *, replica: bool = False
    ) -> Action | None:
        """Wake it, swap it in, or start it on the first device that allows it; where it sleeps, if there."""
        need = self.needs[group.key]
        beds = [resident.device for resident in self.of(group.key, "asleep")]
        for device in sorted(devices, key=lambda device: device not in beds):
            if not self._rooms.has_lane(device):
                continue
            fits = self._rooms.fits(device, need.memory_bytes)
            sleeper = next((r for r in self.of(group.key, "asleep") if r.device == device), None)
            if sleeper is not None and fits:
                sleeper.state, sleeper.memory_bytes = "loading", need.memory_bytes
                sleeper.previous = self._rooms.name_departed(device)
                return Wake(sleeper)
            place = self._find_place(device, need, crowded=not fits)
            if place is not None:
                return self._swap(place, group, now, replica)
            if fits:
                return self._start(group, device, now, replica)
        return None

    def _choices(self, key: str) -> list[Device]:
        """Devices in the order in which they are tried: the plan's, the emptiest, by name."""
        need, wanted = self.needs[key], self._preferred.get(key)
        fitting = [d for d in need.devices if d.memory_bytes >= need.memory_bytes]
        return sorted(fitting, key=lambda d: (d.name != wanted, -self._rooms.free(d), d.name))

    def _find_place(self, device: Device, need: Need, *, crowded: bool) -> Resident | None:
        """An idle engine whose weights may be replaced in place: least recently used first.

        Where memory is free, only weights that a plan does not need any more: a model that may be asked
        again is worth more than the seconds that a start takes.
        """
        if not (self.settings.swap_in_place and need.family is not None and need.is_probed):
            return None
        if need.family in self.unswappable:
            return None
        places = [
            resident
            for resident in self._idle(device)
            if resident.family == need.family
            and (crowded or (self.expected and self.expected[resident.group.key] <= 0))
        ]
        return min(places, key=lambda r: (r.used_at, r.number), default=None)

    def _idle(self, device: Device) -> list[Resident]:
        """Engines that nobody needs at the moment or that have to give way, least recently used first."""
        idle = [
            r
            for r in self._rooms.on(device)
            if r.state == "ready"
            and not r.slices
            and not r.is_dead
            and (r.group.key not in self.queues or r.number in self._yielding)
        ]
        return sorted(idle, key=lambda r: (r.used_at, r.number))

    def _start(self, group: Group, device: Device, now: float, replica: bool) -> Action:
        need = self.needs[group.key]
        resident = Resident(
            number=next(self._numbers),
            group=group,
            device=device,
            memory_bytes=need.memory_bytes,
            family=need.family,
            replica=replica,
            previous=self._rooms.name_departed(device),
            turn_at=now,
            used_at=now,
        )
        self.residents[resident.number] = resident
        return Start(resident)

    def _swap(self, place: Resident, group: Group, now: float, replica: bool) -> Action:
        place.previous = place.group.name
        place.group, place.state, place.replica = group, "loading", replica
        place.memory_bytes = max(place.memory_bytes, self.needs[group.key].memory_bytes)
        place.turn_at = place.used_at = now
        return Swap(place)

    def _clear(self, group: Group, devices: Sequence[Device]) -> list[Action] | None:
        """Unload idle models where that makes enough room, and keep that room; None if it does not."""
        need = self.needs[group.key]
        for device in devices:
            if not self._rooms.has_lane(device):
                continue
            leaving = self._rooms.find_victims(device, need.memory_bytes, self._idle(device))
            if leaving is not None:
                self._rooms.claim(device, need.memory_bytes)
                return [self._dismiss(resident) for resident in leaving]
        return None

    def _dismiss(self, resident: Resident) -> Action:
        resident.state = "leaving"
        self._rooms.note_departed(resident)
        return Rest(resident) if self._may_rest(resident) else End(resident)

    def _may_rest(self, resident: Resident) -> bool:
        """Whether it is worth a process that sleeps: it may be wanted again, and there are not too many."""
        if not (self.settings.sleep and resident.can_sleep):
            return False
        is_done = bool(self.expected) and self.expected[resident.group.key] <= 0
        asleep = sum(r.state == "asleep" for r in self.residents.values())
        return not is_done and asleep < MOST_ASLEEP

    def _ask_to_yield(self, group: Group, now: float) -> tuple[Device, int]:
        """Choose the engines that must finish for a group that has waited too long.

        Returns:
            The device that it waits for, and the bytes that it wants there: none if it is loaded.
        """
        homes = [resident.device for resident in self.of(group.key, "ready")]
        need = 0 if homes else self.needs[group.key].memory_bytes
        devices = homes or self._choices(group.key)
        for device in devices:
            had_turn = [
                r
                for r in self._rooms.on(device)
                if r.state == "ready"
                and r.group.key != group.key
                and now >= r.turn_at + self.settings.min_residency
            ]
            had_turn.sort(key=lambda r: (r.turn_at, r.number))
            chosen = self._rooms.find_yielders(device, need, had_turn)
            if chosen is not None:
                self._yielding.update(resident.number for resident in chosen)
                return device, need
        return min(devices, key=lambda d: (d.name != self._preferred.get(group.key), d.name)), need

    def _replicate(self, now: float) -> Iterator[Action]:
        """Start one more engine for the group that gains most, if any gains enough."""
        gains = [
            (-self._gain_of_replica(key), self.queues.first(key).number, key) for key in self.queues
        ]
        for loss, _, key in sorted(gains)[:1]:
            if loss < 0:
                group = self.queues.first(key).group
                action = self._seat(group, self._choices(key), now, replica=True)
                if action is not None:
                    yield action

    def _gain_of_replica(self, key: str) -> float:
        """Seconds by which the time saved exceeds the load; negative if it does not pay.

        R requests left at n engines of s requests/s take R / (n s); a further engine that joins after l
        seconds takes its share of what is left then.
        """
        need, speed = self.needs.get(key), self.speed.get(key, 0.0)
        engines = len(self.of(key, "ready"))
        if (
            need is None
            or not speed
            or not engines
            or self.of(key, "loading")
            or key in self.solitary
        ):
            return -1.0
        places = (self._find_place(d, need, crowded=False) for d in self._choices(key))
        load = SWAP_SECONDS if any(places) else need.load_seconds or math.inf
        left, together = self.queues.count(key), speed * engines
        if load * together >= left:
            return -1.0
        saved = left / together - load - (left - together * load) / (together + speed)
        return saved - load
