"""From files to a data set: interactions, items, vectors, splits and samples.

Only this room reads users' files. Later rooms get arrays. Knows no model.

Reading order: `splits` (histories as arrays), `interactions` (reads, filters), `repeats` (lines
that add nothing), `inspection` (what was understood of files, in words), `embeddings` (item
vectors), `segments` (histories as training samples), `subsample` (data sets with interactions or
items left out), `raw_formats` and `public_datasets`, `synthetic` with `synthetic_titles` (a world
whose answer is known). How files are read: `files`.
"""

from training.data.embeddings import (
    embed,
    item_affinities,
    normalised,
    users_with_both,
    with_followers,
)
from training.data.inspection import inspect, said
from training.data.interactions import Dataset, load_dataset
from training.data.public_datasets import DATASETS, fetch
from training.data.segments import Segments
from training.data.splits import Interactions, Split, Windows
from training.data.subsample import thin, without_items
from training.data.synthetic import synthesize

__all__ = [
    "DATASETS",
    "Dataset",
    "Interactions",
    "Segments",
    "Split",
    "Windows",
    "embed",
    "fetch",
    "inspect",
    "item_affinities",
    "load_dataset",
    "normalised",
    "said",
    "synthesize",
    "thin",
    "users_with_both",
    "with_followers",
    "without_items",
]
