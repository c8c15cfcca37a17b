"""Baselines: models that a generative recommender has to beat, ranked by one function.

Reading order: `scorer` (what a baseline is; ranks over the whole catalogue), then those that count:
`popularity`, `recency` (histories as weights), `item_knn`, `text_knn`, `sequential_memory`; then
those that learn: `sequence_config`, `padded` (histories as rectangles), `sequence_network`,
`item_losses`, `sequence_models` (SASRec, BERT4Rec), `sequence_fit`.
"""

from training.baselines.item_knn import ItemKNN
from training.baselines.popularity import Popularity
from training.baselines.scorer import Scorer, ranks
from training.baselines.sequence_config import BERT4RecConfig, SASRecConfig
from training.baselines.sequence_fit import SequenceScorer, fit_sequence_model
from training.baselines.sequential_memory import SequentialMemory
from training.baselines.text_knn import TextKNN

__all__ = [
    "BERT4RecConfig",
    "ItemKNN",
    "Popularity",
    "SASRecConfig",
    "Scorer",
    "SequenceScorer",
    "SequentialMemory",
    "TextKNN",
    "fit_sequence_model",
    "ranks",
]
