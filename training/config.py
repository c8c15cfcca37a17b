"""Configuration of a training run: one pydantic model per stage.

Every stage function takes its own section and nothing else, so this module knows no stage. Unknown
keys are refused (a misspelt key must not vanish), and every field has a unit or a range.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

# As in `service.decoding`, which is not imported: a command's --help would take seconds.
CodebookKind = Literal["opq", "residual", "random"]
Collisions = Literal["keep", "digit", "reassign"]
Ranking = Literal["rows", "best", "path"]
Order = Literal["confidence", "entropy", "margin", "left_to_right", "random", "raw_confidence"]
Retrieval = Literal["generate", "dense", "fused"]

StageName = Literal["codebook", "fit", "export", "trial", "evaluation", "refit", "bundle"]
STAGES: tuple[StageName, ...] = get_args(StageName)


class ComparisonTable(StrEnum):
    """Tables of a comparison that can be asked for; runs of several seeds always have theirs."""

    SYSTEMS = "systems"
    SCHEDULES = "schedules"
    LENGTHS = "lengths"
    ABLATIONS = "ablations"
    DENSITY = "density"
    REFIT = "refit"
    SCRATCH = "scratch"
    COLD = "cold"


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InteractionsConfig(Section):
    """Filtering and splitting of the interaction log."""

    core: int = Field(0, ge=0, description="k of the k-core filter on users and items; 0 = off")
    collapse_repeats: bool = Field(
        True,
        description="leave out rows that are there twice (same user, item and time), and of rows "
        "in a row of one user that name one item all but the first",
    )
    cold_items: bool = Field(
        True, description="keep items that have no interaction (left) in the catalogue"
    )
    order_by: Literal["position", "timestamp"] | None = Field(
        None, description="absent = position, if the file has it and its timestamps do not disagree"
    )
    split: Literal["leave_last_out", "time"] = Field(
        "leave_last_out",
        description="what is held out: of each user the last item for the test and the one before "
        "it for validation; or by time, the newest interactions of all users",
    )
    test_share: float = Field(
        0.1, gt=0, lt=1, description="split by time: newest share of the interactions, the test's"
    )
    validation_share: float = Field(
        0.1, gt=0, lt=1, description="split by time: share of the interactions before these"
    )
    time_format: str | None = Field(
        None,
        min_length=1,
        description="how timestamps are written: iso8601, rfc2822, epoch_s, epoch_ms, epoch_us, "
        "epoch_ns, or as strptime has it, %d/%m/%Y %H:%M; absent = told from the values",
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share must leave something to train on")
        return self


class ItemsConfig(Section):
    """Reading of the items file."""

    category_separator: str | None = Field(
        None,
        min_length=1,
        description="what separates the categories in a text, such as , or |; none = each text is "
        "one category; absent = told from the values",
    )


class EmbeddingsConfig(Section):
    """Item vectors the codebook is fitted on: content joined with collaborative factors."""

    text_model: str = Field(
        "all-MiniLM-L6-v2", description="sentence-transformers model, used when no .npy is given"
    )
    content_dims: int = Field(128, ge=0, description="PCA dimensions of the content; 0 = leave out")
    collaborative_dims: int = Field(128, ge=0, description="rank of the factors; 0 = leave out")
    collaborative_weight: float = Field(
        0.5, ge=0, le=1, description="share of the collaborative part in the joined squared norm"
    )
    window: int = Field(3, ge=1, description="items apart that still count as a transition")
    transition_weight: float = Field(
        5.0, ge=0, le=1000, description="transitions against co-occurrence"
    )
    seed: int = 7


def _later(default: Any, description: str) -> Any:
    """A field that is not written while it has its default.

    So what was recorded before there was such a field is the same as now: stages stay done.
    """
    return Field(default, description=description, exclude_if=lambda value: value == default)


class CodebookConfig(Section):
    """How item vectors become semantic IDs."""

    kind: CodebookKind = _later(
        "opq",
        "opq = k-means of parallel parts of the rotated vector (MDGR sec. 4.2), which without "
        "rotation is plain PQ; residual = k-means level by level (MaskGR), a level is a subspace; "
        "random = codes drawn at random, for ablations",
    )
    normalise_residuals: bool = _later(
        True, "of kind residual: every level sees directions only, as in GRID"
    )
    collisions: Collisions = _later(
        "keep",
        "items whose codes are the same: keep = they share a SID; digit = SIDs have one more "
        "position, 0 for the most popular of them, then 1, 2, ...; reassign = all but the most "
        "popular get the nearest last code that is free (arXiv 2605.25330)",
    )
    num_subspaces: int = Field(8, ge=1, le=64)
    num_codes: int | None = Field(
        None,
        ge=2,
        le=65_534,
        description="absent = a code for 10 items, at most 300",
    )
    opq_iterations: int = Field(
        30, ge=0, description="of kind opq: 0 = no learned rotation, which is plain PQ"
    )
    kmeans_iterations: int = Field(25, ge=1)
    seed: int = 7

    @model_validator(mode="after")
    def _room_for_the_digit(self) -> Self:
        if self.collisions == "digit" and self.num_subspaces == 64:
            raise ValueError("with collisions=digit num_subspaces may be at most 63")
        return self


class ModelConfig(Section):
    """Which family the network is of, and its shape (after MDGR sec. 4.3).

    A run says which of the settings that it was given its family does not use.
    """

    family: str = Field("mdgr", description="a folder of training/families")
    options: dict[str, Any] = Field(
        {},
        description="settings of the family's own, which it checks; mdgr has none, maskgr has "
        "attention, target_share, dense and dense_share, tiger has dense "
        "(training/families/<name>/model.py)",
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

    Family maskgr reads the shares only: of the sequences in which only the last item has masks,
    full_share to partial_share have all its codes masked, or some.
    """

    curriculum: bool = Field(True, description="mask count by Eq. 8-10; off = uniform in 1..L")
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
    minibatch: int = Field(256, ge=1, description="samples, in as many users as have them")
    learning_rate: float = Field(1e-3, gt=0)
    final_learning_rate: float = Field(0.02, ge=0, le=1, description="as a share of learning_rate")
    ramp_share: float = Field(0.03, ge=0, lt=1, description="share of the steps spent ramping up")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
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


