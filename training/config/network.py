"""The network: its shape, what is masked, how it is fitted, exported and fitted again."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from training.config.sections import Device, Noise, Section, later


class ModelConfig(Section):
    """Which family the network is of, and its shape (after MDGR sec. 4.3).

    A run says which of the settings that it was given its family does not use.
    """

    family: str = Field("mdgr", description="a folder of training/families")
    options: dict[str, Any] = Field(
        {},
        description="settings of the family's own, which it checks: of mdgr encoder "
        "(training/families/mdgr/options.py), of maskgr attention, target_share, dense and "
        "dense_share, of tiger dense (training/families/<name>/model.py)",
    )
    width: int = Field(128, ge=8)
    num_heads: int = Field(8, ge=1)
    encoder_layers: int = Field(3, ge=1, description="of maskgr, all of its layers")
    decoder_layers: int = Field(1, ge=1, description="not of maskgr, which has no decoder")
    ffn_multiple: int = Field(4, ge=1)
    dropout: float = Field(0.25, ge=0, le=0.9)
    history_length: int = Field(
        20, ge=1, le=2_048, description="newest items the encoder sees; a bundle may have no more"
    )
    item_vectors: bool = Field(True, description="the encoder sees items' vectors beside codes")
    difficulty_embedding: bool = Field(
        True, description="the network is told how many codes are masked; not of maskgr"
    )
    tied_head: bool = Field(True, description="logits by dot product with the code embeddings")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        return self


class MaskingConfig(Section):
    """Which positions of the target SID become MASK (MDGR Eq. 8-13).

    Family maskgr reads the shares and noise: of the sequences in which only the last item has
    masks, full_share to partial_share have all its codes masked, or some.
    """

    curriculum: bool = Field(True, description="mask count by Eq. 8-10; off = by noise")
    noise: Noise = later(
        "uniform",
        "mask count without the curriculum: uniform in 1..L, or cosine (MaskGIT), where many masks "
        "are more frequent; of maskgr, how its rate t is drawn",
    )
    gamma: float = Field(2.0, gt=0)
    history_aware: bool = Field(True, description="positions by Eq. 11-12; off = uniform")
    epsilon: float = Field(0.1, gt=0)
    full_share: float = Field(
        1.0, ge=0, le=1, description="share of targets that give a sample with all positions masked"
    )
    partial_share: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of targets that give one masked as said above, perhaps fully too",
    )

    @model_validator(mode="after")
    def _a_sample_of_every_target(self) -> Self:
        if max(self.full_share, self.partial_share) < 1:
            raise ValueError("full_share or partial_share must be 1: every target gives a sample")
        return self


class ScheduleConfig(Section):
    """A decoding schedule (service.decoding.Schedule); for fewer subspaces both are cut off."""

    r_warm: int = Field(ge=0)
    m_par: int | None = Field(None, ge=1, description="absent = all positions that are left")

    def params(self, num_subspaces: int) -> tuple[int, int]:
        """(r_warm, m_par) for SIDs of this many positions."""
        r_warm = min(self.r_warm, num_subspaces)
        m_par = num_subspaces - r_warm if self.m_par is None else self.m_par
        return r_warm, min(max(1, m_par), num_subspaces)


class FitConfig(Section):
    """Optimisation."""

    position_weight: float = Field(0.0, ge=0, description="weight of the paper's loss, Eq. 15")
    catalogue_weight: float = Field(1.0, ge=0, description="weight of the catalogue-normalised one")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the paper's loss")
    sampled_rows: int = Field(
        250_000,
        ge=1,
        description="rows drawn for the softmax of a minibatch if there are more; each takes "
        "4 bytes a sample, a few times",
    )
    epochs: int | None = Field(
        None, ge=1, description="absent = as many as make `samples`, 2 to 200"
    )
    samples: int = Field(1_500_000, ge=1, description="training samples seen in all epochs")
    minutes: float | None = later(
        None,
        "CPU minutes of all steps and threads; wins over epochs, and nothing stops early",
        gt=0,
    )
    minibatch: int = Field(256, ge=1, description="samples, in as many users as have them")
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(0.02, ge=0, le=1, description="as a share of learning_rate")
    ramp_share: float = Field(0.03, ge=0, lt=1, description="share of the steps spent ramping up")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    history_dropout: float = later(
        0.0,
        "share of the samples whose history the network does not see, which guidance needs",
        ge=0,
        le=0.9,
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="of the averaged weights that are validated and shipped"
    )
    bf16: bool = Field(True, description="bf16 autocast where the CPU supports it")
    validate_every_epochs: int = Field(2, ge=1)
    validation_users: int = Field(2000, ge=1)
    validation_schedule: ScheduleConfig = Field(
        ScheduleConfig(r_warm=0), description="how checkpoints are compared"
    )
    validation_beam_width: int = Field(50, ge=10)
    patience: int = Field(4, ge=1, description="validations without a better recall before a stop")
    early_stop_from: float = Field(0.8, ge=0, le=1, description="progress before which none stops")
    device: Device = later(
        "auto", "where the network learns: cpu, cuda, mps; auto = cuda or mps if they are there"
    )
    threads: int = Field(0, ge=0, description="torch threads; 0 = the processors we may use")
    seed: int = 7

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not self.position_weight + self.catalogue_weight:
            raise ValueError("position_weight and catalogue_weight cannot both be 0")
        return self

    @property
    def ranking(self) -> Literal["rows", "path"]:
        """How the decoder scores partial SIDs: by what the network is trained for."""
        return "rows" if self.catalogue_weight else "path"


class ExportConfig(Section):
    """What is exported beside the two float32 graphs."""

    int8: bool = Field(
        False,
        description="also graphs with 8-bit products, for processors with VNNI; left out if they "
        "lose more than 1 % of recall@10 on validation",
    )


class RefitConfig(Section):
    """What ships knows all interactions; what is measured, the trial, does not."""

    enabled: bool = Field(
        True, description="learn all interactions before shipping; off = the trial ships"
    )
    share: float = Field(
        0.25,
        ge=0,
        le=0.5,
        description="share of the fit's steps that the network learns on, at the last of its "
        "learning rates; 0 = it stays, and only counts are made again",
    )
