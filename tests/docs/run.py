"""Runs what the documentation, and the help of each command, tell people to type: against a PostgreSQL, a Redis and the
simulator that scripts/test-docs has ready. What is no command of voice-sync has to be run by something else, which is looked up.
The tutorial runs as it is written, and what it shows is compared. Checks the links, the lines and the words of all pages, too."""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs/tutorial.md"
# Each translation, and the page that it is of.
TRANSLATIONS = {ROOT / "README.ko.md": ROOT / "README.md", ROOT / "docs/ko/tutorial.md": TUTORIAL}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {*TRANSLATIONS})]
LINE = 100
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
# Words that mean something to nobody else: the pages use the terms of the field.
HOME_MADE = [
    r"askers?", r"hungry", r"misfits?", r"lookout", r"checkup", r"in touch", r"sleepers?", r"poison voices?", r"fuse", r"anew",
    r"left in peace", r"left alone", r"at peace", r"the one that keeps asking", r"(does|do) all fit", r"is no verdict",
    r"nobody asks", r"asked about", r"asks? about", r"bodies that are none", r"that are none", r"when it calls", r"mends?", r"mended",
    r"goes on", r"go on", r"made trouble", r"in trouble", r"trouble", r"refusals?", r"absent", r"how things stand", r"never is",
    r"whoever", r"is told", r"was told",
]  # fmt: skip
# A string literal of Rust, raw or not. A quote as a character is none.
LITERAL = re.compile(r"""'"'|\br#"(.*?)"#|"((?:[^"\\]|\\.)*)\"""", re.S)
# Statements have the names of columns, which stay as they are.
SQL = re.compile(r"\b(SELECT|INSERT|SET|VALUES|AND|NULL)\b")
VOICE_SYNC = ROOT / "target/debug/voice-sync"
COMMANDS = ("sync-once", "daemon", "migrate", "doctor", "status", "inspect", "retry", "outbox", "runs", "list", "fail", "config", "completions", "man")
TABLE = """CREATE TABLE voices (
    id uuid PRIMARY KEY, user_id uuid NOT NULL, elevenlabs_voice_id varchar(100) NOT NULL UNIQUE, preview_url varchar(1024),
    status varchar(20) NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), completed_at timestamptz)"""
# A voice of each of these fates is what the site has.
FATES = ("ready", "banned", "nopreview", "pvctraining", "longpreview")
FAILED = uuid.uuid5(uuid.NAMESPACE_URL, "banned")
WAITING = uuid.uuid5(uuid.NAMESPACE_URL, "pvctraining")
# Long enough to read, and to be something that a test would wait for.
SHORTER = {"10m": "1s", "5m": "5s"}

