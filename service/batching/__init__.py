"""The queue in front of the decode thread: which jobs are decoded together, and when.

Jobs wait in lanes; one thread takes a batch, decodes it and answers each job. A job that is
foretold to be too late is refused. Knows jobs and their sizes, nothing of users, bundles or HTTP.

Reading order: `batcher` (admission, the thread), `lanes` (who is next), `latency_model` (how long
decoding will take).
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
