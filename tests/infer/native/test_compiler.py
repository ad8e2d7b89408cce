"""A C file becomes a library: compilers are scripts that write down how they were called, but where a real one says so."""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seodang.infer.runners.native import compiler as native
from seodang.infer.runners.native import library_cache
from seodang.infer.runners.native.compiler import NotBuilt, built, forget

REAL = {os.path.realpath(path): path for name in native.NAMES if (path := shutil.which(name))}
needs_a_compiler = pytest.mark.skipif(not REAL, reason="no C compiler is here")
PATH = os.environ["PATH"]
TEXT = """#include <math.h>
#include <pthread.h>
static void *work(void *x) { *(float *)x = sqrtf(*(float *)x); return 0; }
float root(float x) { pthread_t thread; pthread_create(&thread, 0, work, &x); pthread_join(thread, 0); return x; }
"""
WRITES = 'while [ "$1" != -o ]; do shift; done; printf library > "$2"'


@pytest.fixture
def source(tmp_path):
    (tmp_path / "sources").mkdir()
    path = tmp_path / "sources" / "root.c"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def cached(tmp_path):
    return tmp_path / "cache" / "seodang" / "native"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No compiler but those that the test makes, an empty cache, and temporary folders of the test's own."""
    for name in ("CC", "SEODANG_NATIVE_MARCH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("bin", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(native, "_held", {})


@pytest.fixture
def fake(tmp_path):
    """`fake(name, body)`: a compiler that notes its arguments, then does what the shell script says; returns how it was called, a list of words a call."""

    def make(name="cc", body=WRITES):
        notes, path = tmp_path / f"calls-{name}", tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\nprintf "%s\\t" "$@" >> "{notes}"; echo >> "{notes}"\n{body}\n', encoding="utf-8")
        path.chmod(0o755)
        return lambda: [line.split("\t")[:-1] for line in notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []

    return make


def loaded(path):
    function = ctypes.CDLL(str(path)).root
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    return function


@pytest.mark.parametrize("program", REAL.values())
def test_each_compiler_here_takes_the_flags_and_makes_a_library_that_computes(program, source, cached, monkeypatch, capfd):
    monkeypatch.setenv("PATH", PATH)
    monkeypatch.setenv("CC", program)
    path = built(source)
    assert path.parent == cached and loaded(path)(9.0) == 3.0
    assert capfd.readouterr() == ("", "")


def test_it_is_compiled_once_for_the_machine_and_not_with_fast_maths(source, cached, fake, tmp_path):
    calls = fake()
    path = built(source)
    assert path.read_bytes() == b"library" and cached.stat().st_mode & 0o777 == 0o700
    assert [built(source) for _ in range(3)] == [path] * 3
    [words] = calls()
    flags = {"-O3", "-std=c11", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared", "-pthread", "-march=native", "-lm"}
    assert flags | {str(source)} <= {*words}
    assert "-ffast-math" not in words
    assert not list((tmp_path / "temporary").iterdir())  # what was made on the way is gone


def test_another_source_header_machine_or_compiler_has_a_library_of_its_own(source, fake, monkeypatch):
    calls = fake()
    paths = [built(source)]
    source.write_text(TEXT + "\n", encoding="utf-8")
    paths.append(built(source))
    source.with_name("root.h").write_text("int more;", encoding="utf-8")
    paths.append(built(source))
    paths.append(built(source, "haswell"))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))
    paths.append(built(source))
    monkeypatch.setattr(native, "cpu", lambda: "another CPU")
    paths.append(built(source))
    fake(body=WRITES + " # updated")
    paths.append(built(source))
    assert len({*paths}) == len(paths) == len(calls()) == 7
    assert built(source) == paths[-1]


def test_march_is_the_argument_else_the_variable(source, fake, monkeypatch):
    calls = fake()
    monkeypatch.setenv("SEODANG_NATIVE_MARCH", "haswell")
    built(source)
    built(source, "znver4")
    assert [[word for word in words if word.startswith("-march")] for words in calls()] == [["-march=haswell"], ["-march=znver4"]]


def test_a_compiler_that_has_native_as_mcpu_or_not_at_all_is_asked_so(source, fake):
    refuses = 'case "$*" in *-m{}=native*) echo "error: unsupported argument \'native\' to option \'m{}=\'"; exit 1;; esac\n'
    calls = fake(body=refuses.format("arch", "arch") + refuses.format("cpu", "cpu") + WRITES)
    built(source)
    assert [[word for word in words if word.startswith("-m")] for words in calls()] == [["-march=native"], ["-mcpu=native"], []]
    with pytest.raises(NotBuilt, match="haswel1"):  # but what the user has named is not left out
        fake(body="echo \"error: bad value 'haswel1' for '-march='\"; exit 1")
        built(source, "haswel1")


def test_the_compiler_that_cc_names_is_taken_with_its_arguments_and_no_other(source, fake, monkeypatch):
    others, mine = fake(), fake("mine")
    monkeypatch.setenv("CC", "mine '-DNAME=a b' -m64")
    assert built(source).read_bytes() == b"library"
    assert mine()[0][:2] == ["-DNAME=a b", "-m64"]
    fake("mine", "echo 'mine: no space for a good mood' >&2; exit 3")
    with pytest.raises(NotBuilt, match=r"^\"mine '-DNAME=a b' -m64\", which CC names, cannot compile root.c: mine: no space for a good mood$"):
        built(source)
    for wrong, told in (("nothing-there -x", "no program 'nothing-there'"), ("'mine", "No closing quotation")):
        monkeypatch.setenv("CC", wrong)
        with pytest.raises(NotBuilt, match=f"{told}.*unset CC"):
            built(source)
    assert not others()


def test_without_a_compiler_it_says_how_to_have_one(source):
    with pytest.raises(NotBuilt, match=r"^no C compiler is there \(cc, clang, gcc\): install gcc or clang, or run pip install 'seodang\[native\]'$"):
        built(source)


def test_the_next_compiler_is_tried_and_if_all_fail_the_first_is_quoted(source, fake):
    first = fake("cc", "echo 'In file included from root.c:1:'; printf 'root.c:2: error: no\\033[1m such\\tthing\\nmore\\n' >&2; exit 1")
    second = fake("gcc", "exit 7")
    with pytest.raises(NotBuilt) as told:
        built(source)
    assert str(told.value) == "cc cannot compile root.c: root.c:2: error: no [1m such thing"
    assert len(first()) == len(second()) == 1  # an error of the source is no matter of -march
    third = fake("clang")
    path = built(source)
    assert built(source) == path and len(third()) == 1 and len(first()) == 2  # what cannot compile is not asked again where a library is cached


@pytest.mark.parametrize("body, told", [
    ('while [ "$1" != -o ]; do shift; done; : > "$2"', "it wrote no library"),
    ("exit 0", "it wrote no library"),
    ("exit 4", "it ended with status 4"),
    ("kill -9 $$", "it ended with status -9"),
])  # fmt: skip
def test_a_compiler_that_writes_nothing_has_failed(source, cached, fake, body, told):
    fake(body=body)
    with pytest.raises(NotBuilt, match=f"^cc cannot compile root.c: {told}$"):
        built(source)
    assert not list(cached.iterdir())


def test_a_file_that_is_no_program_has_failed(source, fake, tmp_path):
    fake()
    (tmp_path / "bin" / "cc").write_bytes(b"\x7fELF")
    with pytest.raises(NotBuilt, match="^cc cannot compile root.c: .*Exec format error"):
        built(source)


def runs(process):
    """Whether a process is there and not dead already, waiting for whoever adopted it to ask."""
    try:
        return Path("/proc", process, "stat").read_text(encoding="utf-8").split()[2] != "Z"
    except OSError:
        return False


def test_a_compiler_that_hangs_is_killed_with_what_it_started(source, fake, tmp_path):
    calls = fake(body=f"/bin/sleep 60 & echo $! > {tmp_path}/pid; wait")
    begun = time.monotonic()
    with pytest.raises(NotBuilt, match="^cc did not compile root.c within 0.3 seconds$"):
        built(source, limit=0.3)
    assert time.monotonic() - begun < 10 and len(calls()) == 1
    started = (tmp_path / "pid").read_text(encoding="utf-8").strip()
    while runs(started) and time.monotonic() < begun + 10:
        time.sleep(0.01)
    assert not runs(started)


def test_the_package_ziglang_is_the_last_to_be_asked(source, fake, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "ziglang")
    package = tmp_path / "site" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    program = "import os, sys\nassert sys.argv[1] == 'cc'\nopen(sys.argv[sys.argv.index('-o') + 1], 'w').write(os.environ['ZIG_GLOBAL_CACHE_DIR'])"
    (package / "__main__.py").write_text(program, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    assert built(source).read_text(encoding="utf-8").startswith(str(tmp_path / "temporary"))  # leaves nothing in the user's home
    fake("gcc")
    assert [each.name for each in native.compilers()] == ["gcc", "zig cc"]


def unusable(name, cached, monkeypatch):
    """Make the cache unusable in a way."""
    if name == "a file in its place":
        cached.parent.mkdir(parents=True)
        cached.touch()
    elif name == "others may write to it":
        cached.mkdir(parents=True)
        cached.chmod(0o777)
    elif name == "another user's":
        cached.mkdir(parents=True, mode=0o700)
        status = Path.stat

        def of_another(path, **how):
            found = status(path, **how)
            return os.stat_result([*found[:4], os.geteuid() + 1, *found[5:10]]) if path == cached else found

        monkeypatch.setattr(Path, "stat", of_another)
    elif name == "full":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    elif name == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))


