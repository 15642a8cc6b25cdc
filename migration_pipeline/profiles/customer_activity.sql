-- What each customer did, from all events of all files. Paste it into psql to look at it.
SELECT customer_id,
       min(first_event_at) AS first_event_at,
       max(last_event_at) AS last_event_at,
       sum(events) AS events,
       jsonb_object_agg(kind, events) AS events_by_kind
  FROM (SELECT customer_id,
               kind,
               min(at) AS first_event_at,
               max(at) AS last_event_at,
               count(*) AS events
          FROM landing.shop_events
         GROUP BY customer_id, kind) AS kinds
 GROUP BY customer_id
