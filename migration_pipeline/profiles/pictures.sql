-- The row of each picture, from all of its items. Paste it into psql to look at it.
--
-- Where items contradict each other the one with the lowest id decides, in the order of bytes: of arrays that begin
-- with the id, min() is the one of that item. Documents are put together as text and read as jsonb once a
-- picture, which takes half the time of jsonb's own functions; of two members of one name jsonb keeps the last.

SELECT id,
       -- RFC 9562: the first 16 bytes of the digest, with version 5 and variant 10.
       encode(set_byte(set_byte(digest, 6, get_byte(digest, 6) & 15 | 80), 8, get_byte(digest, 8) & 63 | 128),
              'hex')::uuid AS uuid,
       main[3] || main[4] AS path,
       CASE lower(main[4])
           WHEN '.png' THEN 'image/png'
           WHEN '.gif' THEN 'image/gif'
           ELSE 'image/jpeg'
       END AS "imageType",
       captions::jsonb AS description_i18n,
       main[5]::int AS "agencyId",
       NULL::float8 AS "focalPointX",
       NULL::float8 AS "focalPointY",
       sized[2]::int AS width,
       sized[3]::int AS height,
       '[]'::jsonb AS crops,
       '[]'::jsonb AS taxonomy,
       'MEDIA' AS type,
       'migration' AS "createdBy",
       exported_at AS "createdAt",
       exported_at AS "updatedAt",
       variants::jsonb AS variants
  FROM (
    SELECT picture_id AS id,
           -- Of what is landed, that is, of the exports in the plan; receipts of others may still be there.
           (SELECT max(export_time)
              FROM migration.slice JOIN migration.loaded_file USING (profile, export_id, file)
             WHERE profile = 'pictures' AND landed_at IS NOT NULL) AS exported_at,
           decode(min(uuid_digest COLLATE "C"), 'hex') AS digest,
           -- The item with format 85 comes before all others.
           min(ARRAY[CASE WHEN format_id = 85 THEN '0' ELSE '1' END, id, stem, extension, agency_id::text]
               COLLATE "C") AS main,
           min(ARRAY[id, original_width::text, original_height::text] COLLATE "C")
               FILTER (WHERE original_width IS NOT NULL AND original_height IS NOT NULL) AS sized,
           '{"en": ""' || coalesce(
               string_agg(', "' || language || '": ' || to_json(caption)::text, ''
                          ORDER BY id COLLATE "C" DESC, caption COLLATE "C" DESC)
               FILTER (WHERE language IS NOT NULL AND caption <> ''), '') || '}' AS captions,
           -- Members stand as jsonb sorts them, by length and name, which spares it the work.
           '[' || coalesce(
               string_agg('{"path": ' || coalesce(to_json(stem || '-' || format_picture || CASE format_id
                       WHEN 85 THEN '-2560-1440'
                       WHEN 72 THEN '-640-480'
                       WHEN 68 THEN '-310-310'
                   END || extension)::text, 'null') || CASE format_id
                       WHEN 85 THEN ', "width": 2560, "height": 1440, "formatId": 85, "formatPictureId": '
                       WHEN 72 THEN ', "width": 640, "height": 480, "formatId": 72, "formatPictureId": '
                       WHEN 68 THEN ', "width": 310, "height": 310, "formatId": 68, "formatPictureId": '
                       ELSE ', "width": null, "height": null, "formatId": ' || format || ', "formatPictureId": '
                   END || format_picture || '}', ', ' ORDER BY format, format_picture)
               FILTER (WHERE is_variant), '') || ']' AS variants
      FROM (
        SELECT i.*,
               -- Of the items of one variant the first says what it is.
               row_number() OVER (
                   PARTITION BY picture_id, format, format_picture
                   ORDER BY id COLLATE "C", stem COLLATE "C", extension COLLATE "C"
               ) = 1 AND format IS NOT NULL AND format_picture IS NOT NULL AS is_variant,
               CASE language_id
                   WHEN 0 THEN 'en' WHEN 1 THEN 'de' WHEN 3 THEN 'fr' WHEN 4 THEN 'it' WHEN 5 THEN 'nl'
                   WHEN 6 THEN 'es' WHEN 9 THEN 'tr' WHEN 11 THEN 'da' WHEN 13 THEN 'nb' WHEN 14 THEN 'pl'
                   WHEN 15 THEN 'ru' WHEN 16 THEN 'ro' WHEN 17 THEN 'hu'
               END AS language
          FROM (
            SELECT *, format_id::text COLLATE "C" AS format, format_picture_id::text COLLATE "C" AS format_picture
              FROM landing.picture_items
          ) AS i
      ) AS items
     GROUP BY picture_id
  ) AS pictures
