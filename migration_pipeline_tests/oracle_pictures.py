"""What items of pictures must become, computed in plain Python: what pictures.sql is held against."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

NAMESPACE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
LANGUAGES = dict(
    zip(
        (0, 1, 3, 4, 5, 6, 9, 11, 13, 14, 15, 16, 17),
        ["en", "de", "fr", "it", "nl", "es", "tr", "da", "nb", "pl", "ru", "ro", "hu"],
        strict=True,
    )
)
SIZES: dict[int, tuple[int | None, int | None]] = {85: (2560, 1440), 72: (640, 480), 68: (310, 310)}
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".gif": "image/gif"}

SELECT = """
SELECT id, uuid::text, path, "imageType", description_i18n, "agencyId", "focalPointX", "focalPointY", width,
       height, crops, taxonomy, type, "createdBy", "createdAt", "updatedAt", variants
  FROM picture ORDER BY id
"""


def pictures(
    items: list[dict[str, Any]], exported: datetime, max_id: int | None = None
) -> list[tuple[Any, ...]]:
    """Make the rows of `picture`, sorted by id, of the items of all files in DynamoDB JSON."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for item in items:
        plain = {name: _value(attribute) for name, attribute in item.items()}
        for name in (
            "pictureId", "languageId", "agencyId", "formatId", "formatPictureId", "originalWidth", "originalHeight",
        ):  # fmt: skip
            if plain.get(name) is not None:
                plain[name] = int(plain[name])
        if max_id is None or plain["pictureId"] < max_id:
            groups.setdefault(plain["pictureId"], []).append(plain)
    return [_picture(picture, groups[picture], exported) for picture in sorted(groups)]


def _value(attribute: dict[str, Any]) -> Any:
    ((letter, value),) = attribute.items()
    return None if letter == "NULL" else value


def _path(item: dict[str, Any]) -> str | None:
    url = item.get("url")
    return None if url is None else url[5:] if url.startswith("/img/") else url


def _split(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    if "." not in name:
        return path, ""
    dot = name.rindex(".")
    return folder + slash + name[:dot], name[dot:]


def _picture(picture: int, items: list[dict[str, Any]], exported: datetime) -> tuple[Any, ...]:
    items = sorted(items, key=lambda item: item["id"].encode())
    main = next((item for item in items if item.get("formatId") == 85), items[0])
    sized = next(
        (i for i in items if i.get("originalWidth") is not None and i.get("originalHeight") is not None), {}
    )
    description = {"en": ""}
    for language, code in LANGUAGES.items():
        captions = [i["caption"] for i in items if i.get("languageId") == language and i.get("caption")]
        if captions:
            description[code] = captions[0]
    variants: dict[tuple[str, str], dict[str, Any]] = {}
    for item in items:
        form, number = item.get("formatId"), item.get("formatPictureId")
        if form is None or number is None or (str(form), str(number)) in variants:
            continue
        width, height = SIZES.get(form, (None, None))
        path = _path(item)
        if width and path is not None:
            stem, extension = _split(path)
            path = f"{stem}-{number}-{width}-{height}{extension}"
        else:
            path = None
        variants[str(form), str(number)] = {
            "formatId": form, "formatPictureId": number, "width": width, "height": height, "path": path,
        }  # fmt: skip
    path = _path(main)
    return (
        picture, str(uuid.uuid5(NAMESPACE, str(picture))), path,
        TYPES.get(_split(path)[1].lower() if path else "", "image/jpeg"),
        description, main.get("agencyId"), None, None, sized.get("originalWidth"), sized.get("originalHeight"), [], [],
        "MEDIA", "migration", exported, exported, [variants[key] for key in sorted(variants)],
    )  # fmt: skip
