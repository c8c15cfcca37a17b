"""From files to semantic IDs: interactions, items, item vectors, the codebook."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from training.config.sections import AttributeType, CodebookKind, Collisions, Section, later

Names = TypeVar("Names", dict[str, AttributeType], tuple[str, ...])


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
    columns: dict[Literal["user_id", "item_id", "position", "timestamp", "event_type"], str] = (
        later({}, "what the file calls these columns, if otherwise")
    )
    events: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = later(
        {}, "event types that count, and their weights: {view = 1, purchase = 3}; empty = all lines"
    )
    targets: tuple[str, ...] = later((), "event types that are held out; empty = all that count")

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
    columns: dict[Literal["item_id", "title", "categories"], str] = later({}, "as of interactions")
    attributes: dict[str, AttributeType] = later(
        {},
        "more columns of the items file, each text, number or date: requests can filter by them, "
        "as in {brand = 'text', price = 'number', released = 'date'}",
    )
    text_columns: tuple[str, ...] = later(
        (),
        "more columns of the items file, perhaps attributes too, whose text is embedded behind "
        "title and categories, in this order: ['brand', 'description']",
    )

    @field_validator("attributes", "text_columns")
    @classmethod
    def _are_no_other_columns(cls, names: Names) -> Names:
        for name in names:
            if name.strip().lower() in ("item_id", "title", "category", "categories"):
                raise ValueError(f"{name} is read already, and need not be named here")
            if not 1 <= len(name) <= 64:
                raise ValueError("a name has 1 to 64 characters")
        return names

    @field_validator("text_columns")
    @classmethod
    def _are_named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        plain = [name.strip().lower() for name in names]
        if repeated := [name for name in plain if plain.count(name) > 1]:
            raise ValueError(f"{repeated[0]} is named more than once")
        return names

    @model_validator(mode="after")
    def _texts_are_text(self) -> Self:
        spelt = {name.strip().lower(): name for name in self.attributes}
        for name in self.text_columns:
            attribute = spelt.get(name.strip().lower(), name)
            if (kind := self.attributes.get(attribute, "text")) != "text":
                raise ValueError(f"text_columns: {name} is a {kind}; name columns of text")
            if attribute != name:  # who adds items names it once
                raise ValueError(f"text_columns: spell {name} as in attributes, {attribute}")
        return self


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


class CodebookConfig(Section):
    """How item vectors become semantic IDs."""

    kind: CodebookKind = later(
        "opq",
        "opq = k-means of parallel parts of the rotated vector (MDGR sec. 4.2), which without "
        "rotation is plain PQ; residual = k-means level by level (MaskGR), a level is a subspace; "
        "rqvae = such levels of a latent that is learnt with them (TIGER); "
        "random = codes drawn at random, for ablations",
    )
    normalise_residuals: bool = later(
        True, "of kind residual: every level sees directions only, as in GRID"
    )
    collisions: Collisions = later(
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
    rqvae_epochs: int = later(200, "of kind rqvae: passes over the vectors", ge=1)
    seed: int = 7

    @model_validator(mode="after")
    def _room_for_the_digit(self) -> Self:
        if self.collisions == "digit" and self.num_subspaces == 64:
            raise ValueError("with collisions=digit num_subspaces may be at most 63")
        return self
