"""The examples under examples/ci/: what GitHub and GitLab accept. scripts/check-deployment runs what they run."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from project import ROOT

EXAMPLES = ROOT / "examples" / "ci"
SCHEMAS = {"github-actions.yml": "vendor.github-workflows", "gitlab-ci.yml": "vendor.gitlab-ci"}


def valid(schema: str, path: Path) -> subprocess.CompletedProcess:
    check = Path(sys.executable).with_name("check-jsonschema")
    return subprocess.run([check, "--builtin-schema", schema, path], text=True, capture_output=True)


class Examples(unittest.TestCase):
    def test_they_are_valid(self):
        for name, schema in SCHEMAS.items():
            done = valid(schema, EXAMPLES / name)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_an_unknown_key_is_refused(self):
        for (name, schema), (key, wrong) in zip(SCHEMAS.items(), [("runs-on:", "run-on:"), ("script:", "scripts:")], strict=True):
            with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
                file.write((EXAMPLES / name).read_text().replace(key, wrong))
                file.flush()
                self.assertNotEqual(valid(schema, Path(file.name)).returncode, 0, name)

    def test_rust_is_of_the_version_that_is_needed(self):
        needed = (ROOT / "Cargo.toml").read_text().partition('rust-version = "')[2].partition('"')[0]
        for path in (*(EXAMPLES / name for name in SCHEMAS), ROOT / "Dockerfile"):
            self.assertRegex(path.read_text(), rf"rust:{needed}-|\+{needed} ", path.name)
