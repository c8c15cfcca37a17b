"""The mask distributions compared with golden values calculated from MDGR Eq. 8-12."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from training.config import MaskingConfig
from training.errors import ConfigError
from training.families.mdgr.masking import (
    check_noise,
    cosine_count_probabilities,
    draw_mask,
    draw_positions,
    ease,
    mask_count_probabilities,
    position_log_weights,
)

DELTAS = {0.0: 1.0, 0.25: 0.8536, 0.5: 0.5, 0.75: 0.1464, 1.0: 0.0}
ONE_MASK = {0.0: 0.2222, 0.25: 0.1937, 0.5: 0.1250, 0.75: 0.0563, 1.0: 0.0278}


@pytest.mark.parametrize(("progress", "delta"), DELTAS.items())
def test_ease_has_the_papers_values(progress: float, delta: float) -> None:
    assert ease(progress, gamma=2) == pytest.approx(delta, abs=5e-5)


@pytest.mark.parametrize(("progress", "probability"), ONE_MASK.items())
def test_mask_counts_have_the_papers_probabilities(progress: float, probability: float) -> None:
    found = mask_count_probabilities(progress, 8, gamma=2)
    assert found.sum() == pytest.approx(1)
    assert float(found[0]) == pytest.approx(probability, abs=5e-5)
    mirrored = mask_count_probabilities(1 - progress, 8, gamma=2)
    assert torch.allclose(found, mirrored.flip(0), atol=1e-6)


def test_larger_gamma_makes_training_hard_sooner() -> None:
    assert ease(0.5, gamma=3) < ease(0.5, gamma=1)


def test_positions_are_drawn_with_the_golden_probabilities() -> None:
    """q = (0, 1, 1, 5), epsilon = .1, two masks: the six pair probabilities."""
    n = 200_000
    log_weights = -torch.log(torch.tensor([0.0, 1.0, 1.0, 5.0]) + 0.1).expand(n, 4)
    masked = draw_positions(torch.full((n,), 2), log_weights, torch.Generator().manual_seed(1))
    golden = dict(
        zip(
            combinations(range(4), 2), [0.4438, 0.4438, 0.0948, 0.0124, 0.0026, 0.0026], strict=True
        )
    )
    for (first, second), probability in golden.items():
        share = float((masked[:, first] & masked[:, second]).float().mean())
        assert share == pytest.approx(probability, abs=4 * (probability / n) ** 0.5)


def test_position_weights_count_the_target_codes_in_the_visible_history() -> None:
    history = torch.tensor([[[1, 5], [1, 6], [2, 5]]])
    target = torch.tensor([[1, 6]])
    everything = position_log_weights(history, torch.ones(1, 3) > 0, target, epsilon=0.1)
    assert torch.allclose(everything.exp(), 1 / torch.tensor([[2.1, 1.1]]))
    newest_hidden = torch.tensor([[True, False, True]])
    some = position_log_weights(history, newest_hidden, target, epsilon=0.1)
    assert torch.allclose(some.exp(), 1 / torch.tensor([[1.1, 0.1]]))


def test_draw_mask_follows_its_switches() -> None:
    n = 20_000
    history = torch.zeros(n, 1, 8, dtype=torch.long)
    target = torch.zeros(n, 8, dtype=torch.long)
    target[:, 0] = 3  # the only code that is not in the history
    mask = torch.ones(n, 1) > 0

    def draw(**switches: object) -> torch.Tensor:
        config = MaskingConfig().model_copy(update=switches)
        generator = torch.Generator().manual_seed(3)
        return draw_mask(history, mask, target, progress=0.0, config=config, generator=generator)

    aware = draw()
    counts = aware.sum(dim=1)
    assert counts.min() == 1
    assert float((counts == 1).float().mean()) == pytest.approx(2 / 9, abs=0.02)
    assert float(aware[:, 0].float().mean()) > 0.85
    uniform_counts = draw(curriculum=False).sum(dim=1)
    assert float((uniform_counts == 1).float().mean()) == pytest.approx(1 / 8, abs=0.02)
    uniform_positions = draw(history_aware=False)
    spread = uniform_positions.float().mean(dim=0)
    assert float(spread.max() - spread.min()) < 0.03
    cosine_counts = draw(curriculum=False, noise="cosine").sum(dim=1).bincount(minlength=9)[1:]
    assert torch.allclose(
        cosine_counts.double() / n, cosine_count_probabilities(8), atol=0.02, rtol=0
    )


def test_cosine_counts_are_the_shares_of_maskgit_rounded_up() -> None:
    """Computed once more on a fine grid of t."""
    t = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)[1:-1]
    counts = torch.ceil(5 * torch.cos(math.pi / 2 * t)).long().bincount(minlength=6)[1:] / len(t)
    assert torch.allclose(cosine_count_probabilities(5), counts.double(), atol=1e-5)
    assert float(cosine_count_probabilities(1)[0]) == pytest.approx(1)


def test_a_noise_that_the_curriculum_hides_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set masking\.curriculum=false too"):
        check_noise(MaskingConfig(noise="cosine"))
    check_noise(MaskingConfig(noise="cosine", curriculum=False))


@pytest.mark.parametrize(
    ("num_items", "shared", "golden"),
    [
        # One mask: P(position) = w / sum of w, by hand. Of four positions, 0 is in every item.
        (1, 1, (0.0294, 0.3235)),  # w = 1/1.1 against three of 10
        (2, 1, (0.0156, 0.3281)),  # 1/2.1
        (3, 1, (0.0106, 0.3298)),  # 1/3.1
        (1, 4, (0.25, 0.25)),  # every code is in the history: as if it were not looked at
        (1, 0, (0.25, 0.25)),  # and so if none is
        (0, 0, (0.25, 0.25)),  # or if there is no history
    ],
)
def test_history_aware_masks_of_short_histories(
    num_items: int, shared: int, golden: tuple[float, float]
) -> None:
    """Users with 0 to 3 items: Eq. 11-12 with epsilon .1, and draws that agree."""
    n, target = 100_000, torch.full((1, 4), 7)
    history = torch.zeros(1, 3, 4, dtype=torch.long)
    history[:, :, :shared] = 7
    is_item = torch.arange(3)[None] < num_items
    log_weights = position_log_weights(history, is_item, target, epsilon=0.1)
    weights = log_weights.exp()[0]
    found = weights / weights.sum()
    assert found[[0, 3]].tolist() == pytest.approx(golden, abs=5e-5)
    one = draw_positions(
        torch.ones(n, dtype=torch.long), log_weights.expand(n, 4), torch.Generator().manual_seed(2)
    )
    assert one.double().mean(dim=0).tolist() == pytest.approx(found.tolist(), abs=0.006)
    # Two masks, of 4 positions: the shared code is one of them if it is drawn second.
    two = draw_positions(
        torch.full((n,), 2), log_weights.expand(n, 4), torch.Generator().manual_seed(3)
    )
    first, other = golden
    expected = first + 3 * other * first / (1 - other)
    assert float(two[:, 0].double().mean()) == pytest.approx(expected, abs=0.006)
