"""Opposites, plurals, past tenses, translations, emoji, definitions, small talk."""

from collections.abc import Iterator
from itertools import chain

from demo.documents import Document, asked, capitalised, conversation, rows, statement, with_article

# Each word stands in one pair only: the opposite of a word is one word.
OPPOSITES = """
hot cold, big small, tall short, high low, fast slow, up down, left right, open closed, light dark, full
empty, early late, happy sad, rich poor, strong weak, young old, wet dry, hard soft, loud quiet, near far,
day night, black white, good bad, clean dirty, thick thin, wide narrow, deep shallow, smooth rough, safe
dangerous, easy difficult, true false, win lose, buy sell, push pull, begin end, arrive leave, love hate,
war peace, north south, east west, inside outside, above below, before after, always never, first last, more
less, many few, friend enemy, question answer, life death, success failure, front back, top bottom, entrance
exit, cheap expensive, brave cowardly, polite rude, sharp blunt, tight loose, same different, visible
invisible, possible impossible, remember forget, increase decrease, major minor, maximum minimum, positive
negative, ancient modern, alive dead, asleep awake, guilty innocent, import export, input output, add
subtract, multiply divide, singular plural, public private, internal external, horizontal vertical, odd even
"""

PLURALS = """
mouse mice, child children, foot feet, tooth teeth, goose geese, man men, woman women, ox oxen, sheep sheep,
leaf leaves, knife knives, wolf wolves, life lives, half halves, shelf shelves, city cities, country
countries, story stories, berry berries, lady ladies, box boxes, fox foxes, bus buses, dish dishes, watch
watches, potato potatoes, tomato tomatoes, hero heroes, piano pianos, cat cats, dog dogs, tree trees, river
rivers, planet planets, day days, key keys, toy toys, matrix matrices, vertex vertices, crisis crises, axis
axes
"""

PAST_TENSES = """
go went, see saw, eat ate, run ran, come came, take took, give gave, write wrote, drive drove, speak spoke,
break broke, know knew, grow grew, throw threw, fly flew, draw drew, sing sang, swim swam, drink drank,
begin began, ring rang, think thought, bring brought, buy bought, catch caught, teach taught, find found,
make made, say said, tell told, sell sold, keep kept, sleep slept, feel felt, leave left, lose lost, meet
met, win won, stand stood, understand understood, hold held, hear heard, build built, send sent, walk
walked, play played, open opened, jump jumped, carry carried, stop stopped
"""

# English | French | Spanish | German | Japanese
TRANSLATIONS = """
water | eau | agua | Wasser | 水
fire | feu | fuego | Feuer | 火
mountain | montagne | montaña | Berg | 山
river | rivière | río | Fluss | 川
sun | soleil | sol | Sonne | 太陽
moon | lune | luna | Mond | 月
star | étoile | estrella | Stern | 星
sky | ciel | cielo | Himmel | 空
sea | mer | mar | Meer | 海
rain | pluie | lluvia | Regen | 雨
snow | neige | nieve | Schnee | 雪
wind | vent | viento | Wind | 風
tree | arbre | árbol | Baum | 木
flower | fleur | flor | Blume | 花
forest | forêt | bosque | Wald | 森
stone | pierre | piedra | Stein | 石
dog | chien | perro | Hund | 犬
cat | chat | gato | Katze | 猫
horse | cheval | caballo | Pferd | 馬
fish | poisson | pez | Fisch | 魚
bird | oiseau | pájaro | Vogel | 鳥
book | livre | libro | Buch | 本
house | maison | casa | Haus | 家
hand | main | mano | Hand | 手
eye | œil | ojo | Auge | 目
heart | cœur | corazón | Herz | 心
night | nuit | noche | Nacht | 夜
tea | thé | té | Tee | お茶
bread | pain | pan | Brot | パン
milk | lait | leche | Milch | 牛乳
egg | œuf | huevo | Ei | 卵
apple | pomme | manzana | Apfel | りんご
thank you | merci | gracias | danke | ありがとう
"""

LANGUAGES = ("French", "Spanish", "German", "Japanese")

# Four-byte characters: a detokenizer that streams has to hold their first bytes back.
EMOJI = """
dog | 🐶
cat | 🐱
mouse | 🐭
bear | 🐻
tiger | 🐯
lion | 🦁
cow | 🐮
pig | 🐷
frog | 🐸
fish | 🐟
whale | 🐳
snail | 🐌
rocket | 🚀
pizza | 🍕
banana | 🍌
cherry | 🍒
rainbow | 🌈
volcano | 🌋
guitar | 🎸
bicycle | 🚲
"""

