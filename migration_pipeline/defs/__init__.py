"""The Dagster layer: assets, partitions and resources of each plan. Thin; the work is the engine's."""