@pytest.mark.parametrize("name", ["a file in its place", "others may write to it", "another user's", "full", "no home"])
def test_where_the_cache_cannot_be_used_the_library_lasts_as_long_as_the_process(source, cached, fake, tmp_path, monkeypatch, name):
    calls = fake()
    unusable(name, cached, monkeypatch)
    path = built(source)
    assert path.parent.parent == tmp_path / "temporary" and path.parent.stat().st_mode & 0o777 == 0o700 and path.read_bytes() == b"library"
    assert built(source) == path and len(calls()) == 1
    assert not cached.is_dir() or not list(cached.iterdir())
    shutil.rmtree(path.parent)  # as those do that sweep temporary folders
    assert built(source).read_bytes() == b"library" and len(calls()) == 2


def test_where_nothing_at_all_can_be_written_there_is_no_library(source, fake, monkeypatch):
    fake()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(NotBuilt, match="^root.c cannot be compiled: .*No such file or directory: '/nowhere"):
        built(source)


def test_a_file_that_another_user_wrote_into_the_cache_is_replaced(source, fake, monkeypatch):
    calls = fake()
    path, ours = built(source), library_cache.is_ours
    path.chmod(0o666)
    assert built(source) == path and len(calls()) == 2 and path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(library_cache, "is_ours", lambda each: each != path and ours(each))
    assert built(source) == path and len(calls()) == 3


