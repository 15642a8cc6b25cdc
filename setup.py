"""The extensions in C: all works without them, only slower, so a machine without a compiler installs the package, too."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup

SOURCES = (
    "migration_pipeline/sources/_lines.c",
    "migration_pipeline/sources/_ion.c",
    "migration_pipeline/targets/_rows.c",
)

setup(
    ext_modules=[
        Extension(
            source.removesuffix(".c").replace("/", "."),
            [source],
            depends=[str(header) for header in sorted(Path(source).parent.glob("_*.h"))],
            extra_compile_args=["-O3"],
            optional=True,
        )
        for source in SOURCES
        if Path(source).exists()
    ]
)
