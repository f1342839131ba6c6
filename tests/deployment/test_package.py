"""The Debian package: installed, run, upgraded and removed in a root of its own."""

import gzip
import os
import shutil
import stat
import subprocess
import tempfile
import unittest
from pathlib import Path

from project import ROOT, built

SETTINGS = "etc/voice-sync/voice-sync.env"
# Units, completions and a manual page for each command.
FILES = (
    "usr/bin/voice-sync",
    "usr/lib/systemd/system/voice-sync.service",
    "usr/lib/systemd/system/voice-sync.timer",
    "usr/lib/systemd/system/voice-syncd.service",
    "usr/share/bash-completion/completions/voice-sync",
    "usr/share/zsh/vendor-completions/_voice-sync",
    "usr/share/fish/vendor_completions.d/voice-sync.fish",
    "usr/share/man/man1/voice-sync.1.gz",
    "usr/share/man/man1/voice-sync-sync-once.1.gz",
    "usr/share/doc/voice-sync/copyright",
    "usr/share/doc/voice-sync/THIRD-PARTY-LICENSES",
    SETTINGS,
)


@unittest.skipUnless(shutil.which("dpkg"), "only Debian has dpkg")
class Package(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        (self.root / "var/lib/dpkg/info").mkdir(parents=True)
        (self.root / "var/lib/dpkg/updates").mkdir()
        (self.root / "var/lib/dpkg/status").touch()

    def dpkg(self, *arguments: str) -> str:
        """Without what it depends on, and with scripts that find no system to change."""
        command = ["dpkg", f"--root={self.root}", "--force-depends", "--force-script-chrootless", *arguments]
        if os.geteuid() != 0:
            command = ["unshare", "--map-root-user", *command]
        done = subprocess.run(command, text=True, capture_output=True, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.root / path).stat().st_mode)

    def test_it_is_installed_run_upgraded_and_removed(self):
        package = str(built("VOICE_SYNC_TEST_PACKAGE"))
        self.dpkg("--install", package)
        for path in FILES:
            self.assertTrue((self.root / path).is_file(), path)
        # The units' user looks for config.toml there, and does not start if it may not.
        self.assertEqual(self.mode("etc/voice-sync"), 0o755)
        self.assertEqual(self.mode(SETTINGS), 0o600)
        for unit in ("voice-sync.service", "voice-sync.timer", "voice-syncd.service"):
            installed = self.root / "usr/lib/systemd/system" / unit
            self.assertEqual(installed.read_text(), (ROOT / "systemd" / unit).read_text(), unit)

        program = self.root / "usr/bin/voice-sync"
        smoke = [ROOT / "examples/ci/smoke", program, built("VOICE_SYNC_TEST_SIMULATOR")]
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        done = subprocess.run(smoke, text=True, capture_output=True, env=environment)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

        completions = self.root / "usr/share/bash-completion/completions/voice-sync"
        asked = 'source "$1"; COMP_WORDS=(voice-sync sta) COMP_CWORD=1; _voice__sync voice-sync sta voice-sync; echo "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", asked, "bash", completions], text=True, capture_output=True)
        self.assertEqual(done.stdout.split(), ["status"], done.stderr)
        commands = subprocess.run([program, "--help"], text=True, capture_output=True).stdout
        commands = [line.split()[0] for line in commands.split("Commands:")[1].split("\n\n")[0].splitlines() if line[2:3].strip()]
        for command in set(commands) - {"help"}:
            page = self.root / f"usr/share/man/man1/voice-sync-{command}.1.gz"
            self.assertIn(".SH NAME", gzip.decompress(page.read_bytes()).decode(), command)

        settings = self.root / SETTINGS
        settings.write_text("RUST_LOG=warn\n")
        (self.root / "etc/voice-sync/database-url").write_text("sqlite:///app.db\n")
        self.dpkg("--install", package)
        self.assertEqual(settings.read_text(), "RUST_LOG=warn\n")
        self.dpkg("--remove", "voice-sync")
        self.assertFalse(program.exists())
        self.assertEqual(settings.read_text(), "RUST_LOG=warn\n")
        self.dpkg("--purge", "voice-sync")
        self.assertFalse(settings.exists())
        self.assertTrue((self.root / "etc/voice-sync/database-url").exists(), "the administrator's own stays")
        self.assertEqual([str(path) for path in self.root.glob("usr/**/voice-sync*")], [])


if __name__ == "__main__":
    unittest.main()
