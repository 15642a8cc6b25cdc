"""The extensions in C: all works without them, only slower, so a machine without a compiler installs the package, too."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = (
    "migration_pipeline/sources/_lines.c",
    "migration_pipeline/sources/_ion.c",
    "migration_pipeline/targets/_rows.c",
)


ACCELERATOR = Path("migration_pipeline/accelerator.py")
"""Has the number of the interface, which an extension is built with."""


class BuildExtensions(build_ext):
    """Leaves nothing of an older source behind where an extension does not compile: setuptools would install that."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one; what was built of it before goes if that fails."""
        try:
            super().build_extension(ext)
        except Exception:
            self._built(ext).unlink(missing_ok=True)
            raise

    def copy_extensions_to_source(self) -> None:
        """Put what is built beside the source, for an editable installation."""
        for ext in self.extensions:
            if not self._built(ext).exists():
                Path(self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def _built(self, ext: Extension) -> Path:
        return Path(self.build_lib, self.get_ext_filename(ext.name))


setup(
    cmdclass={"build_ext": BuildExtensions},
    ext_modules=[
        Extension(
            source.removesuffix(".c").replace("/", "."),
            [source],
            depends=[str(ACCELERATOR), *map(str, sorted(Path(source).parent.glob("_*.h")))],
            define_macros=re.findall(r"^(INTERFACE) = (\d+)$", ACCELERATOR.read_text(), re.MULTILINE),
            extra_compile_args=["-O3"],
            optional=True,
        )
        for source in SOURCES
        if Path(source).exists()
    ],
)
