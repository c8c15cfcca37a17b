"""What requests note and a task writes: answers that users got, and users of items.

A request never waits for these writes. What waits is bounded; what is dropped is counted. Knows
nothing of keys or commands.

Reading order: `attribution` (answers are remembered, so that events count for them), `trending`
(how many users had an item lately).
"""

from service.histories.background.attribution import AnswerMemory
from service.histories.background.trending import Counted, Trending

__all__ = ["AnswerMemory", "Counted", "Trending"]