# What is no command of voice-sync, and a text that shows which file runs it, or that what it names is there.
ELSEWHERE = [
    (r"cargo build --release --locked --bin voice-sync --example simulator", "scripts/build", '--locked --profile "$profile"'),
    (r"cargo run --release --locked --example simulator", "scripts/check-deployment", "--example simulator"),
    (r"cargo run --example demo", ".ci/run", "cargo run --quiet --locked --example demo"),
    (r"cargo run --example simulator( -- --help)?", "scripts/check-deployment", "--example simulator"),
    (r"cargo install --locked --path \.", "scripts/check-deployment", "cargo install --quiet --locked --debug --force --path ."),
    (r"cargo build( --release --locked && sudo install target/release/voice-sync /usr/local/bin/)?", "scripts/build", '--locked --profile "$profile"'),
    (r"cargo build --release", "scripts/package", "--profile"),
    (r"cargo bench --bench lag", "benches/lag/main.rs", "fn main"),
    (r"cargo bench --bench hints", "benches/hints/main.rs", "fn main"),
    (r"cargo bench --bench schedule( -- --svg docs/images/schedule.svg)?", "benches/schedule/main.rs", "fn main"),
    (r"scripts/test", ".ci/run", "scripts/test --locked"),
    (r"cargo bloat", "docs/explanation/performance.md", "cargo install cargo-bloat --locked --root target/tools"),
    (r"cargo fuzz run TARGET", "fuzz/Cargo.toml", "cargo-fuzz = true"),
    (r"scripts/chaos", "scripts/chaos", "faults"),
    (r"scripts/release( --untagged| --unchecked)?", "scripts/check-reproducible", "scripts/release\" --untagged"),
    (r"scripts/check-reproducible", "scripts/release", "scripts/check-reproducible"),
    (r"cargo install cargo-bloat --locked --root target/tools", "scripts/package", "--root \"$tools\""),
    (r"target/tools/bin/cargo-bloat bloat --release --crates -n 25", "Cargo.toml", "[profile.release]"),
    (r"scripts/build", "scripts/check-deployment", "scripts/build host"),
    (r"sha256sum --check --ignore-missing SHA256SUMS", "scripts/release", "sha256sum -- * >SHA256SUMS"),
    (r"rustup target add \S+ \S+", "scripts/build", "rustup target add"),
    (r"scripts/package", "scripts/check-deployment", "scripts/package"),
    (r"scripts/pictures", "scripts/pictures", "scripts/check-deployment test_page"),
    (r"scripts/check-deployment|scripts/test-docs", ".ci/run", ""),
    (r"scripts/test-upgrade REVISION", "scripts/test-upgrade", ""),
    (r"\.ci/run", ".ci/run", ""),
    (r"docker compose (up -d voice-sync|exec voice-sync /voice-sync doctor)", "examples/compose/compose.yaml", "\n  voice-sync:\n"),
    (r"docker compose up -d --wait postgres redis", "examples/compose/compose.yaml", "\n  redis:\n"),
    (r'docker compose exec -T postgres psql -U postgres -d app +((-c "[^"]*" *)+|-v ON_ERROR_STOP=1 <\.\./sql/roles\.sql)', "examples/compose/compose.yaml", "POSTGRES_DB: app"),
    (r"cd examples/compose", "examples/compose/compose.yaml", "services:"),
    (r"(\w+=\$\(openssl rand -hex 16\) ?)+", "examples/sql/roles.sql", "a password each"),
    (r'printf %s "\$postgres" >secrets/postgres-password', "examples/compose/compose.yaml", "file: ./secrets/postgres-password"),
    (r"mkdir -m 700 secrets|chmod 444 secrets/\*", "examples/compose/compose.yaml", "file: ./secrets/"),
    (r"printf %s \S+ >secrets/elevenlabs-api-key", "examples/compose/compose.yaml", "file: ./secrets/elevenlabs-api-key"),
    (r"printf %s \S+ >secrets/database-url", "examples/compose/compose.yaml", "file: ./secrets/database-url"),
    (r"printf %s \S+ +>secrets/migrator-database-url", "examples/compose/compose.yaml", "file: ./secrets/migrator-database-url"),
    (r"printf %s \S+ >secrets/redis-url", "examples/compose/compose.yaml", "file: ./secrets/redis-url"),
    (r"docker (build|run) .*", "tests/deployment/test_container.py", "Dockerfile"),
    (r"kubectl apply -k \.|kubectl apply -f namespace\.yaml", "tests/deployment/test_kubernetes.py", "kustomize"),
    (r"kubectl -n voice-sync create secret generic voice-sync(-migrator)? (--from-file=\S+ ?)+", "examples/kubernetes/base/cronjob.yaml", "voice-sync"),
    (r"cd examples/kubernetes/overlays/production", "examples/kubernetes/overlays/production/kustomization.yaml", "resources"),
    (r"cd target/debian", "scripts/package", "--output target/debian/voice-sync.deb"),
    (r"sudo apt install \./voice-sync\.deb", "tests/deployment/test_package.py", '"--install"'),
    (r"sudo (install|cp) .*", "tests/deployment/test_systemd.py", "systemd"),
    (r"sudo (useradd --system --user-group|userdel) voice-sync-demo", "systemd/sqlite.conf", "User=app\n"),
    (r"sudo -u voice-sync-demo sqlite3 /srv/voice-sync-demo/app\.db .*", "systemd/sqlite.conf", "ReadWritePaths=/srv/app/data\n"),
    (r"sudo sed -i 's\|=app\$\|=voice-sync-demo\|; s\|=/srv/app/data\$\|=/srv/voice-sync-demo\|' .*/sqlite\.conf", "systemd/sqlite.conf", "User=app\nReadWritePaths=/srv/app/data\n"),
    (r"sudo journalctl -u voice-sync\.service -n 50 -o cat", "systemd/voice-sync.service", "ExecStart=voice-sync sync-once"),
    (r"sudo rm (-r )?(/etc/(voice-sync|systemd/system/voice-sync\S*)|/srv/voice-sync-demo|/var/lib/voice-sync| )+", "systemd/voice-syncd.service", "/etc/voice-sync"),
    (r"sudo sh -c 'umask 077; echo any >/etc/voice-sync/elevenlabs-api-key'", "systemd/voice-sync.service", "/etc/voice-sync/elevenlabs-api-key"),
    (r"sudo sh -c 'umask 077; echo sqlite:////srv/voice-sync-demo/app\.db >/etc/voice-sync/database-url'", "systemd/voice-sync.service", "/etc/voice-sync/database-url"),
    (r"sudo sh -c 'echo ELEVENLABS_BASE_URL=\S+ >/etc/voice-sync/voice-sync\.env'", "systemd/voice-sync.service", "EnvironmentFile=-/etc/voice-sync/voice-sync.env"),
    (r"sudo systemctl (daemon-reload|(enable|disable) --now voice-sync\.timer)", "systemd/voice-sync.timer", "[Install]"),
    (r"sudo sh -c 'umask 077; cat >/etc/voice-sync/(elevenlabs-api-key|database-url|redis-url|elevenlabs-webhook-secret)'", "systemd/voice-sync.service", "LoadCredential="),
    (r"kubectl -n voice-sync exec deploy/voice-syncd -- /voice-sync status", "Dockerfile", 'ENTRYPOINT ["/voice-sync"]'),
    (r"sudo env DATABASE_URL_FILE=\S+ ELEVENLABS_API_KEY_FILE=\S+ voice-sync (status|doctor)", "tests/it/bad_input.rs", "secrets_can_be_read_from_files"),
    (r'psql "\$OWNER_URL" .*', "tests/it/migrate.rs", "examples/sql/roles.sql"),
    (r"DATABASE_URL=postgresql://voice_sync_(migrator|runtime):PASSWORD@HOST/DATABASE voice-sync (migrate|doctor)", "tests/it/migrate.rs", "ALTER ROLE voice_sync_migrator PASSWORD"),
    (r"alembic check", "tests/it/fastapi.rs", "alembic"),
    (r"export VOICE_SYNC_HINTS_TOKEN=\$\(openssl rand -hex 32\)", "src/cli/secrets.rs", '"VOICE_SYNC_HINTS_TOKEN"'),
    (r"""grep -v '\^CREATE ROLE\\\|\^ALTER ROLE' examples/sql/roles\.sql \| psql "\$OWNER_URL\"""", "examples/sql/roles.sql", "\nALTER ROLE voice_sync_migrator SET"),
    (r"kubectl -n voice-sync delete job voice-sync-migrate --ignore-not-found", "examples/kubernetes/base/migrate.yaml", "name: voice-sync-migrate"),
    (r"sudo systemctl restart voice-syncd\.service", "systemd/voice-syncd.service", "[Install]"),
    (r"export \w+=\S+", "tests/docs/run.py", "DATABASE_URL"),
]  # fmt: skip