class NeighboursConfig(Section):
    """The neighbour prior: a sparse item-item memory whose scores are added to the network's."""

    num_neighbours: int = Field(
        128, ge=1, le=10_000, description="strongest neighbours kept of each item"
    )
    window: int = Field(
        20, ge=1, le=1000, description="items apart at which one still counts as following another"
    )
    gap_decay: float = Field(
        0.85, gt=0, le=1, description="what it counts, against one that is an item nearer"
    )
    rarity_powers: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.5, 0.2),
        min_length=1,
        description="tried on validation: counts are divided by this power of the popularity of "
        "the item that follows; a lower one favours popular items",
    )
    num_alike: int = Field(
        64, ge=0, description="items of the nearest content that are neighbours of an item too"
    )
    likeness_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (3.0, 0.0, 1.0, 6.0),
        min_length=1,
        description="tried likewise: an item with the same content, in median affinities",
    )
    history_length: int = Field(
        20, ge=1, le=1_000_000, description="newest items that are looked up"
    )
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        min_length=1,
        description="tried likewise; 0 = the prior is off",
    )
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.1, 0.03, 0.3, 1.0), min_length=1, description="tried likewise, in median affinities"
    )
    decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.7, 0.5, 0.9), min_length=1, description="tried likewise: weight against the next newer"
    )


class EvaluationConfig(Section):
    """Offline evaluation through the production decoder."""

    schedules: Annotated[tuple[ScheduleConfig, ...], Field(min_length=1)] = (
        ScheduleConfig(r_warm=0),
        ScheduleConfig(r_warm=1),
        ScheduleConfig(r_warm=4, m_par=4),
        ScheduleConfig(r_warm=4, m_par=2),
        ScheduleConfig(r_warm=8, m_par=1),
    )
    beam_widths: tuple[Annotated[int, Field(ge=10, le=200)], ...] = Field(
        (10, 50), min_length=1, description="tried with each schedule to choose the default"
    )
    rankings: tuple[Ranking, ...] = Field(
        ("rows", "best", "path"), min_length=1, description="tried likewise"
    )
    finish_rows: tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...] = Field(
        (0, 1000), min_length=1, description="tried likewise"
    )
    orders: tuple[Order, ...] = Field(
        ("confidence",),
        min_length=1,
        description="tried likewise: which masked positions a beam fills first",
    )
    retrievals: tuple[Retrieval, ...] = Field(
        ("generate",),
        min_length=1,
        description="tried likewise: what finds items; dense and fused need model.options.dense",
        exclude_if=lambda value: value == ("generate",),
    )
    beam_width: int | None = Field(
        None, ge=1, description="of the tables on test users; absent = the bundle's default"
    )
    exclude_seen: bool = Field(
        True,
        description="leave out items of the history, as the service does unless a request says "
        "otherwise; all that is chosen on validation users is chosen so, and reports begin with it",
    )
    users: int | None = Field(
        None, ge=1, description="test users, a fixed random draw; absent = all"
    )
    schedule_users: int = Field(
        2000, ge=1, description="validation users that choose the bundle's decoding defaults"
    )
    timing_users: int = Field(
        50, ge=1, description="those of them that are timed, one by one on one thread"
    )
    invalid_sid_users: int = Field(1000, ge=1, description="test users for the invalid-SID rates")
    batch: int = Field(32, ge=1, description="users decoded together")

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        if set(self.orders) == {"raw_confidence"} and set(self.rankings) == {"rows"}:
            raise ValueError(
                "orders: raw_confidence cannot rank by rows, so nothing would be tried; add "
                "another of orders, or of rankings"
            )
        return self


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


class BundleConfig(Section):
    """What the bundle is called and carries."""

    name: str = Field("unmask", max_length=100, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    version: str = Field(
        "",
        max_length=100,
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*)?$",
        description="empty = date and hash of the run",
    )
    held_out_users: int = Field(
        1000, ge=0, le=1_000_000, description="test users shipped for replay and priming"
    )
    content_text: Literal["title. categories"] | None = Field(
        None,
        description="what of each item was embedded, where --embeddings are given: recorded for "
        "those who add items; absent = not known",
    )
    content_model: str | None = Field(
        None, min_length=1, max_length=500, description="the model that did it, likewise"
    )


class RunConfig(Section):
    """A whole run: one section per stage."""

    interactions: InteractionsConfig = InteractionsConfig()
    items: ItemsConfig = ItemsConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    codebook: CodebookConfig = CodebookConfig()
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    fit: FitConfig = FitConfig()
    export: ExportConfig = ExportConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    refit: RefitConfig = RefitConfig()
    bundle: BundleConfig = BundleConfig()
