# The one door.  `make demo` and `make test` do all their set-up themselves.
PYTHON ?= python3
# Tests of torch tensors run where torch is installed: make test TORCH=torch
TORCH ?=
VENV := .venv
PY := $(VENV)/bin/python
CFLAGS_CHECK := -std=c11 -O2 -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror -fvisibility=hidden
C_FILES := $(wildcard csrc/*.c)

# The tests start hundreds of interpreters: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test mutants soak crash model aarch64 check asan tsan bench clean tools

demo: $(VENV)/built
	$(PY) -m shmq demo

test: $(VENV)/built
	$(if $(TORCH),$(PY) -m pip install -q $(TORCH))
	$(PY) -m pytest -q -n 2 --dist worksteal tests

mutants: $(VENV)/built
	SHMQ_MUTANTS=all $(PY) -m pytest -q -n 2 --dist worksteal tests/test_c_core.py tests/test_crash.py tests/test_crash_parts.py -k seeded_bug

soak: $(VENV)/built
	HYPOTHESIS_PROFILE=soak $(PY) -m pytest -q tests/test_model.py tests/test_c_core.py tests/test_corruption.py tests/test_takeover.py --timeout=3600
	$(PY) tests/crash soak --kills 20000

crash: $(VENV)/built
	$(PY) tests/crash

model: $(VENV)/built
	$(PY) tests/crash/model.py

aarch64: $(VENV)/built
	$(PY) tests/aarch64.py

check: $(VENV)/built
	$(PY) -m pip install -q -e '.[check]'
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror csrc/*.[ch] shmq/*.h tests/c/*.[ch] tests/crash/*.[ch] examples/*.c
	for f in $(C_FILES); do cc $(CFLAGS_CHECK) -c $$f -o /dev/null || exit 1; done

asan: $(VENV)/built
	$(PY) tests/sanitize.py asan

tsan: $(VENV)/built
	$(PY) tests/sanitize.py tsan

bench: $(VENV)/built
	$(PY) -m pip install -q -e '.[bench]'
	$(PY) -m bench

clean:
	rm -rf build dist *.egg-info shmq/*.so $(VENV)

# One clear line where something is missing, before pip prints a page.
tools:
	@command -v cc >/dev/null || { echo "shmq: no C compiler; on Debian or Ubuntu: apt-get install gcc libc6-dev" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "shmq: no $(PYTHON); on Debian or Ubuntu: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "shmq: needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "shmq: no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "shmq: Python.h not found; on Debian or Ubuntu: apt-get install python3-dev" >&2; exit 1; }

$(VENV)/bin/python: | tools
	$(PYTHON) -m venv $(VENV)

$(VENV)/built: pyproject.toml setup.py shmq/_build.py $(wildcard shmq/*.h) $(C_FILES) $(wildcard csrc/*.h) | $(VENV)/bin/python
	$(PY) -m pip install -q -e '.[test]'
	touch $@
