"""sbom.py FILE TARGET: prints the SBOM that cargo-cyclonedx has written, of the crates that are linked for TARGET: procedural
macros, and what these are built from, are not. Leaves out what differs from build to build, or names this machine."""

import json
import sys
from pathlib import Path

from licenses import OWN, linked


def main() -> None:
    path, target = sys.argv[1:]
    sbom = json.loads(Path(path).read_text().replace(OWN.as_uri(), "file:///source"))
    sbom.pop("serialNumber", None)
    crates = {(package["name"], package["version"]) for package in linked(target)}
    components = [component for component in sbom["components"] if (component["name"], component["version"]) in crates]
    if len(components) != len(crates):
        sys.exit(f"the SBOM has {len(components)} of the {len(crates)} crates that are linked")
    known = {component["bom-ref"] for component in components} | {sbom["metadata"]["component"]["bom-ref"]}
    sbom["components"] = sorted(components, key=lambda component: component["bom-ref"])
    sbom["dependencies"] = [
        {**dependency, "dependsOn": sorted(known & {*dependency.get("dependsOn", ())})}
        for dependency in sorted(sbom["dependencies"], key=lambda dependency: dependency["ref"])
        if dependency["ref"] in known
    ]
    print(json.dumps(sbom, indent=2, ensure_ascii=False))


main()
