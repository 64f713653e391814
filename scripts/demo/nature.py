"""Planets, chemical elements, animals, colours, and the greatest of each kind."""

from collections.abc import Iterator
from itertools import chain

from demo.documents import (
    Document,
    asked,
    capitalised,
    conversation,
    listed,
    rows,
    sentence,
    statement,
    with_article,
)

# name | what to say of it
PLANETS = """
Mercury | It is the smallest planet of the solar system and has no moons. Its year lasts about 88 days.
Venus | It is the hottest planet of the solar system and has no moons. It is covered by thick clouds.
Earth | It is our home and has one moon. Most of its surface is covered by water.
Mars | It is called the red planet and has two moons, Phobos and Deimos.
Jupiter | It is the largest planet of the solar system. Its Great Red Spot is a storm wider than the Earth.
Saturn | It is known for its bright rings of ice and rock. Its largest moon is Titan.
Uranus | It is an ice giant, and it spins lying on its side.
Neptune | It is an ice giant with very strong winds. Its largest moon is Triton.
"""

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")

# In the order of their atomic numbers, from 1.
ELEMENTS = """
H hydrogen, He helium, Li lithium, Be beryllium, B boron, C carbon, N nitrogen, O oxygen, F fluorine, Ne neon,
Na sodium, Mg magnesium, Al aluminium, Si silicon, P phosphorus, S sulfur, Cl chlorine, Ar argon, K potassium,
Ca calcium, Sc scandium, Ti titanium, V vanadium, Cr chromium, Mn manganese, Fe iron, Co cobalt, Ni nickel,
Cu copper, Zn zinc, Ga gallium, Ge germanium, As arsenic, Se selenium, Br bromine, Kr krypton, Rb rubidium,
Sr strontium, Y yttrium, Zr zirconium, Nb niobium, Mo molybdenum, Tc technetium, Ru ruthenium, Rh rhodium,
Pd palladium, Ag silver, Cd cadmium, In indium, Sn tin, Sb antimony, Te tellurium, I iodine, Xe xenon,
Cs caesium, Ba barium, La lanthanum, Ce cerium, Pr praseodymium, Nd neodymium, Pm promethium, Sm samarium,
Eu europium, Gd gadolinium, Tb terbium, Dy dysprosium, Ho holmium, Er erbium, Tm thulium, Yb ytterbium,
Lu lutetium, Hf hafnium, Ta tantalum, W tungsten, Re rhenium, Os osmium, Ir iridium, Pt platinum, Au gold,
Hg mercury, Tl thallium, Pb lead, Bi bismuth, Po polonium, At astatine, Rn radon, Fr francium, Ra radium,
Ac actinium, Th thorium, Pa protactinium, U uranium, Np neptunium, Pu plutonium, Am americium, Cm curium,
Bk berkelium, Cf californium, Es einsteinium, Fm fermium, Md mendelevium, No nobelium, Lr lawrencium,
Rf rutherfordium, Db dubnium, Sg seaborgium, Bh bohrium, Hs hassium, Mt meitnerium, Ds darmstadtium,
Rg roentgenium, Cn copernicium, Nh nihonium, Fl flerovium, Mc moscovium, Lv livermorium, Ts tennessine,
Og oganesson
"""

