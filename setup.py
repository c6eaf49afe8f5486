# SPDX-License-Identifier: Apache-2.0
"""Package layout and native extension of rzero (metadata lives in pyproject.toml).

The extension is optional: without a C++ compiler the install succeeds and the torch reference kernels are
used.
"""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

ROOMS = {"rzero": "python/rzero", "rzero.engine": "engine", "rzero.kernels": "kernels"}

# Vector code, compiled once per instruction set into a namespace of its own; the CPU decides at import.
KERNELS = (
    "adamw",
    "attention",
    "attention_backward",
    "linear",
    "linear_logprob",
    "lora",
    "rmsnorm",
    "rope",
    "sample",
    "swiglu",
)
# The rest, compiled once for every CPU of the architecture.
BINDINGS = (
    "adamw_bind",
    "attention_bind",
    "bleu_bind",
    "kv_write_bind",
    "linear_bind",
    "linear_logprob_bind",
    "lora_bind",
    "module",
    "policy_loss_bind",
    "rmsnorm_bind",
    "rope_bind",
    "sample_bind",
    "swiglu_bind",
)

INSTRUCTION_SETS = {"baseline": ()}
if platform.machine() in ("x86_64", "AMD64"):
    avx2 = ("-mavx2", "-mfma", "-mf16c")
    INSTRUCTION_SETS["avx2"] = avx2
    INSTRUCTION_SETS["avx512"] = (
        *avx2,
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    )

# No -ffast-math and no fusing by the compiler: the order and rounding of every sum is part of the contract.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-g0",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
)
WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi")


class BuildNative(build_ext):
    """Compiles the sources side by side, per instruction set, and goes on without the extension if that
    fails."""

    def build_extension(self, ext):
        try:
            self._compile_and_link(ext)
        except (CCompilerError, ExecError, PlatformError, ImportError, OSError) as error:
            reason = str(error).splitlines()[0]
            print(
                f"rzero: no native kernels ({reason}); the slower torch reference kernels will be used",
                flush=True,
            )

    def _compile_and_link(self, ext):
        import pybind11

        include = [*self.compiler.include_dirs, pybind11.get_include(), "csrc"]
        newest_header = max(Path(header).stat().st_mtime for header in ext.depends)

        def compile_one(job):
            stem, isa, flags = job
            source, folder = f"csrc/{stem}.cpp", str(Path(self.build_temp) / isa)
            [target] = self.compiler.object_filenames([source], output_dir=folder)
            newest = max(newest_header, Path(source).stat().st_mtime, Path("setup.py").stat().st_mtime)
            if self.force or not Path(target).exists() or Path(target).stat().st_mtime < newest:
                self.compiler.compile(
                    [source],
                    output_dir=folder,
                    macros=[("RZERO_ISA", isa)],
                    include_dirs=include,
                    extra_postargs=[*FLAGS, *WARNINGS, *flags],
                )
            return target

        jobs = [(stem, "baseline", ()) for stem in BINDINGS]
        jobs += [(stem, isa, flags) for stem in KERNELS for isa, flags in INSTRUCTION_SETS.items()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, jobs))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=["-fopenmp"],
            target_lang="c++",
        )

    def copy_extensions_to_source(self):
        # A running process may have the old file mapped: it keeps it when the name is given to a new file.
        for ext in self.extensions:
            built, target = Path(self.get_ext_fullpath(ext.name)), Path(self._inplace_path(ext))
            if built.exists():
                target.unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def _inplace_path(self, ext):
        package, _, _ = ext.name.rpartition(".")
        folder = self.get_finalized_command("build_py").get_package_dir(package)
        return Path(folder) / Path(self.get_ext_filename(ext.name)).name


SOURCES = [f"csrc/{stem}.cpp" for stem in (*KERNELS, *BINDINGS)]
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))

setup(
    packages=[
        "rzero",
        *(f"rzero.{name}" for name in find_packages("python/rzero")),
        "rzero.engine",
        "rzero.kernels",
    ],
    package_dir=ROOMS,
    package_data={
        "rzero": [
            "py.typed",
            "presets/*.yaml",
            "models/**/*",
            "data/*.jsonl",
            "report/*.html",
            "report/*.css",
            "report/*.js",
        ]
    },
    ext_modules=[Extension("rzero._native", SOURCES, depends=HEADERS, language="c++", optional=True)],
    cmdclass={"build_ext": BuildNative},
)
