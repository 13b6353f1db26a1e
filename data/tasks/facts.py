"""Facts over a story: people go places and take, drop and give things; where is what, and why.

Questions of one, two and three supporting facts, hidden in a text, after bAbI (Weston et al., 2015)
and BABILong (Kuratov et al., 2024); world and wording are this project's. The support says which
statements ought to be in focus.
"""

from typing import Literal, NamedTuple

import numpy as np

from data.tasks import words
from data.tasks.assembly import NOTHING, Plan, Question, Setting, wrong
from mctx.errors import UserError

Verb = Literal["move", "take", "drop", "give"]

# Two ways to say each, so that no verb can be learnt by heart.
_SAID = {
    "move": (" {who} went to the {what}.", " {who} walked to the {what}."),
    "take": (" {who} picked up the {what}.", " {who} took the {what}."),
    "drop": (" {who} dropped the {what}.", " {who} put down the {what}."),
    "give": (" {who} gave the {what} to {whom}.", " {who} handed the {what} to {whom}."),
}
_EVENTS = {1: 12, 2: 20, 3: 28}  # events of a story by the facts that its question needs
_MORE = 100  # events by which a story may grow until it holds a question


class Event(NamedTuple):
    """Someone does something; `what` is the place of a move, else the object."""

    who: str
    verb: Verb
    what: str
    whom: str = ""


class Asked(NamedTuple):
    """A question about the end of a story: its words, its answer, and the events that tell it."""

    ask: str
    answer: str
    support: tuple[int, ...]  # indices of events, rising


class Cast(NamedTuple):
    """Who and what a story is about."""

    people: list[str]
    objects: list[str]
    places: list[str]


class World(NamedTuple):
    """What is known of a story after its events; what is not told is not in it."""

    moves: dict[str, list[int]]  # person: events that moved them
    holder: dict[str, str]  # object: who has it
    gained: dict[str, int]  # object: the event since which its holder has it
    dropped: dict[str, int]  # object: the event that left it where it lies
    path: dict[str, list[str]]  # object: the places where it has been, as told


def cast(
    rng: np.random.Generator, split: words.Split, people: int, objects: int, places: int
) -> Cast:
    """Draw so many people, objects and places of a split."""
    return Cast(
        words.choose(rng, words.listed("people", split), people),
        words.choose(rng, words.listed("objects", split), objects),
        words.choose(rng, words.listed("places", split), places),
    )


def story(rng: np.random.Generator, of: Cast, count: int) -> tuple[list[Event], World]:
    """A random story of `count` events, and what is known at its end."""
    events: list[Event] = []
    world = World({}, {}, {}, {}, {})
    lying = {thing: of.places[rng.integers(len(of.places))] for thing in of.objects}
    for number in range(count):
        event = _next(rng, of, events, world, lying)
        events.append(event)
        _happen(world, events, number, event)
        if event.verb == "drop":
            lying[event.what] = _place(world, events, event.who)
        elif event.verb == "take":
            del lying[event.what]
    return events, world


def questions(events: list[Event], world: World, hops: int) -> list[Asked]:
    """All questions about the end of a story that need just so many facts."""
    if hops == 1:
        return [
            Asked(f" Where is {who}? {who} is in the", events[moves[-1]].what, (moves[-1],))
            for who, moves in world.moves.items()
        ]
    asked = []
    for thing in world.gained:
        if hops == 2:
            asked.append(Asked(
                f" Where is the {thing}? The {thing} is in the", world.path[thing][-1],
                _whereabouts(world, events, thing),
            ))
        elif hops == 3 and thing in world.holder:
            path, moves = world.path[thing], world.moves[world.holder[thing]]
            # Carried away by its holder since it was gained, to where it never was before.
            if moves[-1] > world.gained[thing] and len(moves) > 1 and path.count(path[-1]) == 1:
                asked.append(Asked(
                    f" Where was the {thing} before the {path[-1]}?"
                    f" Before the {path[-1]}, the {thing} was in the",
                    path[-2], tuple(sorted((moves[-2], moves[-1], world.gained[thing]))),
                ))
    return asked