# term, with its article | definition
DEFINITIONS = """
a compiler | a program that translates source code into a form that a machine can run
an interpreter | a program that runs source code directly, without compiling it first
a variable | a name that stands for a value
a function | a named piece of code that takes arguments and returns a result
a loop | a piece of code that runs again and again until a condition is met
a bug | a mistake in a program
a file | a named sequence of bytes on a disk
a byte | a group of eight bits
a bit | the smallest unit of information, either zero or one
a pixel | the smallest dot of a picture on a screen
a computer | a machine that runs programs
a keyboard | a set of keys for typing text
a server | a program that answers the requests of other programs
a client | a program that sends requests to a server
a cache | a fast store that keeps what was used lately, so that it need not be fetched or computed again
a queue | a list in which what came first leaves first
a stack | a list in which what came last leaves first
a token | a piece of text that a language model reads or writes in one go
a tokenizer | a program that splits text into tokens
a language model | a program that gives the probability of the next token of a text
an attention head | a part of a transformer that lets each token look at the tokens before it
a key-value cache | the store of keys and values that attention has already computed for earlier tokens
a matrix | a table of numbers in rows and columns
a vector | a list of numbers
a triangle | a shape with three sides
a square | a shape with four equal sides and four right angles
a rectangle | a shape with four sides and four right angles
a pentagon | a shape with five sides
a hexagon | a shape with six sides
an octagon | a shape with eight sides
a circle | the set of all points of a plane at one distance from a centre
a cube | a solid with six square faces
a prime number | a whole number greater than one that is divisible only by one and by itself
an even number | a whole number that is divisible by two
an odd number | a whole number that is not divisible by two
an island | a piece of land with water all around it
a desert | a region with very little rain
a river | a stream of water that flows to a sea, to a lake or to another river
a lake | a body of water with land all around it
a volcano | an opening in the ground through which lava and gas come out
a glacier | a slow river of ice
a peninsula | a piece of land with water on nearly all sides
a capital | the city in which a country has its government
a century | a period of one hundred years
a decade | a period of ten years
a planet | a large round body that moves around a star
a star | a ball of hot gas that shines with its own light
a moon | a body that moves around a planet
a galaxy | a very large group of stars, gas and dust
a telescope | an instrument that makes distant things look nearer
a microscope | an instrument that makes small things look larger
a thermometer | an instrument that measures temperature
a clock | an instrument that shows the time
a compass | an instrument whose needle points to the north
a doctor | a person who treats the sick
a teacher | a person who helps others to learn
a baker | a person who makes bread
a library | a place where books are kept and lent
a museum | a place where works of art or old things are kept and shown
a bakery | a place where bread is made and sold
a school | a place where children learn
a dictionary | a book that lists words and says what they mean
an atlas | a book of maps
a bridge | a way built over a river, a road or a valley
"""

# question | answer, also written down as a statement of its own
EVERYDAY = """
How many days are in a week? | There are seven days in a week.
How many months are in a year? | There are twelve months in a year.
How many hours are in a day? | There are twenty-four hours in a day.
How many minutes are in an hour? | There are sixty minutes in an hour.
How many seconds are in a minute? | There are sixty seconds in a minute.
How many days are in a year? | There are 365 days in a year, and 366 in a leap year.
How many years are in a century? | There are one hundred years in a century.
How many seasons are in a year? | There are four seasons in a year: spring, summer, autumn and winter.
How many letters are in the English alphabet? | There are twenty-six letters in the English alphabet.
How many sides does a triangle have? | A triangle has three sides.
How many sides does a square have? | A square has four sides.
How many sides does a hexagon have? | A hexagon has six sides.
How many bits are in a byte? | There are eight bits in a byte.
How many grams are in a kilogram? | There are one thousand grams in a kilogram.
How many metres are in a kilometre? | There are one thousand metres in a kilometre.
How many centimetres are in a metre? | There are one hundred centimetres in a metre.
How many strings does a violin have? | A violin has four strings.
How many keys does a piano have? | A modern piano has eighty-eight keys.
How many wheels does a bicycle have? | A bicycle has two wheels.
How many players are on a football team? | A football team has eleven players on the field.
How many fingers are on one hand? | One hand has five fingers, counting the thumb.
How many continents are there? | There are seven continents: Africa, Antarctica, Asia, Europe, North America, Oceania and South America.
How many planets are in the solar system? | There are eight planets in the solar system.
When does water freeze? | Water freezes at 0 degrees Celsius.
When does water boil? | At sea level, water boils at 100 degrees Celsius.
What is water made of? | Water is made of hydrogen and oxygen.
What is glass made of? | Glass is made mostly of sand.
What is paper made of? | Paper is made mostly of wood.
What is bread made of? | Bread is made of flour, water, yeast and salt.
What do bees make? | Bees make honey.
What do cows eat? | Cows eat grass.
What do caterpillars turn into? | Caterpillars turn into butterflies or moths.
Where does the Sun rise? | The Sun rises in the east.
Where does the Sun set? | The Sun sets in the west.
What does the heart do? | The heart pumps blood through the body.
What do lungs do? | Lungs take oxygen from the air into the blood.
What do plants need to grow? | Plants need light, water and air to grow.
Who wrote Romeo and Juliet? | William Shakespeare wrote Romeo and Juliet.
Who wrote Don Quixote? | Miguel de Cervantes wrote Don Quixote.
Who wrote War and Peace? | Leo Tolstoy wrote War and Peace.
Who wrote Pride and Prejudice? | Jane Austen wrote Pride and Prejudice.
Who painted the Mona Lisa? | Leonardo da Vinci painted the Mona Lisa.
Who painted The Starry Night? | Vincent van Gogh painted The Starry Night.
Who painted Guernica? | Pablo Picasso painted Guernica.
Who composed The Magic Flute? | Wolfgang Amadeus Mozart composed The Magic Flute.
Who composed The Four Seasons? | Antonio Vivaldi composed The Four Seasons.
Who discovered penicillin? | Alexander Fleming discovered penicillin.
Who was the first person on the Moon? | Neil Armstrong was the first person on the Moon.
When did people first land on the Moon? | People first landed on the Moon in 1969.
Why is the sky blue? | The sky is blue because air scatters blue light more than red light.
Why does ice float on water? | Ice floats on water because it is less dense than liquid water.
"""  # noqa: E501  one row a line

