"""Shadow mode: the candidate bundle answers a share of the requests too, and nobody sees it.

It decodes only when nothing else waits, so it is the first to stop under load. It measures how many
items of an answer the candidate also finds, with the candidate's own default setting. Knows nothing
of users or HTTP.
"""

from __future__ import annotations

import asyncio
import random
import time

from service.batching import MicroBatcher
from service.bundles import DecodingDefaults
from service.errors import RequestError
from service.loading import LoadedBundle, LoadedBundles
from service.recommending.assembly import Caps, chosen
from service.recommending.jobs import Inputs, UserHistory
from service.recommending.planning import fixed_plan
from service.recommending.rules import rules_of
from service.schemas import RecommendRequest, RecommendResponse
from service.tasks import ended
from service.telemetry import Metrics

TIMEOUT_S = 5.0
SETTLE_S = 0.002
AS_ITS_DEFAULT = {
    **dict.fromkeys(DecodingDefaults.model_fields),
    "explain": False,
    "explore": 0.0,
}


class Shadow:
    """Create it inside the event loop."""

    def __init__(
        self, loaded_bundles: LoadedBundles, batcher: MicroBatcher, metrics: Metrics
    ) -> None:
        self._loaded_bundles = loaded_bundles
        self._batcher = batcher
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(
        self, request: RecommendRequest, history: UserHistory, response: RecommendResponse
    ) -> None:
        """Let the candidate answer too, if its share says so. Returns at once."""
        candidate, share = self._loaded_bundles.candidate, self._loaded_bundles.shadow_fraction
        if candidate is None or not response.items or random.random() >= share:
            return
        task = asyncio.create_task(self._compare(candidate, request, history, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel the comparisons that still run."""
        await ended(self._tasks)

    async def _compare(
        self,
        candidate: LoadedBundle,
        request: RecommendRequest,
        history: UserHistory,
        response: RecommendResponse,
    ) -> None:
        result = "failed"
        try:
            await asyncio.sleep(SETTLE_S)  # the batch that has just answered is still ending
            if not self._batcher.is_idle:
                result = "skipped"
                return
            bundle = candidate.bundle
            asked = request.model_copy(update=AS_ITS_DEFAULT)
            plan = fixed_plan(asked, bundle.manifest.decoding, bundle.manifest)
            inputs = await Inputs.look_up(asked, history, bundle, rules_of(asked, bundle))
            [job] = inputs.jobs(asked, plan)
            deadline = time.monotonic() + TIMEOUT_S
            answer = await self._batcher.submit(candidate.engine, job, deadline)
            rows, caps = answer.decoded.rows.tolist(), Caps(bundle, asked.max_per)
            places, _ = chosen(asked.k, rows, [], 0, inputs.pinned.values(), caps)
            found = {bundle.items[rows[place]].item_id for place in places}
            items = [item for item in response.items if not (item.explored or item.pinned)]
            if items:  # else every place was explored or pinned
                hits = sum(item.item_id in found for item in items)
                self._metrics.shadow_overlap.observe(hits / len(items))
            result = "compared"
        except RequestError:
            pass  # the metric shows it
        finally:
            self._metrics.shadow_requests.labels(result).inc()
