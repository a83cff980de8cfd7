"""Takes what a C++ program needs out of the torch and CUDA-runtime wheels.

usage: unpack_libtorch.py WHEEL_FOLDER TARGET_FOLDER

libtorch_cpu.so of the published wheel is linked against libcudart and libcupti, hence those two wheels;
no other CUDA library is needed to run on the CPU.
"""
import pathlib, shutil, sys, zipfile

wheels, target = map(pathlib.Path, sys.argv[1:])
shutil.rmtree(target, ignore_errors=True)
lib = target / "lib"
lib.mkdir(parents=True)
WANTED = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}

for wheel in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            path = pathlib.PurePosixPath(member.filename)
            if path.name in WANTED and path.parent.name == "lib":
                out = lib / path.name
            elif path.parts[:2] == ("torch", "include") and not member.is_dir():
                out = target.joinpath(*path.parts[1:])
            elif path.name == "LICENSE" and "torch-" in path.parts[0]:
                out = target / "LICENSE"
            else:
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)

missing = WANTED - {path.name for path in lib.iterdir()}
if missing:
    sys.exit(f"error: the wheels in {wheels} lack {', '.join(sorted(missing))}")
# The wheel's own libtorch.so asks for the CUDA libraries; a linker script names the two that a CPU program uses.
(lib / "libtorch.so").write_text("INPUT(libtorch_cpu.so libc10.so)\n")
(target / "build-version").write_text("2.11.0\n")
