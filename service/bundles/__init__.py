"""The bundle: the folder that training writes and the service reads. It is their only link.

Format version, sizes and hashes of every file, items and their attributes. Training and serving
both use this room, so it knows neither: no queue, no history store, no HTTP, no torch.

Reading order: `decoding_defaults` (how a bundle decodes), `manifest` (what it says about itself),
`bundle` (reading and writing one), `arrays` and `lines` (its files, checked), `items` (titles,
categories, attributes), `attributes` (which items pass a filter), `remembered_rows` (filters that
came lately), `ladder` (its faster decoding settings), `store` (the bundle store: folders of
bundles), `shared_parts` (a bundle in memory once for several processes).
"""

from service.bundles.attributes import AttributeIndex, Condition, seconds_of, type_of
from service.bundles.bundle import Bundle, verify, write_bundle
from service.bundles.decoding_defaults import DecodingDefaults, misfit_of
from service.bundles.items import (
    CATEGORY,
    AttributeType,
    AttributeValue,
    HiddenItems,
    Item,
    joined_text,
    text_of,
    with_ancestors,
)
from service.bundles.ladder import ladder_of
from service.bundles.lines import HeldOutUser, check_items
from service.bundles.manifest import (
    CONTENT_TEXT,
    HISTORY_CAP,
    REFERENCE,
    ContentPart,
    Manifest,
    one_line,
    write_manifest,
)
from service.bundles.store import (
    CURRENT,
    configured_path,
    existing_path,
    reference_at,
    stored_path,
    versions_of,
)

__all__ = [
    "CATEGORY",
    "CONTENT_TEXT",
    "CURRENT",
    "HISTORY_CAP",
    "REFERENCE",
    "AttributeIndex",
    "AttributeType",
    "AttributeValue",
    "Bundle",
    "Condition",
    "ContentPart",
    "DecodingDefaults",
    "HeldOutUser",
    "HiddenItems",
    "Item",
    "Manifest",
    "check_items",
    "configured_path",
    "existing_path",
    "joined_text",
    "ladder_of",
    "misfit_of",
    "one_line",
    "reference_at",
    "seconds_of",
    "stored_path",
    "text_of",
    "type_of",
    "verify",
    "versions_of",
    "with_ancestors",
    "write_bundle",
    "write_manifest",
]
