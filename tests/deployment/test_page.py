"""The daemon's page in a browser, wide and on a phone. Its pictures, and one of `status`, are those of the README where
VOICE_SYNC_TEST_PICTURES names a directory for them: scripts/pictures."""

import html
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from PIL import Image

from project import built
from scene import Scene

PHONE, DESK = 360, 1000
STYLES = {"1": "font-weight:bold", "2": "opacity:.6", "32": "color:#7ee787", "33": "color:#f2cc60"}


def screenshot(url: str, path: Path, width: int, height: int) -> str:
    """What the browser said while it took the picture."""
    command = [
        str(built("VOICE_SYNC_TEST_CHROMIUM")), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--enable-logging=stderr", "--force-color-profile=srgb", f"--window-size={width},{height}", f"--screenshot={path}", url,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(command, text=True, capture_output=True, timeout=120, env={**os.environ, "HOME": home})
    if done.returncode != 0 or not path.exists():
        raise RuntimeError(done.stderr)
    return done.stderr


def last_row(picture: Image.Image) -> int:
    """The last row that is not all background."""
    box = Image.eval(picture.convert("L"), lambda value: 255 - value).getbbox()
    return box[3]


def terminal(text: str) -> str:
    """A page that shows what a terminal would."""
    body, opened = "", 0
    for part in re.split(r"(\x1b\[[\d;]*m)", text):
        if not part.startswith("\x1b"):
            body += html.escape(part)
            continue
        codes = [code for code in part[2:-1].split(";") if code in STYLES]
        body += "</span>" * opened if not codes else ""
        opened = opened + 1 if codes else 0
        body += f'<span style="{";".join(STYLES[code] for code in codes)}">' if codes else ""
    return (
        "<!doctype html><meta charset=utf-8><body style='margin:0;background:#10141a;color:#e6e9ef'>"
        f"<pre style='margin:0;padding:16px;font:14px/1.3 DejaVu Sans Mono,monospace'>{body}</pre>"
    )


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scene = Scene()
        cls.addClassCleanup(cls.scene.close)
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.directory = Path(os.environ.get("VOICE_SYNC_TEST_PICTURES") or temporary.name).absolute()

    def test_it_is_readable_at_a_desk_and_on_a_phone(self):
        url = self.scene.serve()
        for name, width, height in (("page", DESK, 1500), ("page-phone", PHONE, 3000)):
            path = self.directory / f"{name}.png"
            said = screenshot(url, path, width, height)
            # A style or image that the policy refuses, or anything else that the page is wrong in.
            self.assertNotRegex(said, r"CONSOLE|Refused|Content.Security")
            picture = Image.open(path).convert("RGB")
            background = picture.getpixel((0, 0))
            self.assertEqual(picture.width, width)
            colours = picture.getcolors(maxcolors=1 << 24)
            self.assertGreater(len(colours), 50, "there is something on it, styled")
            # What is wider than the window would be cut off at its edge.
            edge = {picture.getpixel((x, y)) for x in range(width - 8, width) for y in range(height)}
            self.assertEqual(edge, {background}, name)
            self.assertLess(last_row(picture), height - 8, name)
            picture.crop((0, 0, width, last_row(picture) + 20)).save(path, optimize=True)

    def test_the_status_looks_the_same_wherever_it_is_shown(self):
        text = self.scene.voice_sync("status", CLICOLOR_FORCE="1")
        self.assertIn("\x1b[1m", text)
        source = self.directory / "status.html"
        source.write_text(terminal(text))
        path = self.directory / "status.png"
        screenshot(source.as_uri(), path, 1060, 1100)
        source.unlink()
        picture = Image.open(path).convert("RGB")
        box = Image.eval(picture.convert("L"), lambda value: 255 if value > 60 else 0).getbbox()
        picture.crop((0, 0, picture.width, box[3] + 16)).save(path, optimize=True)


if __name__ == "__main__":
    unittest.main()
