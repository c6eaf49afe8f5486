# SPDX-License-Identifier: Apache-2.0
"""Package layout of rzero (metadata lives in pyproject.toml)."""

from setuptools import find_packages, setup

ROOMS = {"rzero": "python/rzero", "rzero.engine": "engine", "rzero.kernels": "kernels"}

setup(
    packages=["rzero", *(f"rzero.{name}" for name in find_packages("python/rzero")), "rzero.engine", "rzero.kernels"],
    package_dir=ROOMS,
    package_data={"rzero": ["py.typed", "presets/*.yaml", "models/**/*", "data/*.jsonl", "report/*.html", "report/*.css", "report/*.js"]},
)
