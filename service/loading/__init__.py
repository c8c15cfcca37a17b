"""From a bundle's folder to a bundle in memory that answers, and how bundles take turns.

Loads and primes bundles in a thread while others answer, swaps the active one, rolls back, and
keeps added and removed items in step. Knows nothing of requests or HTTP, and of stores only the
calls that keep changes of items.

Reading order: `loaded_bundles` (which are in memory, and for what), `patience` (a load that hangs
is given up), `priming` (a bundle decodes before it serves), `compile_ahead` (machine code for
images), `item_changes` (items that come and go), `embedder` (a server that embeds their titles).
"""

from service.loading.item_changes import ItemChanges
from service.loading.loaded_bundles import Resident, Residents
from service.loading.patience import Patience
from service.loading.priming import prime

__all__ = [
    "ItemChanges",
    "Patience",
    "Resident",
    "Residents",
    "prime",
]
