# SPDX-License-Identifier: Apache-2.0
"""Package layout and native extension of rzero (metadata lives in pyproject.toml).

The native extension is optional: without a C++ compiler the install succeeds and the torch reference
kernels are used. The CUDA extension is built where nvcc and an NVIDIA GPU are there, or with RZERO_CUDA=1,
and then it must succeed; RZERO_CUDA=0 leaves it out.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError, PlatformError

ROOMS = {"rzero": "python/rzero", "rzero.engine": "engine", "rzero.kernels": "kernels"}

# Vector code, compiled once per instruction set into a namespace of its own; the CPU decides at import.
KERNELS = (
    "adamw",
    "attention",
    "attention_backward",
    "linear",
    "linear_logprob",
    "lora",
    "policy_loss",
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
    avx512 = (
        *avx2,
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    )
    INSTRUCTION_SETS["avx512"] = avx512
    INSTRUCTION_SETS["avx512_bf16"] = (*avx512, "-mavx512bf16")

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

CUDA_SOURCES = (
    "csrc/cuda_device.cu",
    "csrc/cuda_module.cpp",
    "csrc/kv_write.cu",
    "csrc/paged_attention.cu",
    "csrc/sample.cu",
)
# Ampere, Hopper, Blackwell, and code that the driver translates for every other GPU from Ampere on.
CUDA_TARGETS = ("sm_80", "sm_90", "sm_100", "compute_80")
CUDA_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fmad=false",  # as above: nothing fused that the source does not fuse
    "-Xcompiler=-fPIC,-fvisibility=hidden",
)


def target_flags(nvcc):
    """The targets among CUDA_TARGETS that this nvcc knows: before CUDA 12.8 it has no Blackwell."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout
    # One too old for the option (before 11) fails on the targets, and says so.
    known = set(listed.split()) or set(CUDA_TARGETS)
    codes = [code for code in CUDA_TARGETS if code in known or code.startswith("compute")]
    return [f"-gencode=arch={code.replace('sm', 'compute')},code={code}" for code in codes]


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def is_cuda_asked():
    """True or False where RZERO_CUDA says so, None where the machine decides."""
    asked = os.environ.get("RZERO_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"RZERO_CUDA is {asked!r}; use 1 to build the CUDA kernels, 0 to leave them out")
    return {"": None, "0": False, "1": True}[asked]


def wants_cuda():
    asked = is_cuda_asked()
    has_gpu = any(Path("/proc/driver/nvidia/gpus").glob("*"))
    return (has_gpu and find_nvcc() is not None) if asked is None else asked


class BuildNative(build_ext):
    """Compiles the sources side by side, per instruction set, and goes on without the extension if that
    fails."""

    def build_extension(self, ext):
        try:
            if ext.name == "rzero._cuda":
                self._build_cuda(ext)
            else:
                self._compile_and_link(ext)
        except (CCompilerError, ExecError, PlatformError, ImportError, OSError) as error:
            reason = str(error).splitlines()[0]
            if not ext.optional:
                raise CompileError(f"{ext.name} was asked for and cannot be built: {reason}") from error
            if ext.name == "rzero._cuda":
                print(f"rzero: no CUDA kernels ({reason}); others will be used on a GPU", flush=True)
                return
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

    def _build_cuda(self, ext):
        import pybind11

        nvcc = find_nvcc()
        if nvcc is None:
            raise ExecError("nvcc is neither in CUDA_HOME/bin nor on the PATH")
        targets = target_flags(nvcc)
        # Objects of an nvcc that knew fewer targets are others.
        folder = Path(self.build_temp) / f"cuda-{len(targets)}"
        folder.mkdir(parents=True, exist_ok=True)
        include = [f"-I{path}" for path in (*self.compiler.include_dirs, pybind11.get_include(), "csrc")]
        newest_header = max(Path(header).stat().st_mtime for header in (*ext.depends, "setup.py"))

        flags = [*CUDA_FLAGS, *targets]

        def compile_one(source):
            target = folder / f"{Path(source).name}.o"
            newest = max(newest_header, Path(source).stat().st_mtime)
            if self.force or not target.exists() or target.stat().st_mtime < newest:
                self.spawn([nvcc, *flags, *include, "-c", source, "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # The runtime is linked statically: the file loads where there is none, and then says so.
        self.spawn([nvcc, "-shared", "--cudart=static", *objects, "-o", str(target)])

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
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h") if path.name != "cuda.h")
EXTENSIONS = [Extension("rzero._native", SOURCES, depends=HEADERS, language="c++", optional=True)]
if wants_cuda():
    cuda_headers = ["csrc/cuda.cuh", "csrc/cuda.h"]
    is_optional = not is_cuda_asked()
    EXTENSIONS.append(Extension("rzero._cuda", [*CUDA_SOURCES], depends=cuda_headers, optional=is_optional))

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
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildNative},
)
