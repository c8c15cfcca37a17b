"""Baselines: the models that Unmask has to beat, all ranked by one function.

Reading order: `scorer` (what a baseline is; ranks over the whole catalogue). Then those that count:
`popularity`, `item_knn` (and histories as weights), `text_knn`, `sequential_memory`. Then those
that learn: `sequence_config`, `padded` (histories as rectangles), `sequence_network`,
`sequence_models` (SASRec, BERT4Rec and their losses), `sequence_fit`.
"""

from training.baselines.item_knn import ItemKNN
from training.baselines.popularity import Popularity
from training.baselines.scorer import Scorer, ranks
from training.baselines.sequence_config import BERT4RecConfig, SASRecConfig
from training.baselines.sequence_fit import fit_sequence_model
from training.baselines.sequential_memory import SequentialMemory
from training.baselines.text_knn import TextKNN, ranks_by_content

__all__ = [
    "BERT4RecConfig",
    "ItemKNN",
    "Popularity",
    "SASRecConfig",
    "Scorer",
    "SequentialMemory",
    "TextKNN",
    "fit_sequence_model",
    "ranks",
    "ranks_by_content",
]
