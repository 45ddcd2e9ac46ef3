"""The shape of the tree: who imports whom, how long files and functions are."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "halfmask"
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}

# Lowest first. A module imports its own package, its neighbors of the same set, and whatever stands lower.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "codes", "atomic", "progress", "written", "on_demand"}),
    frozenset({"task", "batch", "plugins", "recipe", "palette", "docstrings"}),
    frozenset({"losses", "views", "teaching", "models"}),
    frozenset({"method"}),
    frozenset({"methods"}),
    frozenset({"data"}),
    frozenset({"infer"}),
    frozenset({"run"}),
    frozenset({"importers", "report", "plan", "suggest", "app", "testing", "bench"}),
    frozenset({"demo", "compare"}),
    frozenset({"cli"}),
    frozenset({"__main__", "__init__"}),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NO_TRAINER = {"losses", "views", "teaching", "models", "method", "methods"}
ORACLES_NEED = {"torch", "numpy", "PIL", "jaxtyping"}
VAGUE = {"util", "utils", "misc", "helper", "helpers", "common"}

MIN_FILE_LINES, MAX_FILE_LINES = 50, 400
MAX_FUNCTION_LINES = 60  # of code: a signature that is a recipe's schema, and its docstring, do not count
MAX_PARAMETERS = 10
MAX_SCHEMA_KEYS = 15  # of constructors whose keyword-only arguments are the keys of a recipe
SCHEMAS = ("Method", "Encoder", "Decoder", "Dataset")
MAX_DEPTH = 2  # classes of ours above a class
# One command, one class, or one form of checkpoint each, which the line of its package leads to.
SHORT = {
    f"halfmask/{name}.py"
    for name in """__main__ task cli/bench cli/demo cli/doctor cli/page cli/report data/check/check data/datasets/levir
    data/datasets/whu importers/cct importers/dinov2 importers/efficientnet_lite importers/mit methods/supervised
    models/bottlenecks/_bottleneck models/bottlenecks/mapping models/decoders/last models/decoders/pool recipe/expected
    run/loop/eager run/loop/lightning_library teaching/dist""".split()
}

# What the docstring of a function may open with: plain verbs, so that its first line can be paraphrased at once.
VERBS = frozenset(
    """Add Advance Answer Append Apply Ask Assign Attend Average Begin Blend Blur Break Bring Build Call Change
    Check Choose Close Collect Combine Compare Compute Concatenate Connect Continue Convert Convolve Copy Count
    Create Crop Cut Decide Decode Delete Describe Divide Draw Drop Encode End Enqueue Estimate Evaluate Exclude
    Explain Export Fill Find Follow Fuse Group Hash Ignore Interpolate Intersect Invert Join Keep Label Lay Leave
    Link List Load Log Look Make Map Mark Measure Merge Mix Move Multiply Normalize Number Open Order Outline
    Overwrite Paint Pair Parse Pass Paste Perturb Place Pool Predict Prepare Print Project Put Raise Rank Read
    Record Refuse Release Remember Remove Rename Render Reorder Replace Report Resample Resize Resolve Restore
    Return Round Run Save Say Scale Score See Serve Set Share Show Shrink Silence Sort Split Spread Start Stop
    Stretch Sum Switch Take Teach Tell Trace Train Transform Treat Try Turn Undo Update Upsample Wait Walk Warn
    Watch Weigh Weight Wrap Write Yield""".split()
)
# Properties say what the value is instead; these words say nothing yet.
EMPTY_OPENINGS = {
    "All",
    "Changes",
    "How",
    "It",
    "Its",
    "No",
    "Of",
    "That",
    "The",
    "This",
    "Those",
    "What",
    "Where",
    "Why",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def home(path: Path) -> str:
    """Top-level module or package a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules imported anywhere in a file, except for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            # `from halfmask import plugins` imports halfmask.plugins
            base = node.module or ""
            yield from (f"{base}.{name.name}" for name in node.names) if base == "halfmask" else [base]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        else:
            yield from imports(node)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{relative(path)}:{node.lineno} {node.name}", node


def classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def base_names(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


def ancestors(name: str, known: dict[str, ast.ClassDef]) -> list[str]:
    """The longest line of classes of ours above a class, nearest first."""
    lines = [[base, *ancestors(base, known)] for base in base_names(known[name]) if base in known]
    return max(lines, key=len, default=[])


# --- who imports whom -----------------------------------------------------------------------------------------


def test_every_module_imports_only_what_stands_lower():
    unplaced = {home(path) for path in SOURCES} - LEVEL.keys()
    assert not unplaced, f"give these a place in LAYERS: {sorted(unplaced)}"
    wrong = [
        f"{relative(path)} imports {module}"
        for path, tree in SOURCES.items()
        for module in imports(tree)
        if module.startswith("halfmask.") and module != "halfmask.__version__"
        if LEVEL[module.split(".")[1]] > LEVEL[home(path)]
    ]
    assert wrong == []


def test_the_package_needs_no_textbook_forms_of_the_tests():
    wrong = [
        f"{relative(path)} imports {module}"
        for path, tree in SOURCES.items()
        for module in imports(tree)
        if module.split(".")[0] in {"tests", "benchmarks"}
    ]
    assert wrong == []


def test_the_engine_knows_no_network_of_a_method_by_its_name() -> None:
    """What a method calls its networks is its own business: others ask `predictors()` and its siblings."""
    named = [
        f"{relative(path)}:{node.lineno}"
        for path, tree in SOURCES.items()
        if home(path) not in {"methods", "testing"}
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"student", "teacher"}
    ]
    assert named == []


