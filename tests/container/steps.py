"""The Dockerfile's steps without an engine: in a bare Debian, as root, with what each line says.

The steps are read from the Dockerfile, so a changed one is what is tried. Three things differ from
a real build:

* FROM is not the image of that name but a Debian of ``debootstrap`` with, in /usr/local as there,
  the Python that runs this test. (Debian's 3.11.2 is too old for a pin: soupsieve wants 3.11.5.)
* torch, torchvision and their CUDA libraries (5 GB) are those of the environment that runs this
  test; they lie where pip finds them installed. All other packages are installed as the step says,
  and with ``CONTAINER_TORCH=install`` these too.
* An engine's isolation is only imitated: own processes, mounts and (for the server) network.

The bare Debian is made once, in build/container; ``DEBIAN_MIRROR`` names another mirror.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DEBIAN = "bookworm"
# What Python's own modules are linked with there, as the image's Python is.
LIBRARIES = (
    *("libbz2-1.0", "libffi8", "liblzma5", "libncursesw6", "libreadline8", "libsqlite3-0"),
    *("libssl3", "libuuid1", "zlib1g"),
)
PIP = "24.0"  # of the image
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
NETWORK = re.compile(r"PIP_(?!FIND_LINKS|NO_CACHE)\w+|SSL_CERT_FILE|\w+_proxy", re.IGNORECASE)
LOOPBACK = (
    "import fcntl, socket, struct; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1))"
)


def steps() -> list[tuple[str, str]]:
    """Return the Dockerfile as pairs of an instruction and the rest of its line."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def ignored():
    """Return a function that says whether .dockerignore leaves a relative path out."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    assert not any(pattern.startswith("!") for pattern in patterns), "exceptions are not imitated"
    parts = (re.escape(p).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*") for p in patterns)
    compiled = re.compile(f"(?:{'|'.join(parts)})(?:/.*)?")
    return lambda path: bool(compiled.fullmatch(str(path)))


def context() -> list[Path]:
    """List the files of this checkout that a build would see, by relative path."""
    is_ignored, found = ignored(), []
    for folder, folders, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not is_ignored(here / name)]
        found += [here / name for name in names if not is_ignored(here / name)]
    return found


class Image:
    """A folder that the steps fill, and what later steps need to know of earlier ones."""

    def __init__(self, root: Path):
        self.root, self.user, self.folder = root, "root", "/"
        self.variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.command: list[str] = []
        self.ports: list[str] = []

    def inside(self, path: str) -> Path:
        """Where a path of the image lies here."""
        return self.root / os.path.normpath(os.path.join(self.folder, path)).lstrip("/")

    def account(self, name: str) -> pwd.struct_passwd:
        """A user of the image."""
        lines = (self.root / "etc/passwd").read_text().splitlines()
        fields = next(line.split(":") for line in lines if line.startswith(f"{name}:"))
        return pwd.struct_passwd((*fields[:2], int(fields[2]), int(fields[3]), *fields[4:]))

    def wrapped(self, command: list[str], network: bool) -> list[str]:
        """The command line, on this machine, of a command of the image as its user."""
        user, root = self.account(self.user), shlex.quote(str(self.root))
        kept = {n: v for n, v in os.environ.items() if NETWORK.fullmatch(n)} if network else {}
        variables = kept | {"HOME": user.pw_dir, "OMP_NUM_THREADS": "1"} | self.variables
        packages = self.root / "opt/packages"
        mounts = [
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            *([f"mount --bind {sys.prefix}/lib {packages}"] if packages.exists() else []),
        ]
        mounts += [] if network else [f"{sys.executable} -c {shlex.quote(LOOPBACK)}"]
        who = f"{user.pw_uid}:{user.pw_gid}"
        run = ["chroot", f"--userspec={who}", str(self.root), "/usr/bin/env", "-i"]
        run += [f"--chdir={self.folder}", *(f"{n}={v}" for n, v in variables.items()), *command]
        script = " && ".join([*mounts, f"exec {shlex.join(run)}"])
        spaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
        return ["unshare", *spaces, "sh", "-c", script]

    def run(self, *command: str, network: bool = False, check: bool = True):
        """Run a command of the image to its end."""
        line = self.wrapped(list(command), network)
        done = subprocess.run(line, capture_output=True, text=True, timeout=3000)
        if check:
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def copy(self, arguments: str) -> None:
        """COPY: files of the context, with the owner that is asked for, as are new folders."""
        options, names = [], arguments.split()
        while names[0].startswith("--"):
            options.append(names.pop(0))
        assert all(option.startswith("--chown=") for option in options), options
        owner = self.account(options[0].partition("=")[2] if options else "root")
        *sources, into = names
        files = context()
        for source in map(Path, sources):
            chosen = [f for f in files if f == source or source in f.parents or source == Path(".")]
            assert chosen, f"COPY {source}: there is no such file that .dockerignore leaves in"
            for file in chosen:
                is_file = file == source
                name = file.relative_to(source) if not is_file else Path(file.name)
                named = is_file and not into.endswith("/")
                target = self.inside(into) if named else self.inside(into) / name
                for folder in reversed(target.parents):
                    if not folder.exists():
                        folder.mkdir()
                        os.chown(folder, owner.pw_uid, owner.pw_gid)
                shutil.copy2(ROOT / file, target)
                os.chown(target, owner.pw_uid, owner.pw_gid)

    def step(self, instruction: str, rest: str) -> None:
        """Do what one line says; a line of another kind fails, so that none is passed over."""
        if instruction == "RUN":
            self.run("/bin/sh", "-c", rest, network=True)
        elif instruction == "COPY":
            self.copy(rest)
        elif instruction == "USER":
            self.user = self.account(rest).pw_name
        elif instruction == "WORKDIR":
            self.folder = str(Path(self.folder) / rest)
            self.inside(".").mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                known = self.variables
                self.variables[name] = re.sub(r"\$(\w+)", lambda m: known.get(m[1], ""), value)  # noqa: B023
        elif instruction == "CMD":
            self.command = json.loads(rest)
        elif instruction == "EXPOSE":
            self.ports = rest.split()
        else:
            pytest.fail(f"the Dockerfile has {instruction}, which is not imitated here")


def bare_debian() -> Path:
    """Make, once, a Debian without Python."""
    base = ROOT / "build" / "container" / DEBIAN
    if not base.exists():
        partial = base.with_name(f"{DEBIAN}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        packages = f"--include=ca-certificates,{','.join(LIBRARIES)}"
        command = ["debootstrap", "--variant=minbase", packages, DEBIAN, partial, MIRROR]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        partial.rename(base)
    return base


def copy_python(root: Path) -> None:
    """Put the Python that runs this into /usr/local, without any package."""
    base, local = Path(sys.base_prefix), root / "usr/local"
    left_out = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__")
    library = f"lib/python{VERSION}"
    shutil.copytree(base / library, local / library, symlinks=True, ignore=left_out)
    (local / library / "site-packages").mkdir()
    for shared in (base / "lib").glob("libpython*.so*"):
        shutil.copy2(shared, local / "lib")
    shutil.copy2(Path(sys.executable).resolve(), local / f"bin/python{VERSION}")
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(f"python{VERSION}")
    subprocess.run(["chroot", root, "ldconfig"], check=True)


def lay_torch_under(root: Path) -> None:
    """Let the image's Python find torch and its CUDA libraries in this test's environment."""
    (root / "opt/packages").mkdir(parents=True)
    site, offered = root / f"usr/local/lib/python{VERSION}/site-packages", root / "opt/torch"
    offered.mkdir()
    (site / "torch.pth").write_text("/opt/torch\n")
    for each in distributions():
        if re.fullmatch(r"torch|torchvision|triton|(nvidia|cuda)[-_].*", each.metadata["Name"]):
            tops = {file.parts[0] for file in each.files or () if ".." not in file.parts}
            for top in tops:
                real = Path(str(each.locate_file(top))).relative_to(Path(sys.prefix) / "lib")
                if not (offered / top).is_symlink():
                    (offered / top).symlink_to(Path("/opt/packages") / real)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    if os.geteuid() != 0 or not all(map(shutil.which, ("debootstrap", "unshare", "chroot"))):
        pytest.fail("this needs root, and Debian's debootstrap and util-linux")
    (first, base), *rest = steps()
    assert first == "FROM"
    wanted = re.fullmatch(r"python:([\d.]+)-slim", base)[1]
    if wanted != VERSION:
        pytest.fail(
            f"this is Python {VERSION}: run it with Python {wanted}, as the Dockerfile says"
        )
    root = tmp_path_factory.mktemp("container") / "root"
    subprocess.run(["cp", "-a", bare_debian(), root], check=True)
    copy_python(root)
    for name in ("etc/resolv.conf", CERTIFICATES):  # a network's own authority, if it has one
        if (Path("/") / name).exists():
            shutil.copy(Path("/") / name, root / name)
    if os.environ.get("CONTAINER_TORCH") != "install":
        lay_torch_under(root)
    made = Image(root)
    made.run("python", "-m", "ensurepip")
    made.run("python", "-m", "pip", "install", "--upgrade", f"pip=={PIP}", network=True)
    for instruction, rest_of_line in rest:
        made.step(instruction, rest_of_line)
    yield made
    shutil.rmtree(root)


def test_it_runs_as_an_ordinary_user_who_owns_the_kit(image):
    assert image.run("id", "-u").stdout.strip() not in ("", "0")
    assert image.run("find", ".", "!", "-user", image.user).stdout == ""
    assert image.run("touch", "runs/mine", "data/results/mine").returncode == 0
    assert image.run("touch", "/usr/mine", check=False).returncode != 0


def test_nothing_that_the_kit_needs_is_missing_and_nothing_secret_is_there(image):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    is_ignored, here = ignored(), image.inside(".")
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    wanted = [name for name in tracked if not is_ignored(name)]
    assert len(wanted) > 100
    differ = [
        name
        for name in wanted
        if not (here / name).is_file() or (here / name).read_bytes() != (ROOT / name).read_bytes()
    ]
    assert differ == []
    assert [*here.glob(".git")] == [*here.glob(".venv")] == [*here.glob("build")] == []
    # What git knows and .dockerignore leaves out must be meant: nothing at present.
    assert [name for name in tracked if is_ignored(name)] == []


def test_the_kit_that_is_installed_is_the_one_that_was_copied(image):
    code = "import csd_lib, csd_lib.train, torch; print(csd_lib.__file__, torch.__version__)"
    place, version = image.run("python", "-c", code).stdout.split()
    assert place == f"{image.folder}/csd_lib/__init__.py"
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert version.split("+")[0] == pinned
    assert image.run("csd", "--version").stdout.startswith("csd-lib ")
    assert "No broken requirements" in image.run("python", "-m", "pip", "check").stdout


def test_training_and_the_tests_run(image):
    image.run("csd", "train", "--epochs", "1", "--quiet")
    assert [*image.inside("runs").glob("digits-*/results.json")]
    passed = image.run("python", "-m", "pytest", "-n", "0", "-q", "tests/test_losses.py")
    assert re.search(r"\d+ passed", passed.stdout)


def test_a_notebook_runs(image):
    arguments = ["--to", "notebook", "--execute", "--output-dir", "/tmp/done"]
    image.run("jupyter", "nbconvert", *arguments, "notebooks/01_data_splits.ipynb")
    cells = json.loads((image.root / "tmp/done/01_data_splits.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["execution_count"] for cell in code)


@pytest.fixture
def server(image, tmp_path):
    """The image's own command, alone in a network: its process and its token."""
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            image.wrapped(image.command, network=False), stdout=file, stderr=file
        )
    try:
        (port,) = image.ports
        pattern, deadline = rf"http://127\.0\.0\.1:{port}/lab\?token=(\w+)", time.monotonic() + 300
        while not (found := re.search(pattern, log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield process, port, found[1]
    finally:
        process.kill()
        process.wait()


def test_jupyterlab_answers_with_its_token_and_refuses_without(server):
    process, port, token = server
    assert len(token) >= 32

    def status(path):
        code = (
            "import sys, urllib.request, urllib.error\n"
            "try: print(urllib.request.urlopen(sys.argv[1], timeout=60).status)\n"
            "except urllib.error.HTTPError as error: print(error.code)"
        )
        enter = ["nsenter", f"--net=/proc/{process.pid}/ns/net", sys.executable, "-c", code]
        done = subprocess.run(
            [*enter, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert status(f"/api/contents?token={token}") == 200
    assert status(f"/lab?token={token}") == 200
    for path in ("/api/contents", "/api/contents?token=", f"/api/contents?token={token[::-1]}"):
        assert status(path) == 403, path
