"""The house's own rules: who may call whom, what is documented, how tests wait.

Each rule is a function of source text, so that it can be shown breaking (the tests at the end).
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmq

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "shmq"
TESTS = ROOT / "tests"

# ---- C: a file calls only files on floors below its own ----


def strip_c(text: str) -> str:
    """Without comments and string literals."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


def floors_of(core_h: str) -> dict[str, int]:
    """File -> floor, from the list at the head of core.h; files on one line share a floor."""
    lines = re.findall(r"^ \*     (\S.*)$", core_h.split("*/")[0], flags=re.MULTILINE)
    stacked = [names for line in lines if (names := re.findall(r"\b(\w+\.c)\b", line))]
    return {name: floor for floor, names in enumerate(reversed(stacked)) for name in names}


def groups_of(core_h: str) -> dict[str, str]:
    """Function -> the file that core.h says it belongs to."""
    parts = re.split(r"/\* ---- (\w+\.c) ---- \*/", core_h)
    groups = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        body = re.sub(r"^typedef .*?;", "", strip_c(body), flags=re.MULTILINE | re.DOTALL)
        for function in re.findall(r"\b(shmq_\w+)\s*\([^()]*\)\s*[;{]", body):
            groups.setdefault(function, name)
    return groups


def definitions_in(source: str) -> set[str]:
    """External functions that a .c file defines: they start in the first column."""
    found = re.findall(
        r"^(?!static\b)[A-Za-z][\w \t*]*?\b(shmq_\w+)\s*\([^;{]*\)\s*\{", strip_c(source), re.MULTILINE
    )
    return set(found)


def calls_in(source: str) -> set[str]:
    return set(re.findall(r"\b(shmq_\w+)\s*\(", strip_c(source)))


def calls_upward(sources: dict[str, str], core_h: str) -> Iterator[str]:
    floors = floors_of(core_h)
    homes = groups_of(core_h)
    for name, source in sources.items():
        homes |= dict.fromkeys(definitions_in(source), name)
    for name, source in sources.items():
        for function in sorted(calls_in(source)):
            home = homes.get(function, name)
            if home != name and floors[home] >= floors[name]:
                yield f"{name} (floor {floors[name]}) calls {function} of {home} (floor {floors[home]})"


@pytest.fixture(scope="module")
def core_h() -> str:
    return (CSRC / "core.h").read_text()


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(CSRC.glob("*.c"))}


def test_every_c_file_has_a_floor(core_h: str, sources: dict[str, str]) -> None:
    assert set(floors_of(core_h)) == set(sources)


def test_c_files_call_only_what_is_below_them(core_h: str, sources: dict[str, str]) -> None:
    assert list(calls_upward(sources, core_h)) == []


def test_prototypes_stand_with_the_file_that_defines_them(core_h: str, sources: dict[str, str]) -> None:
    defined = {function: name for name, source in sources.items() for function in definitions_in(source)}
    inline = set(re.findall(r"^static inline [\w *]*?\b(shmq_\w+)\(", core_h, flags=re.MULTILINE))
    groups = groups_of(core_h)
    wrong = {
        f: (home, defined.get(f)) for f, home in groups.items() if f not in inline and defined.get(f) != home
    }
    assert not wrong
    assert len(groups) > 30, "the groups of core.h are not found any more"


def test_every_external_function_is_declared(core_h: str, sources: dict[str, str]) -> None:
    public = calls_in((CSRC / "shmq.h").read_text())
    defined = {function for source in sources.values() for function in definitions_in(source)}
    assert defined - public - set(groups_of(core_h)) == set()


def test_public_functions_are_all_defined(sources: dict[str, str]) -> None:
    public = (CSRC / "shmq.h").read_text()
    prototypes = set(re.findall(r"^\w[\w ]*\**(shmq_\w+)\(", strip_c(public), flags=re.MULTILINE))
    defined = {function for source in sources.values() for function in definitions_in(source)}
    assert prototypes <= defined
    assert len(prototypes) > 20


def test_headers_point_one_way() -> None:
    allowed = {
        "atomics.h": set(),
        "layout.h": {"atomics.h"},
        "shmq.h": set(),
        "slots.h": {"layout.h"},
        "core.h": {"layout.h", "shmq.h", "slots.h"},
    }
    for path in CSRC.glob("*.h"):
        included = set(re.findall(r'^#include "([^"]+)"', path.read_text(), flags=re.MULTILINE))
        assert included <= allowed[path.name], path.name