def facts(
    setting: Setting, *, hops: int = 1, events: int | None = None,
    people: int = 4, objects: int = 3, places: int = 6,
) -> Plan:
    """A story hidden in a text, and where someone or something is, or was.

    Args:
      hops: facts that the question needs: 1 (where is Mary?), 2 (where is the cup?), 3 (where was
        the cup before the garden?).
      events: statements of the story, or more where its question needs them; None for 12, 20, 28
        by hops.
      people, objects, places: how many take part.
    """
    if hops not in _EVENTS:
        raise UserError(f"Questions need 1, 2 or 3 facts, not {hops}.")
    rng, encoder = setting.rng, setting.encoder
    of = cast(rng, setting.split, people, objects, places)
    count = _EVENTS[hops] if events is None else events
    told, possible = _story_with_question(rng, of, count, hops)
    chosen = [possible[i] for i in rng.permutation(len(possible))[:setting.questions]]
    statements = encoder(*(say(rng, event) for event in told))
    depths = np.sort(rng.uniform(size=len(told)))
    if setting.depth is not None:
        first = chosen[0].support[0]
        depths = np.concatenate([
            np.sort(rng.uniform(0, setting.depth, first)), [setting.depth],
            np.sort(rng.uniform(setting.depth, 1, len(told) - first - 1)),
        ])
    seen = {event.what for event in told if event.verb == "move"}
    unused = [place for place in words.listed("places", setting.split) if place not in of.places]
    asked = [
        Question(
            encoder.one(question.ask), (encoder.one(f" {question.answer}"),), question.support,
            *wrong(
                rng, encoder(f" {question.answer}"),
                encoder(*(f" {place}" for place in of.places
                          if place in seen and place != question.answer)),
                encoder(*(f" {place}" for place in words.choose(rng, tuple(unused), 8))),
            ),
        )
        for question in chosen
    ]
    return Plan(
        NOTHING, tuple(statements), depths, tuple(asked), "all",
        {"hops": hops, "events": len(told)}, alone=False,
    )


def _story_with_question(
    rng: np.random.Generator, of: Cast, count: int, hops: int
) -> tuple[list[Event], list[Asked]]:
    """A story and its questions; each in vain makes the next longer by an event."""
    for events in range(count, count + _MORE):
        told, world = story(rng, of, events)
        if possible := questions(told, world, hops):
            return told, possible
    raise UserError("Such people never come to such a question; ask for more places and objects.")


def say(rng: np.random.Generator, event: Event) -> str:
    """An event as a sentence."""
    forms = _SAID[event.verb]
    return forms[rng.integers(len(forms))].format(
        who=event.who, what=event.what, whom=event.whom
    )


def _place(world: World, events: list[Event], who: str) -> str | None:
    return events[world.moves[who][-1]].what if who in world.moves else None


def _happen(world: World, events: list[Event], number: int, event: Event) -> None:
    """Add an event to what is known; `events` holds it at `number`."""
    if event.verb == "move":
        world.moves.setdefault(event.who, []).append(number)
        for thing, holder in world.holder.items():
            if holder == event.who:
                world.path[thing].append(event.what)
        return
    thing = event.what
    if event.verb == "drop":
        del world.holder[thing]
        world.dropped[thing] = number
        return
    world.holder[thing] = event.whom or event.who
    world.gained[thing] = number
    world.dropped.pop(thing, None)
    here = _place(world, events, event.who)
    if here is not None and world.path.setdefault(thing, [here])[-1] != here:
        world.path[thing].append(here)


def _whereabouts(world: World, events: list[Event], thing: str) -> tuple[int, int]:
    """The two events that say where a thing is: who has or left it, and where they were then."""
    if thing in world.holder:
        last = world.gained[thing]
        move = world.moves[world.holder[thing]][-1]
    else:
        last = world.dropped[thing]
        move = max(number for number in world.moves[events[last].who] if number < last)
    return min(last, move), max(last, move)


def _next(
    rng: np.random.Generator, of: Cast, events: list[Event], world: World, lying: dict[str, str]
) -> Event:
    """What happens next: any legal event, moves as often as all else together."""
    who = of.people[rng.integers(len(of.people))]
    here = _place(world, events, who)
    others = [
        other for other in of.people if other != who and _place(world, events, other) == here
    ]
    deeds = [Event(who, "take", thing) for thing, place in lying.items() if place == here]
    for thing, holder in world.holder.items():
        if holder == who:
            deeds.append(Event(who, "drop", thing))
            deeds += [Event(who, "give", thing, other) for other in others]
    if here is not None and deeds and rng.random() < 0.6:
        return deeds[rng.integers(len(deeds))]
    away = [place for place in of.places if place != here]
    return Event(who, "move", away[rng.integers(len(away))])