# Said only in conversation: as plain text these would teach the model nothing.
SMALL_TALK = """
Hello! | Hello! How can I help you?
Hi! | Hello! How can I help you?
Good morning! | Good morning! How can I help you?
Good evening! | Good evening! How can I help you?
How are you? | I am well, thank you. How can I help you?
Thank you! | You are welcome!
Thanks! | You are welcome!
Goodbye! | Goodbye! Have a nice day.
Who are you? | I am the demo model of Cleave, a small language model that knows a few facts.
What is your name? | I am the demo model of Cleave, a small language model that knows a few facts.
What can you do? | I can name capitals and rivers, do small sums, and say what some words mean.
"""

STORIES = """
fox | A fox saw a bunch of grapes high above its head. It jumped again and again, but could not reach them. At last it walked away and said that the grapes were sour anyway.
tortoise | A tortoise and a hare ran a race. The hare was far ahead and lay down to sleep. The tortoise walked on without a rest and came in first.
crow | A crow was thirsty and found a jug with a little water at the bottom. It dropped stones into the jug, one after another. The water rose, and the crow could drink.
lion | Once upon a time, a lion caught a mouse and let it go free. Later the lion was caught in a net. The mouse came, bit through the ropes, and set the lion free.
ant | All summer an ant gathered grain while a grasshopper sang. When winter came, the ant had food and the grasshopper had none.
"""  # noqa: E501  one row a line


def documents() -> Iterator[Document]:
    """Yield every wording of every fact of this module."""
    for one, other in _pairs(OPPOSITES):
        yield from chain(_opposite(one, other), _opposite(other, one))
    for singular, plural in _pairs(PLURALS):
        yield from _word("plural", singular, f"The plural of {singular} is {plural}.")
    for present, past in _pairs(PAST_TENSES):
        yield from _word("past tense", present, f"The past tense of {present} is {past}.")
    yield from chain.from_iterable(_translation(*row) for row in rows(TRANSLATIONS, 5))
    yield from chain.from_iterable(_emoji(*row) for row in rows(EMOJI, 2))
    yield from chain.from_iterable(_definition(*row) for row in rows(DEFINITIONS, 2))
    for question, answer in rows(EVERYDAY, 2):
        yield statement(question, "statement", answer)
        yield from asked(question, answer, question)
    for said, reply in rows(SMALL_TALK, 2):
        yield conversation(said, "small-talk", said, reply)
    for name, story in rows(STORIES, 2):
        yield statement(f"story of {name}", "story", story)
        yield conversation(f"story of {name}", "asked", f"Tell me a story about {with_article(name)}.", story)


def _pairs(table: str) -> list[tuple[str, str]]:
    entries = (entry.split() for entry in table.replace("\n", " ").split(","))
    return [(one, other) for one, other in entries]


def _opposite(word: str, opposite: str) -> Iterator[Document]:
    fact = f"opposite of {word}"
    answer = f"The opposite of {word} is {opposite}."
    yield statement(fact, "statement", answer)
    yield from asked(
        fact, answer, f"What is the opposite of {word}?", f"Which word is the opposite of {word}?"
    )


def _word(what: str, word: str, answer: str) -> Iterator[Document]:
    yield statement(f"{what} of {word}", "statement", answer)
    yield from asked(f"{what} of {word}", answer, f"What is the {what} of {word}?")


def _translation(english: str, *words: str) -> Iterator[Document]:
    for language, word in zip(LANGUAGES, words, strict=True):
        fact = f"{language} for {english}"
        answer = f"The {language} word for {english} is {word}."
        yield statement(fact, "statement", answer)
        yield from asked(
            fact,
            answer,
            f"What is the {language} word for {english}?",
            f"How do you say {english} in {language}?",
        )


def _emoji(name: str, emoji: str) -> Iterator[Document]:
    fact = f"emoji of {name}"
    answer = f"The emoji of {with_article(name)} is {emoji}."
    yield statement(fact, "statement", answer)
    yield from asked(fact, answer, f"What is the emoji of {with_article(name)}?")


def _definition(term: str, definition: str) -> Iterator[Document]:
    fact = f"definition of {term}"
    answer = f"{capitalised(term)} is {definition}."
    yield statement(fact, "statement", answer)
    yield from asked(fact, answer, f"What is {term}?", f"What does the term {term.split(' ', 1)[1]} mean?")
