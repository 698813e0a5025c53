"""The one thing that pyproject.toml cannot say: the extension is built by cffi, for the stable ABI."""

import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
    sys.exit("shmq: no C compiler found; on Debian or Ubuntu: apt-get install gcc libc6-dev")
if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
    sys.exit("shmq: Python.h not found; on Debian or Ubuntu: apt-get install python3-dev")

setup(cffi_modules=["shmq/_build.py:ffibuilder"])
