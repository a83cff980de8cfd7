"""Writes a bill of materials of the release archive (CycloneDX 1.5) and the licence texts of its crates.

usage: sbom.py LIB_FOLDER SBOM.json CRATES.txt

Crates and versions come from Cargo.lock by `cargo metadata --offline`, wheels from setup/libtorch.txt, files from LIB_FOLDER, the
libraries of the archive. Crates of build scripts only have the scope `excluded`: nothing of them is in the program. The output depends
on these inputs only: it has no time, and its serial number is a hash of the rest.
"""
import hashlib, json, os, pathlib, re, shlex, subprocess, sys, tomllib, uuid

LIB, SBOM, CRATES = map(pathlib.Path, sys.argv[1:])
ROOT = pathlib.Path(__file__).resolve().parent.parent
# Licences of the pinned wheels (their METADATA). libgomp.so.1 is GCC's, inside the wheel of torch.
WHEELS = {
    "torch": {"license": {"id": "BSD-3-Clause"}},
    "nvidia-cuda-runtime": {"license": {"name": "NVIDIA CUDA Toolkit End User License Agreement"}},
    "nvidia-cuda-cupti": {"license": {"name": "NVIDIA CUDA Toolkit End User License Agreement"}},
}
LIBRARIES = {"libtorch_cpu": "torch", "libc10": "torch", "libcudart": "nvidia-cuda-runtime", "libcupti": "nvidia-cuda-cupti"}
GOMP = {
    "type": "library",
    "bom-ref": "gcc:libgomp",
    "name": "libgomp",
    "licenses": [{"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"}],
}
NOTICE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|UNLICENSE|COPYRIGHT)", re.I)


def metadata():
    command = shlex.split(os.environ.get("CARGO", "cargo")) + ["metadata", "--format-version=1", "--locked", "--offline"]
    command.append("--filter-platform=x86_64-unknown-linux-gnu")
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def reachable(nodes, start, kinds):
    """Ids of the packages that `start` depends on by dependencies of the kinds (None: of the program itself)."""
    found, queue = {start}, [start]
    while queue:
        for dependency in nodes[queue.pop()]["deps"]:
            wanted = any(kind["kind"] in kinds for kind in dependency["dep_kinds"])
            if wanted and dependency["pkg"] not in found:
                found.add(dependency["pkg"])
                queue.append(dependency["pkg"])
    return found


def crate(package, checksums, linked):
    component = {
        "type": "library",
        "bom-ref": f"pkg:cargo/{package['name']}@{package['version']}",
        "name": package["name"],
        "version": package["version"],
        "purl": f"pkg:cargo/{package['name']}@{package['version']}",
        "scope": "required" if package["id"] in linked else "excluded",
        "licenses": [{"expression": package["license"].replace("/", " OR ")}],
    }
    if checksum := checksums.get((package["name"], package["version"])):
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return component


def wheels():
    """Those of setup/libtorch.txt of which the archive has libraries."""
    packed = {LIBRARIES.get(file.name.split(".")[0]) for file in LIB.iterdir()}
    for line in (ROOT / "setup/libtorch.txt").read_text().splitlines():
        if match := re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line):
            name, version, digest = match.groups()
            if name in packed:
                purl = f"pkg:pypi/{name}@{version}"
                component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
                yield component | {"licenses": [WHEELS[name]], "hashes": [{"alg": "SHA-256", "content": digest}]}
    if any(file.name.startswith("libgomp") for file in LIB.iterdir()):
        yield GOMP


def licence_texts(packages):
    """Every crate with its licence and the texts that its package has; a text that an earlier crate has is not repeated."""
    first = {}
    for package in packages:
        yield f"{'=' * 100}\n{package['name']} {package['version']}: {package['license']}\n{package['repository'] or ''}\n\n"
        for file in sorted(pathlib.Path(package["manifest_path"]).parent.iterdir()):
            if NOTICE.match(file.name) and file.is_file():
                text = file.read_text(errors="replace").strip()
                earlier = first.setdefault(text, f"{package['name']} {package['version']}: {file.name}")
                own = earlier == f"{package['name']} {package['version']}: {file.name}"
                yield f"[{file.name}]\n{text}\n\n" if own else f"[{file.name}] the text of {earlier}\n\n"


def edges(nodes, id):
    """Direct dependencies, without those of tests."""
    wanted = lambda dependency: any(kind["kind"] in (None, "build") for kind in dependency["dep_kinds"])
    return {dependency["pkg"] for dependency in nodes[id]["deps"] if wanted(dependency)}


def main():
    facts = metadata()
    nodes = {node["id"]: node for node in facts["resolve"]["nodes"]}
    by_id = {package["id"]: package for package in facts["packages"]}
    product = next(id for id, package in by_id.items() if package["name"] == "simclr-cli")
    linked, every = (reachable(nodes, product, kinds) for kinds in ([None], [None, "build"]))
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock}
    crates = {id: crate(by_id[id], checksums, linked) for id in sorted(every)}
    native = list(wheels())
    links = {crates[id]["bom-ref"]: {crates[other]["bom-ref"] for other in edges(nodes, id)} for id in crates}
    links[crates[product]["bom-ref"]] |= {component["bom-ref"] for component in native}
    application = crates.pop(product) | {"type": "application", "name": "simclr"}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": application},
        "components": sorted([*crates.values(), *native], key=lambda component: component["bom-ref"]),
        "dependencies": [{"ref": ref, "dependsOn": sorted(on)} for ref, on in sorted(links.items())],
    }
    digest = hashlib.sha256(json.dumps(bill, sort_keys=True).encode()).hexdigest()
    bill["serialNumber"] = f"urn:uuid:{uuid.UUID(digest[:32])}"
    SBOM.write_text(json.dumps(bill, indent=1) + "\n")
    third_party = [by_id[id] for id in linked if by_id[id]["source"]]
    CRATES.write_text("".join(licence_texts(sorted(third_party, key=lambda package: (package["name"], package["version"])))))


main()
