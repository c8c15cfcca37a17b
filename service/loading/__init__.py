"""From a bundle's folder to a bundle in memory that answers, and how bundles replace each other.

Loads and primes bundles in a thread while others answer. Swaps the active bundle, rolls back, and
applies added and removed items to all bundles. Knows nothing of requests or HTTP. Of the history
store it knows only the calls that keep changes of items.

Reading order: `loaded_bundles` (which are in memory, and for what), `timed_threads` (a load that
hangs is given up), `priming` (a bundle decodes before it serves), `compile_ahead` (machine code for
images), `item_changes` (items that are added, removed or hidden) with `changed_bundles` and
`hiding`, `workers` (the processes of one port), `in_all_workers` (the same in each), `embedder` (a
server that embeds titles of new items).
"""

from service.loading.in_all_workers import InAllWorkers
from service.loading.item_changes import ItemChanges
from service.loading.loaded_bundles import LoadedBundle, LoadedBundles
from service.loading.priming import prime
from service.loading.timed_threads import TimedThreads
from service.loading.workers import Workers

__all__ = [
    "InAllWorkers",
    "ItemChanges",
    "LoadedBundle",
    "LoadedBundles",
    "TimedThreads",
    "Workers",
    "prime",
]
