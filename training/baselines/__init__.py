"""Baselines: the models that Unmask has to beat, all ranked by one function.

Reading order: `scorer` (what a baseline is; ranks over the whole catalogue). Then those that count:
`popularity`, `item_knn` (and histories as weights), `text_knn`, `sequential_memory`,
`sequential_rules`, `transitions`. Then those that learn, in `sequence`: SASRec and BERT4Rec. Last
`with_prior`: a model that has our neighbour prior.
"""

from training.baselines.item_knn import ItemKNN
from training.baselines.popularity import Popularity
from training.baselines.scorer import Scorer, ranks
from training.baselines.sequence import (
    BERT4RecConfig,
    SASRecConfig,
    fit_sequence_model,
    published_sasrec,
)
from training.baselines.sequential_memory import SequentialMemory
from training.baselines.sequential_rules import SequentialRules
from training.baselines.text_knn import TextKNN, ranks_by_content
from training.baselines.transitions import Transitions
from training.baselines.with_prior import WithPrior

__all__ = [
    "BERT4RecConfig",
    "ItemKNN",
    "Popularity",
    "SASRecConfig",
    "Scorer",
    "SequentialMemory",
    "SequentialRules",
    "TextKNN",
    "Transitions",
    "WithPrior",
    "fit_sequence_model",
    "published_sasrec",
    "ranks",
    "ranks_by_content",
]
