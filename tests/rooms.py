"""The plan of the house: rooms, floors and the arrows between them, read from the imports.

A room is a folder of a package (of the kernel too: `service/decoding/search`), or a module at its
root. `FLOORS` says what lies above what. An arrow goes from the room that imports to the one that
is imported: never up, never past the `__init__` of another room. `make rooms` prints the plan.
Tests compare the packages and the picture in docs/structure.md with it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_FOLDERS = 10
MOST_ROOT_MODULES = 10  # the `__init__` is one of them
MOST_FILES = 12  # of a folder
MOST_ARROWS = 60

# Top floor first; rooms of one floor do not import each other.
FLOORS: dict[str, tuple[str, ...]] = {
    "service": (
        "__main__ demo",
        "seed http",
        "lifecycle",
        "recommending",
        "settings loading",
        "histories batching bundles",
        "schemas telemetry",
        "decoding",
        "errors tasks page supervisor",
    ),
    "service.decoding": (
        "decoder",
        "search",
        "network",
        "catalogue job",
        "loops schedule",
        "arrays",
    ),
    "training": (
        "__main__",
        "comparison",
        "pipeline",
        "bundling",
        "baselines fitting",
        "evaluation families",
        "codebooks",
        "data",
        "preset",
        "stages",
        "config",
        "errors printing",
    ),
}


@dataclass(frozen=True)
class Import:
    """What a module imports: `from source import name`, or `import source` with an empty name."""

    module: str
    source: str
    name: str

    def __str__(self) -> str:
        return f"{self.module} imports {self.name or 'it'} from {self.source}"


@dataclass(frozen=True)
class Plan:
    """The rooms of one package, by name relative to it, and what they import of each other."""

    package: str
    root_modules: tuple[str, ...]
    folders: dict[str, int]  # Python files of every folder in it, however deep
    arrows: dict[tuple[str, str], tuple[Import, ...]]

    @property
    def rooms(self) -> list[str]:
        """Modules at the root, except the `__init__`, and folders of the first level."""
        top = [folder for folder in self.folders if "." not in folder]
        return sorted({*self.root_modules, *top} - {"__init__"})

    def upward(self) -> list[str]:
        """Arrows that go up, or along a floor; rooms without a floor."""
        floor = {
            room: number
            for number, rooms in enumerate(FLOORS[self.package])
            for room in rooms.split()
        }
        found = [f"{room} has no floor" for room in self.rooms if room not in floor]
        for (room, other), imports in self.arrows.items():
            if floor.get(room, 0) >= floor.get(other, len(floor)):
                found.append(f"{room} -> {other}: {imports[0]}")
        return found

    def past_the_door(self) -> list[str]:
        """Imports of another room's inside. A module at the root is its own door."""
        return [
            str(one)
            for (_, other), imports in self.arrows.items()
            if other in self.folders
            for one in imports
            if not is_through_door(one, f"{self.package}.{other}")
        ]


def is_through_door(one: Import, room: str) -> bool:
    """Whether an import takes what the room's `__init__` exports.

    The kernel's rooms have doors of their own: other packages may use these too.
    """
    if f"{one.source}.{one.name}" == room:  # the room itself
        return True
    if one.source == room:
        return one.name in exported(room)
    if room == "service.decoding":
        parts = one.source.split(".")
        return len(parts) == 3 and one.name in exported(one.source)
    return False


