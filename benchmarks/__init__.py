"""Benchmarks: this project beside the usual script, dlt, and the floor that no pure reading and COPY goes below."""
