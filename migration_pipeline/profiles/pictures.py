"""Pictures: many items make one row, and they may be in any file.

An item says one thing of a picture: its caption in a language, its size in a format. Its `id` is
``<picture>-<language>-<format>``. All items of a picture together become one row of `picture`::

    items (any file)          landing table           row
    7-0-85 ┐
    7-1-72 ├──────────▶ landing.picture_items ──────▶ picture 7
    7-1-68 ┘                          pictures.sql

The items land as they are, a row each. What becomes of them is said by ``pictures.sql``, beside this
file: a SELECT that you can paste into psql. Nothing in it depends on the order in which items came, nor on
the clock: where items contradict each other, the lowest item id decides.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec

from migration_pipeline import AnyInt, Integer, Item, Options, Profile, Row, attribute, column

profile = Profile("pictures")


class PictureOptions(Options):
    """Run config ``options`` of this profile."""

    max_id: Annotated[
        int | None,
        msgspec.Meta(description="Items of pictures with this id or a greater one are skipped, and counted."),
    ] = None


class PictureItem(Item):
    """``<picture>-<language>-<format>``: what is known of a picture in a language and a format."""

    id: str
    picture_id: AnyInt = attribute("pictureId")
    language_id: AnyInt | None = attribute("languageId")
    url: str | None
    caption: str | None
    agency_id: AnyInt | None = attribute("agencyId")
    format_id: AnyInt | None = attribute("formatId")
    format_picture_id: AnyInt | None = attribute("formatPictureId")
    original_width: AnyInt | None = attribute("originalWidth")
    original_height: AnyInt | None = attribute("originalHeight")


class LandedItem(Row, table="picture_items", landing=True):
    """Items of pictures, with what pictures.sql makes rows of. Numbers come first, as they need no padding so."""

    picture_id: int
    language_id: int | None
    format_id: int | None
    format_picture_id: int | None
    agency_id: Integer | None
    original_width: Integer | None
    original_height: Integer | None
    id: str
    stem: str | None
    """The url without its leading /img/, up to the extension."""
    extension: str | None
    """The rest of it: ``.jpg``, or nothing."""
    caption: str | None
    uuid_digest: str
    """SHA-1 of which the picture's UUID is made. It comes from here, as PostgreSQL has none without an extension."""


class Picture(Row, table="picture", key="id"):
    """Pictures, with their captions in all languages and their variants in all formats."""

    id: int
    uuid: UUID | None
    path: str | None
    image_type: str | None = column("imageType")
    description_i18n: dict[str, Any] | None
    agency_id: Integer | None = column("agencyId")
    focal_point_x: float | None = column("focalPointX")
    focal_point_y: float | None = column("focalPointY")
    width: Integer | None
    height: Integer | None
    crops: list[Any] | None
    taxonomy: list[Any] | None
    type: str | None
    created_by: str | None = column("createdBy")
    created_at: datetime | None = column("createdAt")
    updated_at: datetime | None = column("updatedAt")
    variants: list[Any] | None


def splitext(path: str) -> tuple[str, str]:
    """Split a path before the last dot of its last part; without one the extension is empty."""
    stem, dot, extension = path.rpartition(".")
    return (stem, dot + extension) if dot and "/" not in extension else (path, "")


NAMESPACE = hashlib.sha1(UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8").bytes, usedforsecurity=False)
"""Of the pictures' UUIDs, which are UUIDv5 of the decimal id (RFC 9562, 5.5): the digest that is begun with it."""


@profile.route()
def picture_item(item: PictureItem, options: PictureOptions) -> LandedItem | None:
    """Each item lands, unless its picture's id is too great."""
    if options.max_id is not None and item.picture_id >= options.max_id:
        return None
    stem = extension = None
    if item.url is not None:
        stem, extension = splitext(item.url.removeprefix("/img/"))
    digest = NAMESPACE.copy()
    digest.update(b"%d" % item.picture_id)
    return LandedItem(
        item.picture_id, item.language_id, item.format_id, item.format_picture_id, item.agency_id,
        item.original_width, item.original_height, item.id, stem, extension, item.caption, digest.hexdigest()[:32],
    )  # fmt: skip


profile.aggregate(Picture, of=LandedItem, by="picture_id", sql="pictures.sql")
profile.sequence("picture_id_seq", past=Picture, column="id")
