"""sbom.py FILE: prints the SBOM that cargo-cyclonedx has written, without what differs from build to build or names this
machine."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    text = Path(sys.argv[1]).read_text().replace(ROOT.as_uri(), "file:///source")
    sbom = json.loads(text)
    sbom.pop("serialNumber", None)
    sbom["components"].sort(key=lambda component: component["bom-ref"])
    sbom["dependencies"].sort(key=lambda dependency: dependency["ref"])
    print(json.dumps(sbom, indent=2, ensure_ascii=False))


main()
