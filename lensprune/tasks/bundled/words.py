"""Common nouns for generated rows."""

from __future__ import annotations

__all__ = ["NOUNS"]

NOUNS: tuple[str, ...] = tuple(
    """
    acorn airport alley anchor ankle apple apron arrow autumn avenue axe badge bag bakery ball balloon bamboo banana
    band bank barn barrel basket bath battery beach bead bean bear beard bed bee beetle bell belt bench berry bike bird
    blanket boat bone book boot bottle bowl box branch bread brick bridge broom brush bubble bucket bus bush butter
    button cabin cactus cake camel camera candle canoe canyon cap car card carpet carrot castle cat cave chain chair
    chalk cheese cherry chest chicken chimney church circle circus city clock cloud clover coach coal coat coin comb
    comet compass cookie corn cottage cotton cow crab crane crayon creek crown cup curtain cushion deer desert desk
    diamond dog doll dolphin donkey door dragon drawer dress drum duck eagle ear egg elbow elephant engine envelope eye
    fan farm feather fence field finger fire fish flag flame flower flute foot forest fork fountain fox frog fruit
    garage garden gate ghost giraffe glass glove goat gold goose grape grass guitar hail hammer hand harbor harp hat
    hawk heart helmet hill honey hook horn horse hose hospital hotel house ice ink iron island ivy jacket jar jeans
    jewel juice jungle kettle key king kitchen kite kitten knee knife ladder lake lamb lamp lawn leaf leather lemon
    letter library light lion lizard lock log magnet mail map marble market mask meadow medal melon milk mill mirror
    moon motor mountain mouse mouth mug museum nail napkin neck necklace needle nest net noodle nose notebook nurse nut
    oak ocean office onion orange orchard oven owl paddle paint palace pan paper parade park parrot path peach peanut
    pear pearl pebble pen pencil pepper piano picture pie pig pigeon pillow pin pine pipe plane planet plate plum pocket
    poem pond pony potato pot prince pumpkin puppet puppy purse puzzle queen rabbit radio rail rain rake ribbon rice
    ring river road robot rocket roof room root rope rose rug ruler saddle sail salad salt sand sandal saw scarf school
    seat seed shadow shark sheep shelf shell ship shirt shoe shop shovel silk silver sink skate sky sled snail snake
    snow soap sock soup spider spoon square stable stage stamp star station steam stone stool storm stove straw street
    sugar suit summer sun swan sweater swing table tail tea teacher temple tent throne ticket tiger toast tomato tooth
    torch towel tower town toy tractor train tray tree triangle truck trumpet trunk tulip tunnel turkey turtle umbrella
    valley van vase village violin wagon wall wallet walnut watch water wave wheat wheel whistle window wing winter wolf
    wood wool yard zebra """.split()
)
