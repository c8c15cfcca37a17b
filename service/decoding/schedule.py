"""How many positions each decode step fills: the setting that trades quality for latency.

`r_warm` steps fill one position each, later steps fill `m_par` (MDGR sec. 4.4, Eq. 16). The last
step fills the positions that are left. Knows nothing of beams or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Schedule:
    """Positions filled at each decode step, in order. Equal schedules are the same schedule."""

    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.steps or any(step < 1 for step in self.steps):
            raise ValueError(f"every step of a schedule fills at least one position: {self.steps}")

    @classmethod
    def from_params(cls, *, num_subspaces: int, r_warm: int, m_par: int) -> Self:
        """Build the two-stage schedule of MDGR: R = r_warm + ceil((L - r_warm) / m_par) steps.

        Raises ValueError unless 0 <= r_warm <= num_subspaces and 1 <= m_par <= num_subspaces.
        """
        if not 0 <= r_warm <= num_subspaces:
            raise ValueError(f"r_warm must be between 0 and {num_subspaces}")
        if not 1 <= m_par <= num_subspaces:
            raise ValueError(f"m_par must be between 1 and {num_subspaces}")
        parallel, rest = divmod(num_subspaces - r_warm, m_par)
        return cls((1,) * r_warm + (m_par,) * parallel + ((rest,) if rest else ()))

    @property
    def nfe(self) -> int:
        """Denoiser calls a request with this schedule needs (the encoder is not counted)."""
        return len(self.steps)

    @property
    def num_subspaces(self) -> int:
        """Positions filled in total."""
        return sum(self.steps)
