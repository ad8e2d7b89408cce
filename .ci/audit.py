"""What `make audit` checks beside the programs that it calls: the types of public signatures, and licences. Run by the Python of the environment that is audited.

audit.py signatures STUBGEN MYPY    complete and sound annotations of every public function and class, by mypy on stubs
audit.py licences                   of every installed package and of the sample data; those that bind whoever ships them are named
"""

import ast
import importlib
import re
import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "infer", "train")
# What stubs, which have no bodies, cannot say: names that a body would bind, and what a decorator makes of a generator.
UNTOLD = ("attr-defined", "name-defined", "arg-type", "override", "assignment", "misc")
FREE = re.compile(
    r"\bapache|\bmit\b|\bbsd|\bisc\b|\bpsf\b|python software foundation|\bmpl|mozilla public|\bunlicense|\b0bsd|\bzlib|\bhpnd|\bcc0|public domain|\bcnri|blueoak|\bofl", re.IGNORECASE
)
SHARE_ALIKE = re.compile(r"\b(a?gpl|lgpl|general public|eupl|sspl|cc.by.(sa|nc))", re.IGNORECASE)
GRANTED = {}  # packages whose metadata names no licence, each with where it stands


def public_names() -> dict[str, set[str]]:
    """The public names by the modules that they come from."""
    found: dict[str, set[str]] = {}
    for room in ROOMS:
        for name, home in importlib.import_module(f"seodang.{room}")._HOMES.items():
            found.setdefault(f"seodang.{room}.{home}", set()).add(name)
    return found


def belongs(stub: ast.Module, line: int, home: str, names: set[str]) -> bool:
    """Whether a line of a module's stub is of one of the public names; not of a method whose signature is a library's, which it overrides."""
    top = next((node for node in stub.body if node.lineno <= line <= (node.end_lineno or 0)), None)
    if getattr(top, "name", None) not in names:
        return False
    inner = [node for node in getattr(top, "body", ()) if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)]
    if not isinstance(top, ast.ClassDef) or not inner:
        return True
    bases = getattr(importlib.import_module(home), top.name).__mro__
    return not any(inner[0].name in vars(base) for base in bases if base is not object and not base.__module__.startswith("seodang."))


def signatures(stubgen: str, mypy: str) -> int:
    """Have mypy look at stubs of all modules, and show what it says of those that are public."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "source").mkdir()
        Path(folder, "source", "seodang").symlink_to(ROOT)  # the repository is the package, whatever its folder is called
        where = {"PYTHONPATH": f"{folder}/source", "PATH": "/usr/bin:/bin"}
        subprocess.run([stubgen, "-q", "-o", folder, *(word for room in ROOMS for word in ("-p", f"seodang.{room}"))], check=True, env=where)
        settings = ["--no-site-packages", "--ignore-missing-imports", "--disallow-untyped-defs", "--no-error-summary", "--hide-error-context", "--cache-dir=/dev/null"]
        settings += [word for code in UNTOLD for word in ("--disable-error-code", code)]
        done = subprocess.run([mypy, *settings, *(f"{folder}/seodang/{room}" for room in ROOMS)], capture_output=True, text=True)
        if done.returncode > 1 or done.stderr:
            sys.exit(f"mypy: {done.stderr or done.stdout}")
        named = public_names()
        told, known = [], {place.resolve(): place for place in Path(folder, "seodang").rglob("*.pyi")}
        for line in done.stdout.splitlines():
            place, number, *_ = line.split(":", 2)
            home = place.removeprefix(f"{folder}/").removesuffix(".pyi").removesuffix("/__init__").replace("/", ".")
            if home in named and belongs(ast.parse(known[Path(place).resolve()].read_text(encoding="utf-8")), int(number), home, named[home]):
                told.append(line.removeprefix(f"{folder}/"))
    print(*told, f"signatures: {sum(map(len, named.values()))} public names, {len(told)} faults", sep="\n")
    return bool(told)


def licence(of: Distribution) -> str:
    """What a package says of its licence, in a line."""
    told = of.metadata
    named = [line.rpartition("::")[2].strip() for line in told.get_all("Classifier") or () if line.startswith("License ::") and "OSI Approved" != line.rpartition("::")[2].strip()]
    text = told.get("License-Expression") or ", ".join(named) or (told.get("License") or "").strip().partition("\n")[0]
    return GRANTED.get(told["Name"], text) or "not said"


def licences() -> int:
    """List the licences, by licence; fail for a package that says none, and for sample data without a word of its own."""
    found = sorted({(of.metadata["Name"], licence(of)) for of in distributions() if of.metadata["Name"]}, key=lambda each: each[0].lower())
    bound = [each for each in found if SHARE_ALIKE.search(each[1])]
    unclear = [each for each in found if each not in bound and not FREE.search(each[1])]
    print(f"licences: {len(found)} packages")
    print(*(f"  shares alike: {name}: {said}" for name, said in bound), *(f"  look at it: {name}: {said}" for name, said in unclear), sep="\n")
    samples = ROOT / "data" / "samples"
    notes = (samples / "README.md").read_text(encoding="utf-8")
    silent = [path.name for path in samples.glob("*.jsonl") if path.stem.removesuffix("_heldout") not in notes]
    print(f"licences: {len([*samples.glob('*.jsonl')])} files of sample data, of which data/samples/README.md says nothing of {silent or 'none'}")
    return bool(silent)


if __name__ == "__main__":
    sys.exit(signatures(*sys.argv[2:]) if sys.argv[1] == "signatures" else licences())