def in_blocks(text: str) -> Iterator[str]:
    """The commands of blocks that a shell is to run, without their comments."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s+)# .*$", "", re.sub(r"\s+", " ", line.strip()) if "'" not in line else line.strip())
            if command.strip():
                yield command.strip()


def in_prose(text: str) -> Iterator[str]:
    """Commands between backticks."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", text):
        first, _, rest = code.partition(" ")
        if first == "voice-sync" and rest:
            yield code
        elif first in COMMANDS and rest.startswith(("--", "ID")) and rest != "--metrics-file":
            yield f"voice-sync {code}"
        elif first in ("cargo", "kubectl", "docker", "redis-cli", "alembic") or first.startswith("scripts/") or first == ".ci/run":
            yield code


def in_help() -> Iterator[tuple[str, str]]:
    """The examples in the help of each command, and of those below it."""
    waiting = [()]
    while waiting:
        words = waiting.pop()
        text = subprocess.run([VOICE_SYNC, *words, "--help"], text=True, capture_output=True, check=True, env={}).stdout
        subcommands = re.search(r"^Commands:\n(.*?)\n\n", text, re.M | re.S)
        names = re.findall(r"^  ([a-z]\S*)", subcommands[1], re.M) if subcommands else []
        waiting += [(*words, name) for name in names if name != "help"]
        examples = re.search(r"^Examples:\n((?:  .*\n?)+)", text, re.M)
        if words and not names and not examples:
            raise SystemExit(f"voice-sync {' '.join(words)} --help has no examples")
        for line in examples[1].splitlines() if examples else ():
            yield f"voice-sync {' '.join(words)} --help", line.strip()