@needs_a_compiler
def test_half_a_file_is_compiled_again_and_never_loaded(source, monkeypatch):
    monkeypatch.setenv("PATH", PATH)
    path = built(source)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # which the dynamic loader would die of
    assert loaded(built(source))(16.0) == 4.0


def test_what_is_forgotten_is_compiled_again(source, fake):
    calls = fake()
    path = built(source)
    forget(path)
    assert not path.exists()
    forget(path)  # as another process may have done
    assert built(source) == path and len(calls()) == 2


def test_the_newest_eight_files_are_kept(source, cached, fake):
    fake()
    cached.mkdir(parents=True, mode=0o700)
    (cached / "root-0.so.left").touch()  # of a process that was killed
    os.utime(cached / "root-0.so.left", (1, 1))
    paths = []
    for i in range(10):
        paths.append(built(source, f"machine{i}"))
        os.utime(paths[-1], (100 + i, 100 + i))
    kept = {*cached.iterdir()}
    assert kept == {*paths[2:]} and len(kept) == 8


IN_A_PROCESS = """
import ctypes, sys
from pathlib import Path
from seodang.infer.runners.native.compiler import built
path = built(Path(sys.argv[1]))
root = ctypes.CDLL(str(path)).root
root.argtypes, root.restype = [ctypes.c_float], ctypes.c_float
print(path, root(25.0))
"""


@needs_a_compiler
def test_two_processes_that_compile_at_once_both_end_well(source, cached, fake, tmp_path):
    real = next(iter(REAL.values()))
    both = f'while [ "$(/usr/bin/wc -l < "{tmp_path}/calls-mine")" -lt 2 ]; do /bin/sleep 0.01; done; PATH="{PATH}" exec "{real}" "$@"'
    calls = fake("mine", both)
    environment = {**os.environ, "CC": str(tmp_path / "bin" / "mine"), "PATH": PATH}
    start = [sys.executable, "-c", IN_A_PROCESS, str(source)]
    running = [subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in running]
    [path] = cached.iterdir()
    assert said == [(f"{path} 5.0\n", "")] * 2 and len(calls()) == 2


@needs_a_compiler
def test_the_private_folder_goes_with_the_process_that_made_it(source, cached, tmp_path):
    cached.parent.mkdir(parents=True)
    cached.touch()
    forked = IN_A_PROCESS + "import os, sys\nif (child := os.fork()) == 0: sys.exit()\nos.waitpid(child, 0)\nassert path.is_file()\n"
    environment = {**os.environ, "PATH": PATH, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", forked, str(source)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.startswith(f"{tmp_path / 'temporary'}/seodang-native-") and done.stdout.endswith(" 5.0\n"), done.stderr
    assert done.stderr == "" and not list((tmp_path / "temporary").iterdir())
