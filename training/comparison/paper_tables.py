"""What the tables of MDGR vary, and what they report: schedules (Table 3), ablations (Table 4).

An ablation is a list of overrides of the run it is compared with; one that changes nothing of a
preset (its masks are random already) is not worth a run. Published figures are of the authors'
industry data, with other sizes: a direction at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.config import RunConfig, ScheduleConfig
from training.pipeline import family_of_run
from training.preset import validate_config

ONE_CALL = ScheduleConfig(r_warm=0)
PAPER = ScheduleConfig(r_warm=4, m_par=2)
# With MDGR's recall@10, where it has one: the last two are ours.
SCHEDULES: tuple[tuple[ScheduleConfig, float | None], ...] = (
    (ScheduleConfig(r_warm=0, m_par=1), 0.2219),
    (ScheduleConfig(r_warm=0, m_par=2), 0.2127),
    (ScheduleConfig(r_warm=2, m_par=2), 0.2199),
    (PAPER, 0.2210),
    (ScheduleConfig(r_warm=6, m_par=2), 0.2213),
    (ScheduleConfig(r_warm=4, m_par=3), 0.2205),
    (ScheduleConfig(r_warm=4, m_par=4), 0.2204),
    (ScheduleConfig(r_warm=1), None),
    (ONE_CALL, None),
)

# Without its prior a run needs no weight for it, nor a choice among schedules.
UNWEIGHED = ("neighbours.weights=[0]", "evaluation.schedules=[{ r_warm = 0 }]")


@dataclass(frozen=True)
class Ablation:
    """A difference to the run as it is.

    published: MDGR's change of recall@5 / ndcg@5 in percent, or empty
    """

    name: str
    overrides: tuple[str, ...]
    published: str = ""

    def config(self, base: RunConfig) -> RunConfig | None:
        """The configuration to run, or None when `base` is like that already.

        Or when its family reads nothing of what would change.
        """
        names = {override.partition("=")[0] for override in self.overrides}
        if names <= set(family_of_run(base).unused):
            return None
        changed = overridden(base, self.overrides)
        return None if changed == base else overridden(changed, UNWEIGHED)


ABLATIONS = (
    Ablation("position loss", ("fit.position_weight=1.0", "fit.catalogue_weight=0.0")),
    Ablation("random mask count", ("masking.curriculum=false",), "-1.35 % / -1.09 %"),
    Ablation("random positions", ("masking.history_aware=false",), "-1.83 % / -2.01 %"),
    Ablation(
        "random count and positions",
        ("masking.curriculum=false", "masking.history_aware=false"),
        "-3.45 % / -3.19 %",
    ),
    Ablation("no difficulty embedding", ("model.difficulty_embedding=false",), "-1.02 % / -1.09 %"),
    Ablation("no item vectors", ("model.item_vectors=false",)),
    Ablation("content-only codes", ("embeddings.collaborative_dims=0",)),
    Ablation("PQ instead of OPQ", ("codebook.kind=opq", "codebook.opq_iterations=0")),
    Ablation("residual codes", ("codebook.kind=residual",), "-1.40 % / -1.34 %"),
    Ablation("RQ-VAE codes", ("codebook.kind=rqvae",), "-1.46 % / -1.43 %"),
    Ablation("random codes", ("codebook.kind=random",)),
)
# In decoding alone: the run as it is, asked in another way.
RANDOM_CHOICE = Ablation("random position choice in decoding", (), "-1.94 % / -1.85 %")


def overridden(config: RunConfig, overrides: tuple[str, ...]) -> RunConfig:
    """A configuration with `section.key=value` applied, as by `--set`."""
    return validate_config(config.model_dump(), list(overrides), source=", ".join(overrides))


def reseeded(config: RunConfig, number: int) -> RunConfig:
    """A configuration with the seeds of vectors, codebook and fit raised by `number`."""
    seeds = {
        "embeddings": config.embeddings.seed,
        "codebook": config.codebook.seed,
        "fit": config.fit.seed,
    }
    return overridden(
        config, tuple(f"{section}.seed={seed + number}" for section, seed in seeds.items())
    )
