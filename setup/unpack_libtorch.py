"""Takes what a C++ program needs out of the torch and CUDA-runtime wheels.

usage: unpack_libtorch.py [--licences] WHEEL_FOLDER TARGET_FOLDER

libtorch_cpu.so of the published wheel is linked against libcudart and libcupti, hence those two wheels;
no other CUDA library is needed to run on the CPU. With --licences, only the licences are taken, into an existing folder.
"""
import pathlib, shutil, sys, zipfile

licences_only = "--licences" in sys.argv
wheels, target = map(pathlib.Path, sys.argv[-2:])
lib = target / "lib"
if not licences_only:
    shutil.rmtree(target, ignore_errors=True)
    lib.mkdir(parents=True)
WANTED = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}


def licence(path):
    """LICENSE for torch's licence, LICENSE-nvidia-cuda-cupti for that of nvidia_cuda_cupti-13.0.85.dist-info, None for other files."""
    info = path.parts[0]
    own = info.endswith(".dist-info") and path.parent.name in (info, "licenses")
    if not own or path.name.upper() not in ("LICENSE", "LICENSE.TXT"):
        return None
    package = info.split("-")[0].replace("_", "-")
    return "LICENSE" if package == "torch" else f"LICENSE-{package}"


for wheel in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = pathlib.PurePosixPath(member.filename)
            if licence(path):
                out = target / licence(path)
            elif licences_only:
                continue
            elif path.name in WANTED and path.parent.name == "lib":
                out = lib / path.name
            elif path.parts[:2] == ("torch", "include") and not member.is_dir():
                out = target.joinpath(*path.parts[1:])
            else:
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)

if licences_only:
    sys.exit()
missing = WANTED - {path.name for path in lib.iterdir()}
if missing:
    sys.exit(f"error: the wheels in {wheels} lack {', '.join(sorted(missing))}")
# The wheel's own libtorch.so asks for the CUDA libraries; a linker script names the two that a CPU program uses.
(lib / "libtorch.so").write_text("INPUT(libtorch_cpu.so libc10.so)\n")
(target / "build-version").write_text("2.11.0\n")
