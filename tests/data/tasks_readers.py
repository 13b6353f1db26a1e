"""Readers of the tasks' text that know nothing of how it was made: they solve it by its words."""

import re

KEY = r"[a-z]+(?: [a-z]+)+|[0-9a-f-]{36}"
VALUE = r"\d+|[0-9a-f-]{36}|[a-z]+(?: [a-z]+)+"
NEEDLE = re.compile(rf"The code of ({KEY}) is ({VALUE})\.")
PAIR = re.compile(rf" ({KEY}) = ({VALUE});")
LET = re.compile(r"Let ([a-z]+) be ([a-z]+|\d+)\.")
EVENT = re.compile(
    r"([A-Z][a-z]+) (?:(?:went|walked) to the (?P<place>[a-z]+)"
    r"|(?:picked up|took) the (?P<taken>[a-z]+)"
    r"|(?:dropped|put down) the (?P<dropped>[a-z]+)"
    r"|(?:gave|handed) the (?P<given>[a-z]+) to (?P<whom>[A-Z][a-z]+))\."
)


def names_of(text: str, value: str) -> list[str]:
    """The names that come down to a value through a text's Lets, in the order of the text."""
    meaning: dict[str, str] = {}
    for name, what in LET.findall(text):
        meaning[name] = meaning.get(what, what)
    return [name for name, what in meaning.items() if what == value]


def whereabouts(sentences: list[str], question: str) -> str | None:
    """The answer to a question about a story, or None where the sentences do not tell it."""
    at: dict[str, str] = {}
    holder: dict[str, str] = {}
    been: dict[str, list[str]] = {}

    def see(thing: str, person: str) -> None:
        place = at.get(person)
        if place is not None and been.setdefault(thing, [place])[-1] != place:
            been[thing].append(place)

    for sentence in sentences:
        for found in EVENT.finditer(sentence):
            who = found[1]
            if found["place"]:
                at[who] = found["place"]
                for thing, person in holder.items():
                    if person == who:
                        see(thing, who)
            elif thing := found["taken"]:
                holder[thing] = who
                see(thing, who)
            elif thing := found["given"]:
                holder[thing] = found["whom"]
                see(thing, found["whom"])
            elif thing := found["dropped"]:
                holder.pop(thing, None)
                see(thing, who)
    if asked := re.search(r"Where is ([A-Z][a-z]+)\?", question):
        return at.get(asked[1])
    if asked := re.search(r"Where is the ([a-z]+)\?", question):
        return been.get(asked[1], [None])[-1]
    thing, place = re.search(r"Where was the ([a-z]+) before the ([a-z]+)\?", question).groups()
    path = been.get(thing, [])
    return path[path.index(place) - 1] if place in path[1:] else None