def blocks(text: str) -> list[tuple[str, str]]:
    """Each fenced block with its language."""
    return re.findall(FENCED, text)


def lines_of(script: str) -> Iterator[str]:
    """Its commands; what stands between double quotes may have several lines."""
    yield from (" ".join(command.split()) for command in re.findall(r'(?:[^\n"]|"[^"]*")+', script))


def shown(expected: str) -> re.Pattern:
    """What matches text that is shown: `…` is anything, alone on a line any lines, and times differ."""
    pattern = re.escape(expected.strip()).replace("\\\n", "\n")
    pattern = re.sub(r"^…\n", "(?:.*\\n)*", pattern, flags=re.M)
    pattern = re.sub(r"\n…$", "(?:\\n.*)*", pattern)
    pattern = re.sub(r"\d+\\\.\d+\\ s\b", r"\\d+\\.\\d+ s", pattern)
    return re.compile(pattern.replace("…", ".*"))


def tutorial(site: "Site") -> list[str]:
    """What is wrong with it. It runs as one script, in a directory of its own, except for what needs root or a compiler."""
    address = "http://127.0.0.1:8900"
    parts, wrong = blocks(TUTORIAL.read_text()), []
    script, expectations, runs = ["set -e"], [], False
    for language, block in parts:
        if language == "sh":
            runs = not re.search(r"^(sudo|cargo) ", block, re.M)
            if runs:
                script += [f"echo @@{len(expectations)}", block]
                expectations.append((block, ""))
            else:
                found = [(command, elsewhere(command)) for command in lines_of(block.replace("\\\n", " "))]
                wrong += [f"{command}\n    {error}" for command, error in found if error]
        elif runs:
            expectations[-1] = (expectations[-1][0], block)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{VOICE_SYNC.parent}:{os.environ['PATH']}"
        whole = "\n".join(script).replace(address, site.environment["ELEVENLABS_BASE_URL"])
        done = subprocess.run(["bash", "-c", whole], cwd=directory, text=True, capture_output=True, env={"PATH": path}, timeout=120)
    outputs = re.split(r"^@@\d+\n", done.stdout.replace(site.environment["ELEVENLABS_BASE_URL"], address), flags=re.M)[1:]
    if done.returncode != 0:
        wrong.append(f"{expectations[len(outputs) - 1][0]}    ended with {done.returncode}\n{done.stderr}")
    for (block, expected), output in zip(expectations, outputs):
        if expected and not shown(expected).fullmatch(output.strip()):
            wrong.append(f"{block}    shows\n{output}    and not\n{expected}")
    return [f"{TUTORIAL.relative_to(ROOT)}: {error}" for error in wrong]


