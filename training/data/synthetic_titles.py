"""Titles and categories of the synthetic catalogue, put together from lists of words.

A *topic* ("Books > Fantasy") has *lines*: a series of books, or products of one brand. A line is a
short list of items with a natural order. Every name is invented. All titles differ, because no two
lines of a domain have the same name. `TOPICS` is a ring in which neighbours are related: travel
writing is beside camping, the last topic beside the first. So a taste that moves to a neighbour
moves plausibly. Knows nothing of users or probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LINE_LENGTHS = (4, 8)
"""Fewest and most items of a line."""


@dataclass(frozen=True)
class Domain:
    """A department of the shop. The names of its lines come from `firsts` x `seconds`."""

    name: str
    line_format: str
    item_format: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    numbered: bool = False  # true for books: random pieces with numbers; else the pieces in order


@dataclass(frozen=True)
class Topic:
    """A shelf of a domain. An item of its lines is one of `pieces`."""

    domain: Domain
    name: str
    pieces: tuple[str, ...]

    @property
    def category(self) -> str:
        return f"{self.domain.name} > {self.name}"


def titles_of_lines(lines: Sequence[tuple[Topic, int]], rng: np.random.Generator) -> list[str]:
    """Titles of all items, line after line.

    lines: (topic, number of items) of each line
    Raises ValueError if a domain has fewer names than lines.
    """
    names: dict[str, list[str]] = {}
    for topic, _ in lines:
        if topic.domain.name not in names:
            names[topic.domain.name] = _shuffled_names(topic.domain, rng)
    titles = []
    for topic, length in lines:
        domain = topic.domain
        if not names[domain.name]:
            raise ValueError(f"{domain.name} has fewer names than lines: make fewer items")
        line = names[domain.name].pop()
        order = rng.permutation(len(topic.pieces)) if domain.numbered else range(len(topic.pieces))
        for number, piece in enumerate(list(order)[:length], start=1):
            titles.append(
                domain.item_format.format(line=line, number=number, piece=topic.pieces[piece])
            )
    return titles


def _shuffled_names(domain: Domain, rng: np.random.Generator) -> list[str]:
    names = [
        domain.line_format.format(first=first, second=second)
        for first in domain.firsts
        for second in domain.seconds
    ]
    return [names[i] for i in rng.permutation(len(names))]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split(","))


BOOKS = Domain(
    "Books",
    "The {first} {second}",
    "{line}, Book {number}: {piece}",
    _words(
        "Saltglass Thornlight Wintermoth Ashlantern Moonquarry Larkspire Fennelgate Ironbriar "
        "Candlefen Hollowbell Quillstone Cinderloom Glassmarsh Owlmere Frostledger Mistlock "
        "Copperveil Nettleford Stormorchard Palewater"
    ),
    _words(
        "Chronicle Cipher Passage Atlas Bargain Archive Signal Inheritance Compass Accord Ledger "
        "Crossing"
    ),
    numbered=True,
)
GAMES = Domain(
    "Games",
    "{first} {second}",
    "{line}: {piece}",
    _words(
        "Brackenfort Tidewarden Emberquay Marrowdeep Cloudferry Gearhollow Foxcourt Rookgarden "
        "Lanternwright Pebblecrown Thimbleforge Wyrmharrow Kestrelbay Mossgate Badgerholt "
        "Tinkerspire Duskmeadow Harecastle Puddlewick Oakenglyph"
    ),
    _words(
        "Rivals Harvest Voyage Bazaar Expedition Caravan Duel Alliance Festival Workshop Riddles "
        "Relics"
    ),
)
OUTDOORS = Domain(
    "Outdoors",
    "{first} {second}",
    "{line} {piece}",
    _words(
        "Tarnwick Fellbright Northmire Cairnlow Pinemarrow Stormhithe Ridgeoak Loudwater Crowfell "
        "Driftlea Highbracken Grithouse"
    ),
    _words(
        "Heron Basalt Larch Marten Lichen Gale Scree Sable Beck Plover Granite Alder Squall Moor "
        "Linnet Heath Pika Curlew Sleet Ember"
    ),
)
KITCHEN = Domain(
    "Kitchen",
    "{first} {second}",
    "{line} {piece}",
    _words(
        "Quillpan Ovenbrook Saffronley Copperwren Millhollow Tinderbury Bramblecup Hearthlow "
        "Pantrymoor Larderby Butterwick Crumbleigh"
    ),
    _words(
        "Aster Clove Marble Olive Sorrel Amber Fig Thistle Hazel Nutmeg Slate Quince Fennel Plum "
        "Cinder Maple Caraway Indigo Pebble Saffron"
    ),
)
GARDEN = Domain(
    "Garden",
    "{first} {second}",
    "{line} {piece}",
    _words(
        "Fernhatch Loamwick Greenthorpe Mossingham Budleyard Thrushcote Cloverwain Rootwell "
        "Petalstow Vinegate Sproutham Wrenacre"
    ),
    _words(
        "Meadow Willow Foxglove Bramble Yarrow Teasel Daisy Hawthorn Bluebell Rowan Sage Clover "
        "Primrose Campion Sedge Poppy Elder Vetch Mallow Tansy"
    ),
)
CRAFTS = Domain(
    "Crafts",
    "{first} {second}",
    "{line} {piece}",
    _words(
        "Inkwarren Threadmoor Clayborough Pigmentry Spindlewood Kilnhurst Chiselham Dyehollow "
        "Loomsbury Brushwick Bobbinstead Shavington"
    ),
    _words(
        "Cobalt Ochre Umber Sienna Madder Teal Russet Pearl Indigo Cedar Walnut Birch Linen Flax "
        "Cypress Jasper Slate Coral Opal Heather"
    ),
)

TOPICS: tuple[Topic, ...] = tuple(
    Topic(domain, name, _phrases(pieces))
    for domain, name, pieces in (
        (
            BOOKS,
            "Fantasy",
            "The Drowned Throne, A Debt of Feathers, Oaths in Winter, The Moss King, Wolves at the "
            "Ferry, The Paper Dragon, A Song for Giants, The Salt Witch, Under the Ninth Hill, "
            "The Bellringer's Oath",
        ),
        (
            BOOKS,
            "Science Fiction",
            "Orbit Without Number, The Quiet Reactor, Colony of Mirrors, Seven Minutes of Vacuum, "
            "The Cartographer's Moon, Word from Tethra, The Patient Engine, Dust over Callis, "
            "The Long Burn Home, A Census of Machines",
        ),
        (
            BOOKS,
            "Mystery",
            "The Locked Boathouse, A Stain on the Minutes, The Missing Verger, Poison at the "
            "Regatta, The Second Umbrella, An Alibi in Chalk, The Baker's Third Key, The Silent "
            "Auctioneer, Murder by Timetable, The Borrowed Coat",
        ),
        (
            BOOKS,
            "Travel Writing",
            "Ferries at Dawn, Nine Days on Foot, The Slow Train North, Tea with Strangers, Past "
            "the Last Signpost, Rain in Four Valleys, The Salt Road South, Islands out of Season, "
            "A Winter by the Harbour, Maps Drawn from Memory",
        ),
        (
            OUTDOORS,
            "Camping",
            "Two-Person Tent, Sleeping Bag, Sleeping Pad, Camp Stove, Cook Set, Headlamp, "
            "Camp Chair, Rain Tarp",
        ),
        (
            OUTDOORS,
            "Climbing",
            "Climbing Shoes, Harness, Chalk Bag, Belay Device, Quickdraw Set, Dynamic Rope, "
            "Climbing Helmet, Crash Pad",
        ),
        (
            OUTDOORS,
            "Paddling",
            "Touring Kayak, Carbon Paddle, Spray Skirt, Buoyancy Vest, Dry Bag, Deck Compass, "
            "Kayak Cart, Bilge Pump",
        ),
        (
            OUTDOORS,
            "Cycling",
            "Touring Bike, Bike Helmet, Pannier Set, Handlebar Bag, Floor Pump, Bike Light Set, "
            "Bike Lock, Repair Stand",
        ),
        (
            KITCHEN,
            "Coffee",
            "Burr Grinder, Pour-Over Dripper, Gooseneck Kettle, Paper Filters, Coffee Scale, "
            "Espresso Machine, Milk Frother, Bean Canister",
        ),
        (
            KITCHEN,
            "Tea",
            "Cast-Iron Teapot, Leaf Infuser, Tea Cup Set, Serving Tray, Tea Caddy, Matcha Whisk, "
            "Tea Sampler, Honey Dipper",
        ),
        (
            KITCHEN,
            "Baking",
            "Stand Mixer, Mixing Bowls, Proofing Basket, Loaf Pan, Rolling Pin, Cake Tin Set, "
            "Piping Set, Cooling Rack",
        ),
        (
            KITCHEN,
            "Cooking",
            "Chef's Knife, Cutting Board, Iron Skillet, Stock Pot, Pepper Mill, Spice Rack, "
            "Roasting Tin, Dutch Oven",
        ),
        (
            GARDEN,
            "Vegetable Garden",
            "Raised Bed Kit, Seed Tray, Tomato Seeds, Hand Trowel, Watering Can, Plant Supports, "
            "Compost Bin, Harvest Basket",
        ),
        (
            GARDEN,
            "Garden Birds",
            "Bird Feeder, Sunflower Seed Mix, Suet Feeder, Nesting Box, Bird Bath, Feeder Pole, "
            "Squirrel Baffle, Garden Binoculars",
        ),
        (
            GARDEN,
            "Flower Garden",
            "Tulip Bulbs, Wildflower Seeds, Rose Fertiliser, Pruning Shears, Garden Gloves, "
            "Hanging Basket, Bulb Planter, Cut-Flower Vase",
        ),
        (
            GARDEN,
            "Houseplants",
            "Ceramic Planter, Potting Mix, Misting Bottle, Grow Light, Plant Stand, Moisture "
            "Meter, Liquid Plant Food, Self-Watering Pot",
        ),
        (
            CRAFTS,
            "Ceramics",
            "Pottery Wheel, Stoneware Clay, Trimming Tools, Glaze Set, Banding Wheel, Sponge Set, "
            "Kiln Shelf, Sculpting Stand",
        ),
        (
            CRAFTS,
            "Woodworking",
            "Carving Knife Set, Basswood Blanks, Block Plane, Chisel Set, Sharpening Stone, "
            "Bench Vice, Marking Gauge, Wood Finish",
        ),
        (
            CRAFTS,
            "Knitting",
            "Merino Yarn, Bamboo Needles, Stitch Markers, Sock Pattern Book, Cable Needles, "
            "Yarn Bowl, Blocking Mats, Project Bag",
        ),
        (
            CRAFTS,
            "Painting",
            "Watercolour Set, Round Brush Set, Watercolour Paper, Mixing Palette, Gouache Set, "
            "Tabletop Easel, Masking Fluid, Travel Sketchbook",
        ),
        (
            GAMES,
            "Jigsaw Puzzles",
            "500-Piece Puzzle, 1000-Piece Puzzle, 1500-Piece Puzzle, 2000-Piece Puzzle, Panorama "
            "Puzzle, Round Puzzle, Wooden Puzzle, Collector's Puzzle Box",
        ),
        (
            GAMES,
            "Card Games",
            "Base Deck, Second Deck, Travel Edition, Booster Pack, Solo Deck, Promo Cards, "
            "Card Sleeves, Anniversary Tin",
        ),
        (
            GAMES,
            "Board Games",
            "Core Box, Harbour Expansion, Winter Expansion, Solo Variant, Campaign Book, "
            "Deluxe Tokens, Playmat, Storage Insert",
        ),
        (
            GAMES,
            "Role-Playing",
            "Starter Set, Core Rulebook, Bestiary, Map Folio, Referee Screen, Campaign Setting, "
            "Adventure Anthology, Dice Set",
        ),
    )
)