@pytest.mark.parametrize("name", ["spsc.c", "mpmc.c", "topic.c", "arena.c", "keys.c"])
def test_the_structures_do_not_wait(name: str, sources: dict[str, str]) -> None:
    text = strip_c(sources[name])
    assert not re.findall(r"eventcount|futex|nanosleep|shmq_now_ns|#include <(?:time|pthread|unistd)", text)


# ---- Python: imports point down ----

FLOORS = [
    ["errors", "clock"],
    ["limits", "segment"],
    ["tensor"],
    ["codec"],
    ["recorder"],
    ["stats"],
    ["loan"],
    ["handle"],
    ["producer", "consumer", "deaths"],
    ["doorbell"],
    ["delivery"],
    ["queue", "topic"],
    ["aio"],
    ["faults", "protocol"],
    ["callers", "calls"],
    ["jobs"],
    ["rpc"],
    ["aio_rpc"],
    ["__init__"],
    ["doctor"],
    ["cli"],
    ["__main__"],
]
WITHIN_A_FLOOR = {("segment", "limits")}
OUTSIDE = {"_core", "_build"}  # the extension, and its builder that is never imported


def module_level_imports(tree: ast.Module) -> Iterator[str]:
    """Modules of this package that it imports when it is loaded: not under TYPE_CHECKING or in functions."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                pending += node.body
            pending += node.orelse
        elif isinstance(node, (ast.Try, ast.With, ast.ClassDef)):
            pending += node.body
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1 or module.split(".")[0] == "shmq":
                inner = module.removeprefix("shmq").lstrip(".") if node.level == 0 else module
                yield from [inner.split(".")[0]] if inner else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "shmq":
                    yield alias.name.split(".")[1] if "." in alias.name else "__init__"


def imports_upward(modules: dict[str, str]) -> Iterator[str]:
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    for name, source in modules.items():
        for imported in module_level_imports(ast.parse(source)):
            if imported in OUTSIDE or imported == name or (name, imported) in WITHIN_A_FLOOR:
                continue
            if imported not in floors:  # a name of the package itself, e.g. "from shmq import Queue"
                imported = "__init__"
            if floors[imported] >= floors[name]:
                yield f"{name} imports {imported}"


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    found = {path.stem: path.read_text() for path in sorted(PACKAGE.glob("*.py"))}
    return {name: source for name, source in found.items() if name not in OUTSIDE}


def test_every_module_has_a_floor(modules: dict[str, str]) -> None:
    assert {name for names in FLOORS for name in names} >= set(modules)


def test_modules_import_only_what_is_below_them(modules: dict[str, str]) -> None:
    assert list(imports_upward(modules)) == []


def test_nothing_falls_back_to_code_from_the_wire(modules: dict[str, str]) -> None:
    """pickle is loaded in one place, which asks first; eval and exec nowhere."""
    for name, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "marshal.loads"}, name
                if called in {"pickle.loads", "pickle.load", "pickle.Unpickler"}:
                    assert name == "codec"


# ---- names ----


def public_names() -> Iterator[tuple[str, object]]:
    for name in shmq.__all__:
        found = getattr(shmq, name)
        yield name, found
        if inspect.isclass(found):
            for attribute, value in vars(found).items():
                is_code = inspect.isfunction(value) or isinstance(
                    value, (property, classmethod, staticmethod)
                )
                if not attribute.startswith("_") and is_code:
                    yield f"{name}.{attribute}", getattr(value, "__func__", value)


@pytest.mark.parametrize("named", list(public_names()), ids=lambda named: named[0])
def test_public_names_are_documented(named: tuple[str, object]) -> None:
    name, found = named
    text = inspect.getdoc(found) or ""
    generated = f"{name}("  # what @dataclass writes where nobody did
    assert len(text) > 10
    assert not text.startswith(generated)


def test_modules_are_documented(modules: dict[str, str]) -> None:
    for name, source in modules.items():
        text = ast.get_docstring(ast.parse(source))
        assert text, name
        assert text[0].isupper() or text[0] in "`\"'" or text.startswith("shmq"), name


def test_all_lists_what_is_public() -> None:
    assert sorted(shmq.__all__) == list(shmq.__all__)
    ours = {name for name, value in vars(shmq).items() if getattr(value, "__module__", "").startswith("shmq")}
    assert {name for name in ours if not name.startswith("_")} == set(shmq.__all__)


# ---- tests ----


def sleeps(tree: ast.Module) -> Iterator[int]:
    """Lines where a sleep stands for an event: "by now it will have happened".

    Allowed: the pause of a loop that asks again, an idle child that waits to be killed (PATIENCE), and a
    moment that is meant to vary (computed, not a constant)."""
    inside: list[tuple[ast.AST, bool]] = [(tree, False)]
    while inside:
        node, asks_again = inside.pop()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}:
            moment = node.args[0] if node.args else node
            varies = isinstance(moment, ast.BinOp) and any(isinstance(n, ast.Name) for n in ast.walk(moment))
            if not (asks_again or varies or ast.unparse(moment) == "PATIENCE"):
                yield node.lineno
        if isinstance(node, ast.While):
            asks_again = True
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            asks_again = False
        inside += [(child, asks_again) for child in ast.iter_child_nodes(node)]


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=lambda path: path.name)
def test_no_test_sleeps_instead_of_waiting(path: Path) -> None:
    assert list(sleeps(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("path", sorted((TESTS / "c").glob("*.[ch]")), ids=lambda path: path.name)
def test_no_c_test_sleeps(path: Path) -> None:
    assert not re.findall(r"\b(?:sleep|usleep|nanosleep)\s*\(", strip_c(path.read_text()))


# ---- the rules themselves ----

CORE_H = """/* core.h
 *
 *     top.c       a
 *     left.c | right.c     b
 *     low.c       c
 */