def anchors(page: Path) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(FENCED, "", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def in_words(page: Path) -> Iterator[str]:
    """What is wrong with its links, the length of its lines, and its words."""
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
        to = (page.parent / target).resolve() if target else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            yield f"the link to {target}#{anchor} leads nowhere"
    prose = re.sub(FENCED, lambda block: block[2] if block[1] == "sh" else "", text)
    for line in prose.splitlines():
        if len(line) > LINE and not re.match(r" *\||<!-- |.*://", line):
            yield f"longer than {LINE} characters: {line}"
    yield from home_made(re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", prose))


def home_made(text: str) -> Iterator[str]:
    """The terms in it that mean something to nobody else."""
    words = re.sub(r"\s+", " ", text)
    for term in HOME_MADE:
        for found in re.finditer(rf"\b{term}\b", words, re.I):
            yield f"{found[0]!r} is home-made: …{words[max(0, found.start() - 40) : found.end() + 40]}…"


def in_literals(source: Path) -> Iterator[str]:
    """What is wrong with the words of its string literals, in which a line that ends in a backslash continues."""
    for raw, plain in re.findall(LITERAL, re.sub(r"^\s*//.*$", "", source.read_text(), flags=re.M)):
        text = re.sub(r"\{\w*(:[^}]*)?\}", "…", re.sub(r"\\\n\s*", "", plain or raw))
        if " " in text and not SQL.search(text):
            yield from home_made(text)


def in_translation(translation: Path, original: Path) -> Iterator[str]:
    """What is wrong with it: the original has changed since, or it has other commands."""
    name, of = translation.relative_to(ROOT), original.relative_to(ROOT)
    text, source = translation.read_text(), original.read_text()
    first = f"<!-- translation of {of}, sha256 {hashlib.sha256(source.encode()).hexdigest()} -->"
    if not text.startswith(f"{first}\n"):
        yield f"{name} is older than {of}: translate what has changed, then let it begin with {first}"
    if [*in_blocks(text)] != [*in_blocks(source)]:
        yield f"{name} has other commands than {of}"


class Site:
    """An application's database, in the middle of its life."""

    def __init__(self):
        server = os.environ["VOICE_SYNC_TEST_DATABASE_URL"]
        name = f"docs_{uuid.uuid4().hex}"
        self.url = re.sub(r"/[^/?]*(\?.*)?$", rf"/{name}\1", server)
        subprocess.run(["psql", "-qX", server, "-c", f"CREATE DATABASE {name}"], check=True)
        simulator = [ROOT / "target/debug/examples/simulator", "--listen", "127.0.0.1:0"]
        self.simulator = subprocess.Popen(simulator, text=True, stdout=subprocess.PIPE)
        self.environment = {
            "DATABASE_URL": self.url,
            "ELEVENLABS_API_KEY": "any",
            "ELEVENLABS_BASE_URL": self.simulator.stdout.readline().strip(),
            "REDIS_URL": os.environ["VOICE_SYNC_TEST_REDIS_URL"],
            "VOICE_SYNC_EVENT_PREFIX": f"{name}:",
            "PATH": os.environ["PATH"],
        }
        self.sql(TABLE)
        self.anew()

    def sql(self, statement: str):
        subprocess.run(["psql", "-qX", "-v", "ON_ERROR_STOP=1", self.url, "-c", statement], check=True)

    def anew(self):
        """As before any command: each page, and each example, begins with the same voices, and with tables of its own."""
        rows = ", ".join(
            f"('{uuid.uuid5(uuid.NAMESPACE_URL, fate)}', '{uuid.uuid4()}', 'sim-{fate}-1', 'processing')" for fate in FATES
        )
        self.sql(f"TRUNCATE voices; INSERT INTO voices (id, user_id, elevenlabs_voice_id, status) VALUES {rows}")
        for command in ("migrate", "sync-once"):
            done = self.run([str(VOICE_SYNC), command])
            if done.returncode != 0:
                raise SystemExit(f"voice-sync {command} ended with {done.returncode}:\n{done.stderr}")

    def run(self, words: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(words, text=True, capture_output=True, env=self.environment, stdin=subprocess.DEVNULL, timeout=120)

    def run_until_it_works(self, words: list[str], end: signal.Signals) -> subprocess.CompletedProcess:
        """What would never end is told to when it has said something."""
        process = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environment)
        said = process.stdout.readline()
        process.send_signal(end)
        said += process.communicate(timeout=120)[0]
        return subprocess.CompletedProcess(words, process.returncode, said, "")

    def voice_sync(self, command: str) -> str | None:
        """What is wrong with it, if anything is."""
        # What a pipe, or a file, gets is the program's to say, and the rest is not its own.
        command = re.sub(r"^sudo ", "", re.split(r" \| | >", command)[0])
        # Names that stand for something.
        named = WAITING if re.match(r"\S+ fail\b", command) else FAILED
        command = re.sub(r"\bID…?(?=\s|$)|6f1c2b34-\S+", str(named), command)
        command = command.replace("21m00Tcm4TlvDq8ikWAM", "sim-nopreview-1").replace("SHELL", "bash").replace("COMMAND", "status")
        words = [SHORTER.get(word, word) for word in shlex.split(command)]
        words[0] = str(VOICE_SYNC)
        if "/usr/local/share/man/man1" in words:
            words[words.index("/usr/local/share/man/man1")] = str(ROOT / "target/package/man")
            (ROOT / "target/package/man").mkdir(parents=True, exist_ok=True)
        # What would be asked on a terminal is answered.
        if words[1] in ("retry", "outbox") and not {"list", "--dry-run", "--help"} & set(words):
            words.append("--yes")
        # Only a voice without an event gets one recorded.
        if words[1:3] == ["outbox", "record"]:
            self.run([words[0], "outbox", "purge", "--yes"])
        if "9090" in words:
            words[words.index("9090")] = "0"
        if "daemon" in words:
            done = self.run_until_it_works(words, signal.SIGTERM)
        elif any(word.startswith("--watch") for word in words):
            done = self.run_until_it_works(words, signal.SIGINT)
        else:
            done = self.run(words)
        fine = {0, 75} if {"--check", "--wait"} & set(words) else {0}
        return None if done.returncode in fine else f"ended with {done.returncode}\n{done.stdout}{done.stderr}"


def elsewhere(command: str) -> str | None:
    """What is wrong with it, if anything is: nothing runs it, or what it names is not there."""
    if names := re.fullmatch(r"scripts/(test --test it|chaos) (\S+)", command):
        tests = "faults" if names[1] == "chaos" else "it"
        paths = list((ROOT / "tests" / tests).rglob("*.rs"))
        sources = "".join(path.read_text() for path in paths) + "".join(f"mod {path.stem} " for path in paths)
        name = names[2].removesuffix("::")
        # `NAME` is anybody's.
        known = name == "NAME" or re.search(rf"(fn|mod|variant) \w*{name}\w*", sources)
        return None if known else f"no test of tests/{tests} has {name} in its name"
    if figures := re.fullmatch(r"scripts/bench ((?:passes|judging|lag)(?: \w+)*)", command):
        bench, *named = figures[1].split()
        source = (ROOT / f"benches/{bench}/main.rs") if (ROOT / f"benches/{bench}").is_dir() else ROOT / f"benches/{bench}.rs"
        missing = [name for name in named if f'"{name}"' not in source.read_text()]
        return f"{source.name} has no {missing}" if missing else None
    for pattern, path, text in ELSEWHERE:
        if re.fullmatch(pattern, command):
            file = ROOT / path
            there = file.is_file() and (text in file.read_text())
            return None if there else f"{path} was to run it, and does not have {text!r}"
    return "nothing runs it: see ELSEWHERE in tests/docs/run.py"


def main():
    site, wrong, count = Site(), [], 0
    groups: list[tuple[str, list[str]]] = [
        (
            str(page.relative_to(ROOT)),
            [*(in_blocks(page.read_text()) if page != TUTORIAL else ()), *in_prose(page.read_text())],
        )
        for page in PAGES
    ]
    groups += [(place, [command]) for place, command in in_help()]
    for place, commands in groups:
        site.anew()
        for command in dict.fromkeys(commands):
            count += 1
            if re.match(r"(sudo )?voice-sync ", command):
                trouble = site.voice_sync(command)
            elif command.startswith("redis-cli "):
                words = shlex.split(command.replace("events:", site.environment["VOICE_SYNC_EVENT_PREFIX"]))
                url = re.sub("//:", "//default:", site.environment["REDIS_URL"])
                done = site.run([words[0], "-e", "-u", url, *words[1:]])
                trouble = None if done.returncode == 0 else done.stdout + done.stderr
            else:
                trouble = elsewhere(command)
            if trouble:
                wrong.append(f"{place}: {command}\n    {trouble.strip()}")
    wrong += tutorial(site)
    site.simulator.kill()
    wrong += [f"{page.relative_to(ROOT)}: {error}" for page in [*PAGES, *TRANSLATIONS] for error in in_words(page)]
    # It consists of blocks.
    reference = ROOT / "docs/reference/commands.md"
    wrong += [f"docs/reference/commands.md: {error}" for error in home_made(reference.read_text())]
    sources = sorted((ROOT / "src").rglob("*.rs"))
    wrong += [f"{source.relative_to(ROOT)}: {error}" for source in sources for error in in_literals(source)]
    wrong += [error for translation, original in TRANSLATIONS.items() for error in in_translation(translation, original)]
    print(f"{count} commands of the documentation, and {len(PAGES)} pages: {len(wrong)} wrong")
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