# name | class | legs | its young, or -
ANIMALS = """
dog | mammal | four | puppy
cat | mammal | four | kitten
cow | mammal | four | calf
horse | mammal | four | foal
sheep | mammal | four | lamb
goat | mammal | four | kid
pig | mammal | four | piglet
lion | mammal | four | cub
tiger | mammal | four | cub
bear | mammal | four | cub
wolf | mammal | four | pup
deer | mammal | four | fawn
elephant | mammal | four | calf
giraffe | mammal | four | calf
hare | mammal | four | leveret
mouse | mammal | four | pup
camel | mammal | four | calf
squirrel | mammal | four | -
hedgehog | mammal | four | -
badger | mammal | four | -
swan | bird | two | cygnet
goose | bird | two | gosling
duck | bird | two | duckling
chicken | bird | two | chick
penguin | bird | two | chick
owl | bird | two | owlet
eagle | bird | two | eaglet
parrot | bird | two | -
sparrow | bird | two | -
ostrich | bird | two | -
crocodile | reptile | four | -
lizard | reptile | four | -
tortoise | reptile | four | -
frog | amphibian | four | tadpole
toad | amphibian | four | tadpole
newt | amphibian | four | -
ant | insect | six | -
bee | insect | six | -
beetle | insect | six | -
butterfly | insect | six | caterpillar
moth | insect | six | caterpillar
grasshopper | insect | six | -
spider | arachnid | eight | spiderling
scorpion | arachnid | eight | -
whale | mammal | no | calf
dolphin | mammal | no | calf
snake | reptile | no | -
shark | fish | no | pup
salmon | fish | no | -
herring | fish | no | -
"""

# animal | the sound it makes
SOUNDS = """
dog | barks
cat | meows
cow | moos
horse | neighs
sheep | bleats
pig | grunts
lion | roars
wolf | howls
duck | quacks
bee | buzzes
frog | croaks
snake | hisses
owl | hoots
mouse | squeaks
donkey | brays
"""

# thing | the verb | colour
COLOURS = """
grass | is | green
snow | is | white
milk | is | white
coal | is | black
blood | is | red
a clear sky by day | is | blue
a ripe banana | is | yellow
a ripe lemon | is | yellow
an emerald | is | green
a ruby | is | red
gold | is | yellow
silver | is | grey
chocolate | is | brown
a carrot | is | orange
a flamingo | is | pink
a raven | is | black
a sunflower | is | yellow
"""

# paint | paint | mixture
MIXTURES = """
red | yellow | orange
blue | yellow | green
red | blue | purple
black | white | grey
red | white | pink
"""

RAINBOW = ["red", "orange", "yellow", "green", "blue", "indigo", "violet"]

# what is the greatest of its kind | which it is
GREATEST = """
the largest ocean | the Pacific Ocean
the smallest ocean | the Arctic Ocean
the largest continent | Asia
the largest country by area | Russia
the smallest country | Vatican City
the largest island | Greenland
the highest mountain above sea level | Mount Everest
the deepest lake | Lake Baikal
the largest hot desert | the Sahara
the largest planet of the solar system | Jupiter
the smallest planet of the solar system | Mercury
the hottest planet of the solar system | Venus
the planet closest to the Sun | Mercury
the star closest to the Earth | the Sun
the largest animal | the blue whale
the largest land animal | the African elephant
the tallest animal | the giraffe
the fastest land animal | the cheetah
the largest bird | the ostrich
the lightest element | hydrogen
the longest bone of the human body | the thigh bone
the largest organ of the human body | the skin
the hardest natural mineral | diamond
the first prime number | two
the smallest positive integer | one
"""


def documents() -> Iterator[Document]:
    """Yield every wording of every fact of this module."""
    yield from _planets()
    yield from _elements()
    yield from chain.from_iterable(_animal(*row) for row in rows(ANIMALS, 4))
    yield from chain.from_iterable(_sound(*row) for row in rows(SOUNDS, 2))
    yield from chain.from_iterable(_colour(*row) for row in rows(COLOURS, 3))
    yield from chain.from_iterable(_mixture(*row) for row in rows(MIXTURES, 3))
    yield from chain.from_iterable(_greatest(*row) for row in rows(GREATEST, 2))

    colours = f"The colours of the rainbow are {listed(RAINBOW)}"
    yield statement("rainbow", "statement", colours)
    yield from asked("rainbow", colours, "What are the colours of the rainbow?")


