"""SASRec and BERT4Rec: transformers over sequences of items, trained by gradient.

Knows no data set and no file; a model lives in memory.

Reading order: `config`, `padded` (histories as rectangles), `network` (what both share), `models`
(SASRec, BERT4Rec and their losses), `fit`.
"""

from training.baselines.sequence.config import BERT4RecConfig, SASRecConfig, published_sasrec
from training.baselines.sequence.fit import SequenceScorer, fit_sequence_model

__all__ = [
    "BERT4RecConfig",
    "SASRecConfig",
    "SequenceScorer",
    "fit_sequence_model",
    "published_sasrec",
]
