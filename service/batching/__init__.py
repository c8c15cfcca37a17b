"""The queue in front of the decode thread: which jobs are decoded together, and when.

Jobs wait in lanes. One thread takes a batch, decodes it and answers each job. A job is refused when
the forecast says that it would be too late. Knows jobs and their sizes, and nothing of users,
bundles or HTTP.

Reading order: `batcher` (admission, the thread), `lanes` (which job is next), `latency_model` (how
long decoding will take).
"""

from service.batching.batcher import MicroBatcher
from service.batching.lanes import Answer, Engine
from service.batching.latency_model import LatencyModel, Work

__all__ = [
    "Answer",
    "Engine",
    "LatencyModel",
    "MicroBatcher",
    "Work",
]
