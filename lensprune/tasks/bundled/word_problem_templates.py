"""Templates of word problems, as data: a text, its steps, and the ranges of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["NAMES", "TEMPLATES", "THINGS", "Template"]

NAMES = ("Ada", "Ben", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kofi", "Lena", "Milo", "Nora")
THINGS = ("marbles", "stamps", "shells", "cards", "buttons", "beads", "coins", "stickers", "pebbles", "ribbons")


@dataclass(frozen=True)
class Template:
    """`text` has slots ``{n}`` and ``{m}`` (names), ``{o}`` (things) and numbers ``{a}``, ``{b}``, ``{c}``, ``{d}``.

    A step is (text, expression, name of the result); expressions use numbers and earlier results.
    `ranges` gives the lowest and highest value of a number; the default is 2 to 12.
    """

    text: str
    steps: tuple[tuple[str, str, str], ...]
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)


def _t(text: str, *steps: tuple[str, str, str], **ranges: tuple[int, int]) -> Template:
    return Template(text, steps, ranges)


_BIG = (12, 60)

TEMPLATES: tuple[Template, ...] = (
    _t(
        "{n} has {a} {o}. {m} gives {n} {b} more. How many {o} does {n} have now?",
        ("{n} now has", "a+b", "x"),
    ),
    _t("{n} had {a} {o} and lost {b} of them. How many {o} are left?", ("There are", "a-b", "x"), a=_BIG),
    _t(
        "There are {a} boxes with {b} {o} in each box. How many {o} are there altogether?",
        ("The boxes hold", "a*b", "x"),
    ),
    _t(
        "{n} shares {a} {o} equally among {b} friends. How many {o} does each friend get?",
        ("Each friend gets", "a/b", "x"),
        a=_BIG,
    ),
    _t(
        "{n} reads {a} pages every day. How many pages does {n} read in {b} days?",
        ("{n} reads", "a*b", "x"),
        a=(5, 30),
    ),
    _t(
        "A bus has {a} passengers. At the next stop {b} get off and {c} get on. How many passengers are on the bus "
        "now?",
        ("After the stop there are still", "a-b", "x"),
        ("With the new ones there are", "x+c", "y"),
        a=_BIG,
    ),
    _t(
        "A ticket costs {a} dollars. {n} buys {b} tickets and pays with {c} dollars. How many dollars does {n} get "
        "back?",
        ("The tickets cost", "a*b", "x"),
        ("{n} gets back", "c-x", "y"),
        c=(20, 150),
    ),
    _t(
        "{n} has {a} {o}. {m} has {b} times as many. How many {o} do they have together?",
        ("{m} has", "a*b", "x"),
        ("Together they have", "a+x", "y"),
        b=(2, 6),
    ),
    _t(
        "{n} bakes {a} trays of {b} rolls and sells {c} rolls. How many rolls are left?",
        ("{n} bakes", "a*b", "x"),
        ("Left are", "x-c", "y"),
        c=(2, 60),
    ),
    _t(
        "A garden has {a} rows of {b} tulips and {c} rows of {d} roses. How many flowers are in the garden?",
        ("There are tulips:", "a*b", "x"),
        ("There are roses:", "c*d", "y"),
        ("Altogether there are", "x+y", "z"),
    ),
    _t(
        "{n} saves {a} dollars a week for {b} weeks and then spends {c} dollars. How many dollars are left?",
        ("{n} saves", "a*b", "x"),
        ("Left are", "x-c", "y"),
        c=(2, 60),
    ),
    _t(
        "A rope is {a} meters long. {n} cuts off {b} pieces of {c} meters each. How many meters of rope remain?",
        ("The pieces are together", "b*c", "x"),
        ("There remain", "a-x", "y"),
        a=(20, 120),
    ),
    _t(
        "{n} is {a} years old. {m} is {b} years older than {n}. How old will {m} be in {c} years?",
        ("{m} is now", "a+b", "x"),
        ("Then {m} will be", "x+c", "y"),
    ),
    _t(
        "A farmer collects {a} eggs in the morning and {b} in the evening. He puts them in cartons of {c}. "
        "How many full cartons does he get if no egg is left over?",
        ("He collects", "a+b", "x"),
        ("The number of cartons is", "x/c", "y"),
        a=_BIG,
        b=_BIG,
    ),
    _t(
        "{n} walks {a} kilometers to school and back again, {b} days a week. How many kilometers is that in a week?",
        ("One day makes", "2*a", "x"),
        ("A week makes", "x*b", "y"),
        b=(2, 6),
    ),
    _t(
        "A shelf holds {a} books. {n} fills {b} shelves and has {c} books left over. How many books does {n} have?",
        ("On the shelves are", "a*b", "x"),
        ("In all there are", "x+c", "y"),
    ),
    _t(
        "Each of {a} children brings {b} apples and {c} pears. How many pieces of fruit do they bring?",
        ("Each child brings", "b+c", "x"),
        ("All bring", "a*x", "y"),
    ),
    _t(
        "{n} buys {a} pens at {b} dollars each and one bag for {c} dollars. How many dollars does {n} pay?",
        ("The pens cost", "a*b", "x"),
        ("Altogether {n} pays", "x+c", "y"),
    ),
    _t(
        "A tank holds {a} liters. It loses {b} liters an hour. How many liters are left after {c} hours?",
        ("It loses", "b*c", "x"),
        ("There are left", "a-x", "y"),
        a=(30, 150),
    ),
    _t(
        "{n} has {a} {o} and {m} has {b}. They put them together and share them equally. How many {o} does each get?",
        ("Together they have", "a+b", "x"),
        ("Each gets", "x/2", "y"),
        a=_BIG,
        b=_BIG,
    ),
    _t(
        "A class of {a} pupils forms groups of {b}. Each group gets {c} pencils. How many pencils are needed?",
        ("The number of groups is", "a/b", "x"),
        ("The groups need", "x*c", "y"),
        a=_BIG,
        b=(2, 6),
    ),
    _t(
        "{n} picks {a} baskets of {b} plums. {m} picks {c} plums. How many more plums does {n} pick than {m}?",
        ("{n} picks", "a*b", "x"),
        ("The difference is", "x-c", "y"),
        c=(2, 60),
    ),
    _t(
        "A train has {a} cars with {b} seats each. {c} seats are taken. How many seats are free?",
        ("The train has seats:", "a*b", "x"),
        ("Free are", "x-c", "y"),
        c=(5, 80),
    ),
    _t(
        "{n} plays {a} games and scores {b} points in each, but loses {c} points for a mistake. What is the final "
        "score?",
        ("The games bring", "a*b", "x"),
        ("The final score is", "x-c", "y"),
    ),
    _t(
        "A cook uses {a} eggs for one cake. There are {b} eggs. After {c} cakes, how many eggs are left?",
        ("The cakes take", "a*c", "x"),
        ("There are left", "b-x", "y"),
        a=(2, 5),
        b=(20, 80),
    ),
    _t(
        "{n} earns {a} dollars an hour and works {b} hours on Monday and {c} hours on Tuesday. How many dollars is "
        "that?",
        ("The hours are together", "b+c", "x"),
        ("{n} earns", "a*x", "y"),
    ),
    _t(
        "There were {a} birds in a tree. {b} flew away, and then twice as many birds as flew away came. "
        "How many birds are in the tree now?",
        ("After some flew away there were", "a-b", "x"),
        ("New birds:", "2*b", "y"),
        ("Now there are", "x+y", "z"),
        a=_BIG,
    ),
    _t(
        "A bottle holds {a} cups of juice. {n} opens {b} bottles for {c} guests, who drink equal amounts and empty "
        "them. "
        "How many cups does each guest drink?",
        ("The bottles hold", "a*b", "x"),
        ("Each guest drinks", "x/c", "y"),
        c=(2, 8),
    ),
    _t(
        "{n} sorts {a} {o} into {b} equal piles and gives away {c} piles. How many {o} does {n} give away?",
        ("One pile has", "a/b", "x"),
        ("{n} gives away", "x*c", "y"),
        a=_BIG,
        b=(3, 8),
        c=(2, 3),
    ),
    _t(
        "A wall needs {a} bricks a row and has {b} rows. {n} has {c} bricks. How many more bricks are needed?",
        ("The wall needs", "a*b", "x"),
        ("Missing are", "x-c", "y"),
        c=(2, 60),
    ),
    _t(
        "{n} runs {a} laps on Monday, {b} more laps on Tuesday than on Monday, and none after. How many laps are that?",
        ("On Tuesday {n} runs", "a+b", "x"),
        ("Together that is", "a+x", "y"),
    ),
    _t(
        "A zoo feeds {a} seals {b} fish each in the morning and {c} fish each at night. How many fish is that a day?",
        ("One seal eats", "b+c", "x"),
        ("All seals eat", "a*x", "y"),
    ),
    _t(
        "{n} needs {a} dollars for a bike and has {b}. If {n} saves {c} dollars a week, how many weeks does it take?",
        ("Missing are", "a-b", "x"),
        ("It takes weeks:", "x/c", "y"),
        a=(40, 120),
        b=(5, 40),
    ),
    _t(
        "A baker makes {a} loaves. He sells {b} in the morning and {c} in the afternoon. How many loaves remain?",
        ("He sells", "b+c", "x"),
        ("There remain", "a-x", "y"),
        a=_BIG,
    ),
    _t(
        "{n} has {a} sheets of paper and folds {b} boats from every sheet. {c} boats sink. How many boats still float?",
        ("{n} folds", "a*b", "x"),
        ("Afloat are", "x-c", "y"),
        b=(2, 5),
    ),
    _t(
        "Every spider in a jar has 8 legs. There are {a} spiders and {b} beetles with 6 legs each. How many legs is "
        "that?",
        ("The spiders have", "8*a", "x"),
        ("The beetles have", "6*b", "y"),
        ("Together they have", "x+y", "z"),
        a=(2, 8),
        b=(2, 8),
    ),
    _t(
        "{n} buys {a} {o} for {b} dollars each and sells all of them for {c} dollars each. How many dollars does {n} "
        "gain?",
        ("On each the gain is", "c-b", "x"),
        ("On all the gain is", "a*x", "y"),
        c=(4, 20),
    ),
    _t(
        "A movie lasts {a} minutes. {n} stops it after {b} minutes and later watches {c} more. How many minutes are "
        "left?",
        ("{n} has watched", "b+c", "x"),
        ("There are left", "a-x", "y"),
        a=(60, 120),
        b=(10, 40),
        c=(5, 20),
    ),
    _t(
        "{a} cars park in each of {b} rows. Then {c} rows empty completely. How many cars are still parked?",
        ("Rows that are still full:", "b-c", "x"),
        ("Parked are", "a*x", "y"),
    ),
    _t(
        "{n} has {a} coins. Half of them are old. {n} sells {b} old coins. How many old coins are left?",
        ("Old coins:", "a/2", "x"),
        ("Left are", "x-b", "y"),
        a=_BIG,
    ),
    _t(
        "A school buys {a} packs of {b} balls. It gives {c} balls to each of {d} classes. How many balls remain?",
        ("The school buys", "a*b", "x"),
        ("It gives away", "c*d", "y"),
        ("There remain", "x-y", "z"),
    ),
    _t(
        "{n} plants {a} seeds a day for {b} days. {c} seeds do not grow. From each of the others comes one flower. "
        "How many flowers come up?",
        ("{n} plants", "a*b", "x"),
        ("Flowers:", "x-c", "y"),
    ),
)