/* ---- low.c ---- */
int shmq_low(int a,
             int b);
static inline int shmq_low_inline(void) { return 0; }
/* ---- left.c ---- */
void shmq_left(void);
/* ---- right.c ---- */
void shmq_right(void);
/* ---- top.c ---- */
void shmq_top(void); /* calls shmq_nothing(1) */
"""


@pytest.mark.parametrize(
    ("name", "source", "complaints"),
    [
        ("top.c", "void shmq_top(void) { shmq_left(); shmq_low(1, 2); }", 0),
        ("left.c", "void shmq_left(void) { shmq_low(1, 2); shmq_low_inline(); }", 0),
        ("left.c", "void shmq_left(void) { shmq_right(); }", 1),
        ("low.c", "int shmq_low(int a,\n  int b) { shmq_top(); return shmq_left(); }", 2),
        ("low.c", "int shmq_low(int a, int b) { return 0; } /* shmq_top() */", 0),
        ("low.c", 'void f(void) { puts("shmq_top()"); }', 0),
    ],
)
def test_a_call_upward_is_seen(name: str, source: str, complaints: int) -> None:
    assert floors_of(CORE_H) == {"low.c": 0, "left.c": 1, "right.c": 1, "top.c": 2}
    assert len(list(calls_upward({name: source}, CORE_H))) == complaints


@pytest.mark.parametrize(
    ("name", "source", "complaints"),
    [
        ("codec", "from . import errors, tensor", 0),
        ("codec", "from . import queue", 1),
        ("codec", "from .queue import Queue", 1),
        ("codec", "import shmq.queue", 1),
        ("codec", "from shmq.queue import Queue", 1),
        ("errors", "from . import errors", 0),
        ("errors", "import shmq", 1),
        ("loan", "if TYPE_CHECKING:\n    from .queue import Queue", 0),
        ("loan", "if x:\n    pass\nelse:\n    from .queue import Queue", 1),
        ("loan", "def f():\n    from .queue import Queue", 0),
        ("limits", "from .segment import SHM", 1),
        ("segment", "from .limits import SHM", 0),
    ],
)
def test_an_import_upward_is_seen(name: str, source: str, complaints: int) -> None:
    assert len(list(imports_upward({name: source}))) == complaints


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        ("time.sleep(0.1)", 1),
        ("from time import sleep\nsleep(1)", 1),
        ("while not ready():\n    time.sleep(0.1)", 0),
        ("while True:\n    def f():\n        time.sleep(1)", 1),
        ("time.sleep(PATIENCE)", 0),
        ("time.sleep(rng.random() * 0.01)", 0),
        ("time.sleep(0.1 * 3)", 1),
        ("time.sleep(DELAY)", 1),
    ],
)
def test_a_sleep_is_seen(source: str, complaints: int) -> None:
    assert len(list(sleeps(ast.parse(source)))) == complaints
