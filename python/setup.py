# SPDX-License-Identifier: BSD-3-Clause
"""Builds the library with CMake (python/native) and tags the wheel: any Python 3, this platform.

MOE8_CUDA=ON or OFF asks for the CUDA kernels or for none; by default they are built where nvcc is found.
MOE8_NATIVE_BUILD names a build folder to use, so that a second wheel is made in seconds."""
import os
import pathlib
import re
import shutil
import subprocess

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
LIBRARY = "libmoe8_native.so"


def version():
    text = (HERE.parent / "CMakeLists.txt").read_text(encoding="utf-8")
    return re.search(r"project\(moe8 VERSION ([0-9.]+)", text).group(1)


def nvcc():
    return shutil.which("nvcc") or next(map(str, pathlib.Path("/usr/local/cuda/bin").glob("nvcc")), None)


def build_library(temporary):
    folder = pathlib.Path(os.environ.get("MOE8_NATIVE_BUILD") or temporary / "native").resolve()
    compiler = nvcc()
    cuda = os.environ.get("MOE8_CUDA", "ON" if compiler else "OFF")
    if compiler:
        os.environ.setdefault("CUDACXX", compiler)
    configure = ["cmake", "-S", str(HERE / "native"), "-B", str(folder), f"-DMOE8_CUDA={cuda}",
                 f"-DMOE8_WERROR={'ON' if os.environ.get('CI') else 'OFF'}"]
    if shutil.which("ninja") and not (folder / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", str(folder), "--parallel"], check=True)
    return folder / LIBRARY


def newest_glibc(library):
    """The tag of the oldest glibc that has every symbol which the library asks for."""
    text = subprocess.run(["objdump", "-T", str(library)], capture_output=True, text=True, check=True).stdout
    versions = [tuple(map(int, v)) for v in re.findall(r"GLIBC_(\d+)\.(\d+)", text)]
    return "manylinux_{}_{}".format(*max(versions + [(2, 28)]))


class BuildWithLibrary(build_py):
    def run(self):
        super().run()
        library = build_library(pathlib.Path(self.get_finalized_command("build").build_temp))
        target = HERE / "moe8" / LIBRARY if self.editable_mode else pathlib.Path(self.build_lib) / "moe8" / LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, target)


class PlatformWheel(bdist_wheel):
    """py3-none-manylinux_2_34_x86_64: the library knows neither Python nor torch."""

    def get_tag(self):
        machine = super().get_tag()[2].rpartition("linux_")[2]
        library = pathlib.Path(self.get_finalized_command("build_py").build_lib) / "moe8" / LIBRARY
        return "py3", "none", f"{newest_glibc(library)}_{machine}"


class WithLibrary(Distribution):
    def has_ext_modules(self):
        return True


setup(version=version(), distclass=WithLibrary, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
