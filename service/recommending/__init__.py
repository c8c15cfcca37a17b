"""The story of a recommendation: from a request to the items that answer it.

Reads the history, plans the decoding, queues the job, and maps rows back to items. It must not know
HTTP, Redis or ONNX Runtime. It talks to the history store, the batcher and the loaded bundles.

Reading order: `recommender` (the whole story), `planning` (which schedule and beam width), `rules`
(filter, boosts and caps in a bundle's terms), `jobs` (from item ids to rows), `assembly` (which
rows are in the answer, put together), `item_mapping` (from rows to items),
`experiment` (which user gets which variant), `shadow` (a candidate bundle that answers unseen).
Apart: `explaining` (why an item is in an answer, or not), `item_search` (lists of items,
and what is trending), `item_map` (the map of the catalogue).
"""

from service.recommending.experiment import Experiment, check_defaults, load_experiment
from service.recommending.item_map import groups_on_map, map_of
from service.recommending.item_mapping import attributes_of, similar_items
from service.recommending.item_search import ItemPages, TrendingItems
from service.recommending.planning import fixed_plan
from service.recommending.recommender import Policy, Recommender
from service.recommending.rules import conditions_of
from service.recommending.shadow import Shadow

__all__ = [
    "Experiment",
    "ItemPages",
    "Policy",
    "Recommender",
    "Shadow",
    "TrendingItems",
    "attributes_of",
    "check_defaults",
    "conditions_of",
    "fixed_plan",
    "groups_on_map",
    "load_experiment",
    "map_of",
    "similar_items",
]
