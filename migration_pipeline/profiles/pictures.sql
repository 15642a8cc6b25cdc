-- The row of each picture, from all of its items. Paste it into psql to look at it.
--
-- Where items contradict each other the one with the lowest id decides, in the order of bytes. Lists are sorted
-- downwards by it, so that their last element is the one that counts; of two members of one name
-- jsonb_object_agg keeps the last, too. As they all have one order, the items are sorted for it only once.

SELECT id,
       -- RFC 9562: version 5, variant 10.
       overlay(overlay(digest PLACING '5' FROM 13)
               PLACING substr('89ab89ab89ab89ab', position(substr(digest, 17, 1) IN '0123456789abcdef'), 1)
               FROM 17)::uuid AS uuid,
       stem || extension AS path,
       CASE lower(extension)
           WHEN '.png' THEN 'image/png'
           WHEN '.gif' THEN 'image/gif'
           ELSE 'image/jpeg'
       END AS "imageType",
       '{"en": ""}'::jsonb || coalesce(captions, '{}') AS description_i18n,
       agency_id AS "agencyId",
       NULL::float8 AS "focalPointX",
       NULL::float8 AS "focalPointY",
       width,
       height,
       '[]'::jsonb AS crops,
       '[]'::jsonb AS taxonomy,
       'MEDIA' AS type,
       'migration' AS "createdBy",
       export_time AS "createdAt",
       export_time AS "updatedAt",
       coalesce(variants, '[]') AS variants
  FROM (
    SELECT picture_id AS id,
           min(uuid_digest COLLATE "C") AS digest,
           -- The main item is the one with format 85, or else any.
           CASE WHEN bool_or(is_main)
                THEN (array_agg(stem ORDER BY item_id DESC) FILTER (WHERE is_main))[count(*) FILTER (WHERE is_main)]
                ELSE (array_agg(stem ORDER BY item_id DESC))[count(*)] END AS stem,
           CASE WHEN bool_or(is_main)
                THEN (array_agg(extension ORDER BY item_id DESC) FILTER (WHERE is_main))[count(*) FILTER (WHERE is_main)]
                ELSE (array_agg(extension ORDER BY item_id DESC))[count(*)] END AS extension,
           CASE WHEN bool_or(is_main)
                THEN (array_agg(agency_id ORDER BY item_id DESC) FILTER (WHERE is_main))[count(*) FILTER (WHERE is_main)]
                ELSE (array_agg(agency_id ORDER BY item_id DESC))[count(*)] END AS agency_id,
           (array_agg(original_width ORDER BY item_id DESC) FILTER (WHERE is_sized))[count(*) FILTER (WHERE is_sized)] AS width,
           (array_agg(original_height ORDER BY item_id DESC) FILTER (WHERE is_sized))[count(*) FILTER (WHERE is_sized)] AS height,
           jsonb_object_agg(language, caption ORDER BY item_id DESC)
               FILTER (WHERE language IS NOT NULL AND caption <> '') AS captions,
           jsonb_agg(
               jsonb_build_object(
                   'formatId', format_id,
                   'formatPictureId', format_picture_id,
                   'width', w,
                   'height', h,
                   'path', stem || '-' || format_picture_id || '-' || w || '-' || h || extension
               ) ORDER BY format_id::text COLLATE "C", format_picture_id::text COLLATE "C"
           ) FILTER (WHERE is_variant) AS variants
      FROM (
        SELECT i.*,
               id COLLATE "C" AS item_id,
               coalesce(format_id = 85, false) AS is_main,
               original_width IS NOT NULL AND original_height IS NOT NULL AS is_sized,
               -- Of the items of one variant the first says what it is.
               format_id IS NOT NULL AND format_picture_id IS NOT NULL AND row_number() OVER (
                   PARTITION BY picture_id, format_id, format_picture_id ORDER BY id COLLATE "C"
               ) = 1 AS is_variant,
               CASE format_id WHEN 85 THEN 2560 WHEN 72 THEN 640 WHEN 68 THEN 310 END AS w,
               CASE format_id WHEN 85 THEN 1440 WHEN 72 THEN 480 WHEN 68 THEN 310 END AS h,
               CASE language_id
                   WHEN 0 THEN 'en' WHEN 1 THEN 'de' WHEN 3 THEN 'fr' WHEN 4 THEN 'it' WHEN 5 THEN 'nl'
                   WHEN 6 THEN 'es' WHEN 9 THEN 'tr' WHEN 11 THEN 'da' WHEN 13 THEN 'nb' WHEN 14 THEN 'pl'
                   WHEN 15 THEN 'ru' WHEN 16 THEN 'ro' WHEN 17 THEN 'hu'
               END AS language
          FROM landing.picture_items AS i
      ) AS items
     GROUP BY picture_id
  ) AS pictures
 CROSS JOIN (
    SELECT max(export_time) AS export_time FROM migration.loaded_file WHERE profile = 'pictures'
  ) AS export
