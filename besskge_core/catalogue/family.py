"""`family`: a knowledge graph of any size, made up by rules that an embedding can learn.

People live in *clans* of four generations; within a clan, each generation marries and has the
children that are the next. Clans live in cities, cities lie in countries, countries on continents,
and people work for employers of the city they live in.

================ ================== ======== =====================================================
relation         head, tail         pattern  may be held out, for it follows from
================ ================== ======== =====================================================
parent_of        person, person     n-n      its inverse child_of
child_of         person, person     n-n      its inverse parent_of
spouse_of        person, person     1-1      itself, symmetric
sibling_of       person, person     n-n      itself, symmetric (also transitive)
ancestor_of      person, person     n-n      parent_of, up to 3 times in a row
born_in          person, place      n-1      child_of, then lives_in
lives_in         person, place      n-1      spouse_of or child_of, then lives_in
citizen_of       person, place      n-1      lives_in, then located_in
works_for        person, employer   n-1      its inverse employs
employs          employer, person   1-n      its inverse works_for
headquartered_in employer, place    n-1      (always in train)
located_in       place, place       n-1      itself, transitive: city, country, continent
capital_of       place, place       1-1      (always in train; implies located_in)
borders          place, place       n-n      itself, symmetric
================ ================== ======== =====================================================

About 5 % of the triples are held out for "valid" and 5 % for "test", never two that explain each
other: a pair of inverses loses one member at most. Hence each held-out triple follows from "train",
which knows every entity, and a perfect model is conceivable.

The generator works on chunks of clans, all clans of a chunk at once. Random numbers are addressed
by seed and chunk (Philox, counter-based), so that memory beyond the result stays bounded and the
same (n_person, seed, noise) gives the same graph everywhere. 650,000 people give ten million
triples.

Axes: C clans of the chunk, G generations, K couples of a generation, M = 2 K its members (men
first), A = G M people of a clan.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import numpy as np
from numpy.typing import NDArray

from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError

__all__ = ["RELATIONS", "family"]

RELATIONS = (
    "parent_of",
    "child_of",
    "spouse_of",
    "sibling_of",
    "ancestor_of",
    "born_in",
    "lives_in",
    "citizen_of",
    "works_for",
    "employs",
    "headquartered_in",
    "located_in",
    "capital_of",
    "borders",
)
PARTS = ("train", "valid", "test")

G, K = 4, 8
M = 2 * K
A = G * M
MAX_CHILD = 4  # of a couple; few enough that everyone can marry outside the own siblings
CITIES_PER_COUNTRY, COUNTRIES_PER_CONTINENT = 4, 4
TRADES = ("Bank", "Mill", "Press", "Railway")
CHUNK = 256
HELD_OUT = 0.115  # share of the triples that may be held out; about 10 % of all
PLACES_CHUNK = 2**32 - 1  # address of the random numbers for places

Ints = NDArray[np.int64]


class Facts(NamedTuple):
    """Triples int64 (n, 3), and the part of each, int64 (n,): 0 train, 1 valid, 2 test."""

    triples: Ints
    part: Ints


class World(NamedTuple):
    """How many there are of each kind, and their first IDs."""

    n_clan: int
    n_country: int
    n_continent: int

    @property
    def n_person(self) -> int:
        return self.n_clan * A

    @property
    def first_country(self) -> int:
        return self.n_person + self.n_clan  # each clan has its home city

    @property
    def first_continent(self) -> int:
        return self.first_country + self.n_country

    @property
    def first_employer(self) -> int:
        return self.first_continent + self.n_continent

    @property
    def n_entity(self) -> int:
        return self.first_employer + self.n_clan * len(TRADES)


def family(n_person: int = 1920, seed: int = 0, noise: float = 0.0) -> KGDataset:
    """Make the graph.

    Args:
        n_person: number of people, rounded up to whole clans of 64; there are about 15 triples
            and 0.08 places and employers a person.
        seed: 0 to 2**64 - 1; another one gives another graph.
        noise: share of the triples of "train" that are false: the tail of a true triple about a
            person, replaced by a random entity of the same type.
    """
    if n_person < 1:
        raise ConfigError(f"n_person is {n_person}, expected at least 1")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}, expected 0 to 2**64 - 1")
    if not 0 <= noise <= 0.5:
        raise ConfigError(f"noise is {noise}, expected 0 <= noise <= 0.5")
    n_clan = -(-n_person // A)
    n_country = -(-n_clan // CITIES_PER_COUNTRY)
    world = World(n_clan, n_country, -(-n_country // COUNTRIES_PER_CONTINENT))
    if world.n_entity >= 2**31:
        raise ConfigError(f"n_person is {n_person}, too many: entity IDs are int32")
    chunks = [_place_facts(world, _generator(seed, PLACES_CHUNK))]
    for first in range(0, n_clan, CHUNK):
        rng = _generator(seed, first // CHUNK)
        facts = _clan_facts(world, first, min(CHUNK, n_clan - first), rng)
        chunks.append(_with_noise(facts, world, noise, rng))
    return _dataset(world, chunks)


def _generator(seed: int, chunk: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, chunk]))


def _dataset(world: World, chunks: List[Facts]) -> KGDataset:
    part = np.concatenate([facts.part for facts in chunks]).astype(np.int8)
    triples = np.concatenate([facts.triples.astype(np.int32) for facts in chunks])
    rows = {name: np.flatnonzero(part == i) for i, name in enumerate(PARTS)}
    return KGDataset(
        n_entity=world.n_entity,
        n_relation_type=len(RELATIONS),
        triples={name: triples[row] for name, row in rows.items()},
        original_triple_ids=rows,
        entity_dict=_names(world),
        relation_dict=list(RELATIONS),
        type_offsets={"person": 0, "place": world.n_person, "employer": world.first_employer},
    )


# -- facts -----------------------------------------------------------------------------------------


def _held_out_one_of(n: int, n_member: int, rng: np.random.Generator) -> Ints:
    """Parts (n, n_member) of n groups of facts that explain each other: one is held out at most."""
    drawn = rng.random(n) / HELD_OUT
    held = np.arange(n_member) == np.floor(drawn)[:, None]
    return np.where(held, np.where(drawn % 1 < 0.5, 1, 2)[:, None], 0)


def _facts(relations: Tuple[str, ...], pairs: List[Tuple[Ints, Ints]], parts: Ints) -> Facts:
    """Triples of groups: the i-th relation holds for the i-th pairs, and has the i-th parts."""
    triples = [
        np.stack([h, np.full_like(h, RELATIONS.index(relation)), t], axis=1)
        for relation, (h, t) in zip(relations, pairs)
    ]
    return Facts(np.concatenate(triples), parts.T.ravel())


def _both_ways(relation: str, inverse: str, h: Ints, t: Ints, rng: np.random.Generator) -> Facts:
    return _facts((relation, inverse), [(h, t), (t, h)], _held_out_one_of(len(h), 2, rng))


def _joined(facts: List[Facts]) -> Facts:
    return Facts(*(np.concatenate(column) for column in zip(*facts)))


def _place_facts(world: World, rng: np.random.Generator) -> Facts:
    city = world.n_person + np.arange(world.n_clan)
    country = world.first_country + np.arange(world.n_country)
    continent = world.first_continent + np.arange(world.n_country) // COUNTRIES_PER_CONTINENT
    country_of_city = np.arange(world.n_clan) // CITIES_PER_COUNTRY
    employer = world.first_employer + np.arange(world.n_clan * len(TRADES))
    known = [
        ("located_in", city, country[country_of_city]),
        ("located_in", country, continent),
        ("headquartered_in", employer, np.repeat(city, len(TRADES))),
        ("capital_of", city[::CITIES_PER_COUNTRY], country),
    ]
    neighbours = np.flatnonzero(continent[1:] == continent[:-1])
    return _joined(
        [_facts((name,), [(h, t)], np.zeros((len(h), 1), np.int64)) for name, h, t in known]
        + [
            _facts(
                ("located_in",),
                [(city, continent[country_of_city])],
                _held_out_one_of(world.n_clan, 1, rng),
            ),
            _both_ways("borders", "borders", country[neighbours], country[neighbours + 1], rng),
        ]
    )


def _clan_facts(world: World, first: int, n_clan: int, rng: np.random.Generator) -> Facts:
    """All that is true of the people of some clans."""
    wife_CGK, couple_CGM = _marriages_and_births(n_clan, rng)
    parent_CAA = _parents(wife_CGK, couple_CGM)
    person_CGM = (first + np.arange(n_clan))[:, None] * A + np.arange(A)
    person_CGM = person_CGM.reshape(n_clan, G, M)
    return _joined(
        [
            *_kinship_facts(person_CGM, wife_CGK, couple_CGM, parent_CAA, rng),
            *_residence_facts(world, first, person_CGM, wife_CGK, couple_CGM, rng),
        ]
    )


def _marriages_and_births(n_clan: int, rng: np.random.Generator) -> Tuple[Ints, Ints]:
    """Who marries whom, and who is whose child; nobody marries a sibling.

    Returns:
        wife_CGK: wife of man k, a number of 0 to K - 1 among the women.
        couple_CGM: couple of the generation before whose child this is; of the founders, -1 - m.
    """
    wife_CGK = np.zeros((n_clan, G, K), np.int64)
    couple_CGM = np.zeros((n_clan, G, M), np.int64)
    couple_CGM[:, 0] = -1 - np.arange(M)
    for g in range(G):
        if g:
            cradle = np.argsort(rng.random((n_clan, K * MAX_CHILD)), axis=1, kind="stable")
            couple_CGM[:, g] = cradle[:, :M] // MAX_CHILD
        unsettled = np.arange(n_clan)
        while len(unsettled):
            wife = np.argsort(rng.random((len(unsettled), K)), axis=1, kind="stable")
            wife_CGK[unsettled, g] = wife
            couple = couple_CGM[unsettled, g]
            of_wife = np.take_along_axis(couple[:, K:], wife, axis=1)
            unsettled = unsettled[(couple[:, :K] == of_wife).any(axis=1)]
    return wife_CGK, couple_CGM


def _parents(wife_CGK: Ints, couple_CGM: Ints) -> NDArray[np.bool_]:
    """parent_CAA[c, a, b]: a is a parent of b."""
    n_clan = len(wife_CGK)
    parent_CAA = np.zeros((n_clan, A, A), dtype=bool)
    clan = np.arange(n_clan)[:, None]
    for g in range(1, G):
        child = g * M + np.arange(M)
        father = couple_CGM[:, g]
        mother = K + np.take_along_axis(wife_CGK[:, g - 1], father, axis=1)
        for parent in (father, mother):
            parent_CAA[clan, (g - 1) * M + parent, child] = True
    return parent_CAA


def _kinship_facts(
    person_CGM: Ints,
    wife_CGK: Ints,
    couple_CGM: Ints,
    parent_CAA: NDArray[np.bool_],
    rng: np.random.Generator,
) -> List[Facts]:
    def people(related_CAA: NDArray[np.bool_]) -> Tuple[Ints, Ints]:
        clan, a, b = np.nonzero(related_CAA)
        first = person_CGM[:, 0, 0]
        return first[clan] + a, first[clan] + b

    step = parent_CAA.astype(np.float32)
    two_steps = step @ step
    ancestor_CAA = parent_CAA | (two_steps > 0) | (two_steps @ step > 0)
    same_couple = couple_CGM[:, :, :, None] == couple_CGM[:, :, None, :]
    older = np.triu(np.ones((M, M), bool), k=1)
    clan, g, a, b = np.nonzero(same_couple & older)
    man = person_CGM[:, :, :K].ravel()
    woman = np.take_along_axis(person_CGM[:, :, K:], wife_CGK, axis=2).ravel()
    ancestors = people(ancestor_CAA)
    return [
        _both_ways("parent_of", "child_of", *people(parent_CAA), rng),
        _both_ways("spouse_of", "spouse_of", man, woman, rng),
        _both_ways("sibling_of", "sibling_of", person_CGM[clan, g, a], person_CGM[clan, g, b], rng),
        _facts(("ancestor_of",), [ancestors], _held_out_one_of(len(ancestors[0]), 1, rng)),
    ]


def _residence_facts(
    world: World,
    first: int,
    person_CGM: Ints,
    wife_CGK: Ints,
    couple_CGM: Ints,
    rng: np.random.Generator,
) -> List[Facts]:
    """Couples live in the home city or the second city of their clan; children are born there."""
    n_clan = len(person_CGM)
    home_C = first + np.arange(n_clan)
    country_C = home_C // CITIES_PER_COUNTRY
    first_city = country_C * CITIES_PER_COUNTRY
    n_city = np.minimum(CITIES_PER_COUNTRY, world.n_clan - first_city)
    second_C = first_city + np.floor(rng.random(n_clan) * n_city).astype(np.int64)
    moved_CGK = rng.random((n_clan, G, K)) < 0.3
    city_CGK = np.where(moved_CGK, second_C[:, None, None], home_C[:, None, None])
    country_CG = world.first_country + np.repeat(country_C, G * K)

    man = person_CGM[:, :, :K].ravel()
    woman = np.take_along_axis(person_CGM[:, :, K:], wife_CGK, axis=2).ravel()
    city = city_CGK.ravel() + world.n_person
    couples = _facts(
        ("lives_in", "lives_in", "citizen_of", "citizen_of"),
        [(man, city), (woman, city), (man, country_CG), (woman, country_CG)],
        _held_out_one_of(len(man), 4, rng),
    )
    # the founders' parents are unknown: their birthplace is the home city, and always in train
    born_CGM = np.repeat(home_C, A).reshape(n_clan, G, M)
    for g in range(1, G):
        born_CGM[:, g] = np.take_along_axis(city_CGK[:, g - 1], couple_CGM[:, g], axis=1)
    born_part = _held_out_one_of(person_CGM.size, 1, rng)
    born_part[(person_CGM % A < M).ravel()] = 0
    born = _facts(
        ("born_in",), [(person_CGM.ravel(), born_CGM.ravel() + world.n_person)], born_part
    )
    adults = np.concatenate([man, woman])
    trade = np.floor(rng.random(len(adults)) * len(TRADES)).astype(np.int64)
    employer = world.first_employer + np.tile(city_CGK.ravel(), 2) * len(TRADES) + trade
    return [couples, born, _both_ways("works_for", "employs", adults, employer, rng)]


def _with_noise(facts: Facts, world: World, noise: float, rng: np.random.Generator) -> Facts:
    """Add false triples to train, so that they are the given share of it."""
    n_true = int((facts.part == 0).sum())
    n_false = round(n_true * noise / (1 - noise))
    if not n_false:
        return facts
    about_people = facts.triples[(facts.triples[:, 0] < world.n_person)]
    bounds = np.array([0, world.n_person, world.first_employer, world.n_entity])
    known = _keys(facts.triples, world)
    false = np.empty((0, 3), np.int64)
    while len(false) < n_false:
        drawn = about_people[np.floor(rng.random(n_false) * len(about_people)).astype(np.int64)]
        kind = np.searchsorted(bounds, drawn[:, 2], side="right") - 1
        size = bounds[kind + 1] - bounds[kind]
        drawn[:, 2] = bounds[kind] + np.floor(rng.random(n_false) * size).astype(np.int64)
        drawn = drawn[~np.isin(_keys(drawn, world), known)]
        joined = np.concatenate([false, drawn])
        first = np.sort(np.unique(_keys(joined, world), return_index=True)[1])
        false = joined[first][:n_false]
    return _joined([facts, Facts(false, np.zeros(n_false, np.int64))])


def _keys(triples: Ints, world: World) -> Ints:
    return (triples[:, 0] * len(RELATIONS) + triples[:, 1]) * world.n_entity + triples[:, 2]


# -- names -----------------------------------------------------------------------------------------
MEN = (
    "Adam Bruno Cyril David Emil Felix Georg Hugo Ivan Jakob Karl Leo Max Noah Oscar Paul Quentin"
    " Rafael Simon Tom Ulrich Victor Walter Xavier Yusuf Zeno Amir Boris Carlos Dario Enzo Farid"
)
WOMEN = (
    "Ada Bella Clara Dora Emma Flora Greta Hanna Ida Julia Klara Lena Maria Nina Olga Paula Quirina"
    " Rosa Sara Tina Ulla Vera Wanda Xenia Yara Zoe Alma Berta Carla Dina Elsa Fatima"
)
SYLLABLES = [c + v for c in "bdfgklmnprstvwz" for v in "aeiou"]


def _words(n: int) -> List[str]:
    """n different words of consonants and vowels, neighbours unlike each other."""
    n_syllable, n_word = 2, len(SYLLABLES) ** 2
    while n_word < n:
        n_syllable, n_word = n_syllable + 1, n_word * len(SYLLABLES)
    number = np.arange(n, dtype=np.int64) * 104729 % n_word  # a prime: each number occurs once
    words = np.full(n, "", dtype=object)
    for _ in range(n_syllable):
        number, digit = np.divmod(number, len(SYLLABLES))
        words = words + np.array(SYLLABLES, dtype=object)[digit]
    return [str(word).capitalize() for word in words]


def _names(world: World) -> List[str]:
    """A name for each entity; people of a clan differ in the first name, clans in the last."""
    last_names = _words(world.n_clan)
    men, women = MEN.split(), WOMEN.split()
    first_names = [(men if m < K else women)[g * K + m % K] for g in range(G) for m in range(M)]
    return [
        *(f"{first} {last}" for last in last_names for first in first_names),
        *(f"{word}ton" for word in _words(world.n_clan)),
        *(f"{word}land" for word in _words(world.n_country)),
        *(f"{word} Continent" for word in _words(world.n_continent)),
        *(f"{word}ton {trade}" for word in _words(world.n_clan) for trade in TRADES),
    ]
