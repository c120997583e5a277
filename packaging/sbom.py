#!/usr/bin/env python3
"""Prints the bill of materials of the agent for one target, as CycloneDX 1.5 JSON.

usage: sbom.py TARGET

It lists what is linked into the program: `cargo tree` without build and dev dependencies. The same sources give the same bytes:
no time, no random serial number.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cargo(*arguments: str) -> str:
    command = ["cargo", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def component(name: str, version: str, licence: str, checksum: str | None) -> dict:
    purl = f"pkg:cargo/{name}@{version}"
    found = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "licenses": [{"expression": licence.replace("/", " OR ")}] if licence else [],
        "purl": purl,
    }
    if checksum:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return found


def main(target: str) -> None:
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    tree = cargo("tree", "-p", "skerry-agent", "--target", target, "-e", "normal", "--prefix", "none", "-f", "{p}|{l}")
    crates = {}
    for line in filter(None, tree.splitlines()):
        crate, licence = line.removesuffix(" (*)").split("|")
        name, version = crate.split(" ")[:2]
        crates[(name, version.removeprefix("v"))] = licence.removesuffix(" (*)")
    components = [
        component(name, version, licence, checksums.get((name, version)))
        for (name, version), licence in sorted(crates.items())
        if name != "skerry-agent"
    ]
    (version,) = [version for name, version in crates if name == "skerry-agent"]
    program = component("skerry-agent", version, crates[("skerry-agent", version)], None)
    program["type"] = "application"
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": program, "properties": [{"name": "cargo:target", "value": target}]},
        "components": components,
        "dependencies": [{"ref": program["bom-ref"], "dependsOn": [item["bom-ref"] for item in components]}],
    }
    json.dump(document, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