def module_of(path: Path) -> str:
    """Full name of the module in a file; a package is its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """Which module of ours imports which, inside functions too."""
    modules = {module_of(path) for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for path, tree in SOURCES.items():
        own = module_of(path)
        graph[own] = {module for module in imported_modules(tree, modules) if module in modules and module != own}
    return graph


def imported_modules(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """As `imports`, but `from package import module` is the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in modules else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        else:
            yield from imported_modules(node, modules)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Find nodes that lead back to themselves: what is left when leaves are taken away again and again."""
    left = dict(graph)
    while leaves := [node for node, targets in left.items() if not targets & left.keys()]:
        for leaf in leaves:
            del left[leaf]
    while roots := [node for node in left if not any(node in targets for targets in left.values())]:
        for root in roots:
            del left[root]
    return sorted(left)


def test_no_modules_import_one_another_in_a_circle():
    assert circle({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b"]
    assert circle(import_graph()) == []


def test_no_packages_import_one_another_in_a_circle():
    """Between neighbors; a package may hold what its own sub-packages share."""
    graph: dict[str, set[str]] = {}
    for module, targets in import_graph().items():
        package = module.rpartition(".")[0]
        graph.setdefault(package, set()).update(target.rpartition(".")[0] for target in targets)
    apart = {
        package: {
            target
            for target in targets
            if not target.startswith(package) and not package.startswith(target) and target != "halfmask"
        }
        for package, targets in graph.items()
        if package != "halfmask"
    }
    assert circle(apart) == []


def test_methods_and_their_parts_know_no_trainer():
    wrong = [
        f"{relative(path)} imports {module}"
        for path, tree in SOURCES.items()
        if home(path) in NO_TRAINER
        for module in imports(tree)
        if module.split(".")[0] in {"lightning", "pytorch_lightning", "accelerate"}
    ]
    assert wrong == []


def test_the_textbook_versions_need_torch_numpy_and_pillow_only():
    wrong = [
        f"{relative(path)} imports {module}"
        for path in (ROOT / "tests" / "oracles").glob("*.py")
        if path.name != "forms.py"
        for module in imports(ast.parse(path.read_text(encoding="utf-8")))
        if not module.startswith("tests.oracles")
        and module.split(".")[0] not in ORACLES_NEED | set(sys.stdlib_module_names)
    ]
    assert wrong == []


# --- names and sizes ------------------------------------------------------------------------------------------


def test_modules_are_named_after_an_idea():
    assert [relative(path) for path in SOURCES if path.stem.strip("_") in VAGUE or path.parent.name in VAGUE] == []


def test_files_fit_in_the_head():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}
    short = {path for path, lines in lengths.items() if lines < MIN_FILE_LINES and not path.endswith("__init__.py")}
    assert short - SHORT == set(), "join these with their neighbors"
    assert SHORT - short == set(), "these are long enough, or gone: they need no exemption"


def test_functions_fit_on_a_screen():
    def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        code = node.body[1:] if ast.get_docstring(node) is not None else node.body
        return node.end_lineno - code[0].lineno + 1 if code else 0

    assert {name: lines_of_code(node) for name, node in functions() if lines_of_code(node) > MAX_FUNCTION_LINES} == {}


def test_the_reading_order_of_a_package_names_its_modules():
    wrong = {}
    for path, tree in SOURCES.items():
        text = ast.get_docstring(tree) or ""
        if path.name != "__init__.py" or "eading order" not in text or home(path) == "importers":
            continue
        there = {module.stem for module in path.parent.glob("*.py") if module != path}
        there |= {folder.parent.name for folder in path.parent.glob("*/__init__.py")}
        if missing := {name for name in there if not re.search(rf"\b{name}\b", text)}:
            wrong[relative(path)] = missing
    assert wrong == {}


def test_docstrings_open_with_a_plain_verb():
    wrong = {}
    for name, node in functions():
        word = (ast.get_docstring(node) or "Return").split()[0].rstrip(".,:;")
        kinds = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
        if {"property", "cached_property"} & kinds:
            plain = word not in EMPTY_OPENINGS
        else:
            plain = word in VERBS or name.endswith(" _halfmask")  # the command line's own help names the program
        if not plain:
            wrong[name] = word
    assert wrong == {}


def test_functions_take_few_parameters():
    known = classes()
    wrong = {}
    for path, tree in SOURCES.items():
        for owner in ast.walk(tree):
            for node in ast.iter_child_nodes(owner):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                in_class = isinstance(owner, ast.ClassDef)
                bound = in_class and "staticmethod" not in map(ast.unparse, node.decorator_list)
                given, keys = len(node.args.posonlyargs + node.args.args) - bound, len(node.args.kwonlyargs)
                # Its own bases: two classes may share a name, as a method and the bottleneck it needs do.
                above = base_names(owner) if in_class and node.name == "__init__" else []
                schema = any({base, *(ancestors(base, known) if base in known else ())} & {*SCHEMAS} for base in above)
                count = keys if schema else given + keys
                if count > (MAX_SCHEMA_KEYS if schema else MAX_PARAMETERS):
                    wrong[f"{relative(path)}:{node.lineno} {node.name}"] = count
    assert wrong == {}


def test_classes_are_abstract_or_final():
    """A class that others derive from is a contract; behavior is shared by composition."""
    known = classes()
    families = {name for name in known if name.endswith("Error")} | {"Section"}  # exceptions; settings of pydantic

    def is_contract(node: ast.ClassDef) -> bool:
        text = ast.unparse(node)
        return "Protocol" in base_names(node) or "@abstractmethod" in text or "raise NotImplementedError" in text

    derived_from = {base for name in known for base in ancestors(name, known)[:1]}
    assert {name for name in derived_from - families if not is_contract(known[name])} == set()


def test_inheritance_is_shallow():
    known = classes()
    lines = {name: [name, *ancestors(name, known)] for name in known}
    assert [" < ".join(line) for line in lines.values() if len(line) - 1 > MAX_DEPTH] == []


def test_layers_name_existing_modules_once():
    assert len(LEVEL) == sum(len(names) for names in LAYERS)
    present = {home(path) for path in SOURCES}
    assert LEVEL.keys() == present


CORE = {"run", "infer", "data", "recipe", "models", "losses", "views", "teaching", "suggest", "method.py"}
# The baseline that a twin is, and the default of a recipe.
NAMED_ANYWHERE = {"supervised", "fixmatch"}


def named_in_code(tree: ast.AST) -> Iterator[str]:
    """Words of every text in the code, docstrings left out."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from re.findall(r"\w+", node.value)


def test_no_core_module_names_a_method():
    """What is special about a method is asked through the contract."""
    methods = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"} - NAMED_ANYWHERE
    assert {"multi_domain", "cct", "cam"} <= methods
    wrong = {
        f"{relative(path)}: {word}"
        for path, tree in SOURCES.items()
        if path.relative_to(PACKAGE).parts[0] in CORE
        if path.stem != "deeplabv3plus"  # its dialects are known by the papers whose code has them
        for word in named_in_code(tree)
        if word in methods
    }
    assert wrong == set()


def test_every_name_is_defined() -> None:
    """What ruff's F821 finds outside of strings: in strings it takes the axes of shapes for names."""
    asked = "check --isolated --select F821 --output-format json --exit-zero ."
    command = [sys.executable, "-m", "ruff", *asked.split()]
    found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    places = [(Path(one["filename"]), one["location"]["row"], one["location"]["column"]) for one in found]
    assert places  # ruff ran, and saw the shapes
    before = [path.read_text(encoding="utf-8").splitlines()[row - 1][: column - 1] for path, row, column in places]
    assert [one["message"] for one, text in zip(found, before, strict=True) if text.count('"') % 2 == 0] == []
