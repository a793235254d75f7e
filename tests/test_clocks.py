"""No test passes by its speed: what waits, waits for an event, and gives up on a hang alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
CLOCKS = ("monotonic", "perf_counter", "process_time", "thread_time", "time", "timeit")
WAITS = ("sleep", "timeout", "wait", "wait_for", "join", "result", "communicate", "get")
# Each says why speed cannot matter.
ALLOWED = {
    ("adapters_store/test_store.py", "time"): "a stamp lies between two readings",
    (
        "adaptermix/bench/test_load.py",
        "perf_counter",
    ): "an answer's stamp, which nothing compares",
    ("router_engine/client/test_supervision.py", "timeout"): "gives up on what never comes",
}


def waits_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Each reading of a clock, and each wait for a number of seconds that stands there."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        given = [one for one in node.args if name in WAITS] + [
            one.value for one in node.keywords if one.arg == "timeout"
        ]
        if name in CLOCKS or any(_is_number(one) for one in given):
            yield str(name), node.lineno


def _is_number(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, int | float)
        and not isinstance(node.value, bool)
        and node.value != 0
    )


def test_no_test_reads_a_clock_or_waits_for_a_time_of_its_own() -> None:
    found, used = [], set()
    for path in sorted(TESTS.rglob("*.py")):
        place = str(path.relative_to(TESTS))
        for name, line in waits_of(ast.parse(path.read_text(encoding="utf-8"))):
            used.add((place, name))
            if (place, name) not in ALLOWED:
                found.append(f"{place}:{line}: {name}")
    assert not found, "wait for the event itself, at most HANG_SECONDS (tests/support/waiting.py)"
    assert used == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("time.sleep(0.1)", ["sleep"]),
        ("started = perf_counter()", ["perf_counter"]),
        ("subprocess.run(command, timeout=30)", ["run"]),
        ("process.wait(10)", ["wait"]),
        ("future.result(timeout=5.0)", ["result"]),
        ("await asyncio.wait_for(task, 3)", ["wait_for"]),
        ("await asyncio.sleep(0)", []),
        ("process.wait(HANG_SECONDS)", []),
        ("subprocess.run(command, timeout=HANG_SECONDS)", []),
        ("settings.get('a', True)", []),
    ],
)
def test_what_counts(source: str, found: list[str]) -> None:
    tree = ast.parse(f"async def one():\n    {source}\n")
    assert [name for name, _ in waits_of(tree)] == found