def exported(room: str) -> set[str]:
    """The names in `__all__` of a room's `__init__`; a module in its place exports all it has."""
    path = ROOT / room.replace(".", "/") / "__init__.py"
    if not path.exists():
        module = ast.parse(path.parent.with_suffix(".py").read_text())
        return {node.id for node in ast.walk(module) if isinstance(node, ast.Name)} | {
            node.name
            for node in module.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every absolute import of a module, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (Import(module, node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (Import(module, alias.name, "") for alias in node.names)


def room_of(package: str, dotted: str) -> str | None:
    """The room that a dotted name is in; None outside the package, or for the package itself."""
    if not dotted.startswith(package + "."):
        return None
    return dotted.removeprefix(package + ".").partition(".")[0]


def plan_of(package: str) -> Plan:
    """The plan of a package, read from its files."""
    base = ROOT / package.replace(".", "/")
    modules = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(base.rglob("*.py"))
    }
    names = {name.removesuffix(".__init__") for name in modules.values()}
    arrows: dict[tuple[str, str], list[Import]] = defaultdict(list)
    folders: dict[str, int] = defaultdict(int)
    for path, name in modules.items():
        if path.parent != base:
            folders[".".join(path.parent.relative_to(base).parts)] += 1
        room = room_of(package, name)
        for one in imports_of(name, path.read_text()):
            whole = f"{one.source}.{one.name}"
            other = room_of(package, whole if whole in names else one.source)
            if room not in (None, "__init__", other) and other is not None:
                arrows[str(room), other].append(one)
    return Plan(
        package,
        tuple(path.stem for path in modules if path.parent == base),
        dict(folders),
        {arrow: tuple(imports) for arrow, imports in arrows.items()},
    )


def too_much(plan: Plan) -> list[str]:
    """Where a package is too large for a reader to remember."""
    top = [folder for folder in plan.folders if "." not in folder]
    found = []
    if len(plan.root_modules) > MOST_ROOT_MODULES:
        found.append(f"{len(plan.root_modules)} modules at the root of {plan.package}")
    if len(top) > MOST_FOLDERS:
        found.append(f"{len(top)} folders in {plan.package}")
    if len(plan.arrows) > MOST_ARROWS:
        found.append(f"{len(plan.arrows)} arrows between the rooms of {plan.package}")
    found += [
        f"{files} files in {plan.package}.{folder}"
        for folder, files in plan.folders.items()
        if files > MOST_FILES
    ]
    return found


def faults(plan: Plan) -> list[str]:
    """Everything that is wrong with a plan; empty for a good one."""
    return [*too_much(plan), *plan.upward(), *plan.past_the_door()]


def picture(plan: Plan) -> str:
    """The rooms as a Mermaid flowchart, without arrows that follow from others."""
    below: dict[str, set[str]] = {room: set() for room in plan.rooms}
    for room, other in plan.arrows:
        below[room].add(other)

    def reached(room: str) -> set[str]:
        return below[room].union(*(reached(other) for other in below[room]))

    lines = ["```mermaid", "flowchart TD"]
    for floor in FLOORS[plan.package]:
        for room in sorted(floor.split()):
            follows = set().union(*(reached(other) for other in below[room]))
            lines += [f"    {room} --> {other}" for other in sorted(below[room] - follows)]
    return "\n".join([*lines, "```"]) + "\n"


def files_in_a_line(plan: Plan) -> str:
    """Every module with the first line of its docstring, by folder."""
    base = ROOT / plan.package.replace(".", "/")
    lines = []
    for folder in ["", *sorted(plan.folders)]:
        if plan.package == "service" and folder.partition(".")[0] == "decoding":
            continue  # the kernel has a list of its own
        path = base.joinpath(*folder.split(".")) if folder else base
        lines += [f"**`{path.relative_to(ROOT)}`**", ""]
        for module in sorted(path.glob("*.py")):
            said = ast.get_docstring(ast.parse(module.read_text())) or ""
            first = " ".join(said.partition("\n\n")[0].split())
            if module.stem != "__init__":
                lines.append(f"- `{module.name}`: {first}")
        lines.append("")
    return "\n".join(lines)


def described(plan: Plan) -> Iterable[str]:
    """A plan as lines of text, top floor first."""
    top = [folder for folder in plan.folders if "." not in folder]
    yield (
        f"{plan.package}: {len(plan.root_modules)} modules at its root, {len(top)} folders, "
        f"{len(plan.arrows)} arrows between rooms, {len(plan.upward())} of them up"
    )
    for floor in FLOORS[plan.package]:
        for room in floor.split():
            below = sorted(other for one, other in plan.arrows if one == room)
            yield f"  {room:14} -> {', '.join(below) or '-'}"


if __name__ == "__main__":
    for name in FLOORS:
        plan = plan_of(name)
        print(*described(plan), *faults(plan), "", sep="\n")