def _planets() -> Iterator[Document]:
    planets = list(rows(PLANETS, 2))
    names = [name for name, _ in planets]
    yield statement("planets", "in-order", listed(names))
    answer = f"The planets of the solar system are {listed(names)}"
    yield statement("planets", "statement", answer)
    yield from asked("planets", answer, "What are the planets of the solar system?", "Name the planets.")

    for (name, more), ordinal in zip(planets, ORDINALS, strict=False):
        portrait = f"{name} is the {ordinal} planet from the Sun. {more}"
        fact = f"planet {name}"
        yield statement(fact, "portrait", portrait)
        yield from asked(fact, portrait, f"Tell me about the planet {name}.", f"What is the planet {name}?")
        fact = f"place of planet {name}"
        yield statement(fact, "ordinal", f"The {ordinal} planet from the Sun is {name}.")
        yield from asked(
            fact,
            f"The {ordinal} planet from the Sun is {name}.",
            f"Which planet is the {ordinal} from the Sun?",
            f"What is the {ordinal} planet?",
        )


def _elements() -> Iterator[Document]:
    for number, entry in enumerate(ELEMENTS.replace("\n", " ").split(","), start=1):
        symbol, name = entry.split()
        the_symbol = f"The chemical symbol of {name} is {symbol}."
        the_number = f"The atomic number of {name} is {number}."
        yield statement(f"symbol of {name}", "symbol-of", the_symbol)
        yield statement(f"symbol of {name}", "stands-for", f"The chemical symbol {symbol} stands for {name}.")
        yield from asked(
            f"symbol of {name}",
            the_symbol,
            f"What is the chemical symbol of {name}?",
            f"What is the symbol of {name}?",
        )
        yield statement(f"number of {name}", "number-of", the_number)
        yield from asked(f"number of {name}", the_number, f"What is the atomic number of {name}?")
        fact = f"element {name}"
        portrait = f"Its symbol is {symbol} and its atomic number is {number}."
        yield statement(fact, "portrait", f"{capitalised(name)} is a chemical element. {portrait}")
        yield conversation(
            fact,
            "tell-me",
            f"Tell me about the element {name}.",
            f"{capitalised(name)} is a chemical element. {portrait}",
        )


def _animal(name: str, kind: str, legs: str, young: str) -> Iterator[Document]:
    animal = with_article(name)
    fact = f"class of {name}"
    is_a = f"{capitalised(animal)} is {with_article(kind)}."
    yield statement(fact, "statement", is_a)
    yield from asked(fact, is_a, f"What kind of animal is {animal}?", f"What is {animal}?")

    fact = f"legs of {name}"
    has_legs = f"{capitalised(animal)} has {legs} legs."
    yield statement(fact, "statement", has_legs)
    yield from asked(fact, has_legs, f"How many legs does {animal} have?")

    if young != "-":
        fact = f"young of {name}"
        the_young = f"The young of {animal} is called {with_article(young)}."
        yield statement(fact, "statement", the_young)
        yield from asked(fact, the_young, f"What is the young of {animal} called?")


def _sound(name: str, sound: str) -> Iterator[Document]:
    fact = f"sound of {name}"
    makes = f"{capitalised(with_article(name))} {sound}."
    yield statement(fact, "statement", makes)
    yield from asked(fact, makes, f"What sound does {with_article(name)} make?")


def _colour(thing: str, verb: str, colour: str) -> Iterator[Document]:
    fact = f"colour of {thing}"
    has_colour = f"{capitalised(thing)} {verb} {colour}."
    yield statement(fact, "statement", f"The colour of {thing} is {colour}.")
    yield statement(fact, "has-colour", has_colour)
    yield from asked(fact, has_colour, f"What colour {verb} {thing}?", f"What is the colour of {thing}?")


def _mixture(one: str, other: str, mixture: str) -> Iterator[Document]:
    fact = f"mixture of {one} and {other}"
    makes = f"{capitalised(one)} and {other} paint make {mixture}."
    yield statement(fact, "statement", makes)
    yield from asked(fact, makes, f"What do {one} and {other} paint make?")


def _greatest(what: str, which: str) -> Iterator[Document]:
    is_which = sentence(f"{what} is {which}")
    yield statement(what, "statement", is_which)
    yield statement(what, "inverted", sentence(f"{which} is {what}"))
    yield from asked(what, is_which, f"What is {what}?", f"Tell me {what}.")
