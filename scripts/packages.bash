# Sourced by the other scripts: installs missing programs with the system's package manager.
# Uses only bash 3.2, the version of macOS.
# shellcheck shell=bash

fail() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# package_names MANAGER WHAT…
package_names() {
	local manager=$1 what
	shift
	for what; do
		case $manager-$what in
		apt-get-postgresql) echo postgresql ;;
		apt-get-redis) echo redis-server ;;
		*-pgbouncer) echo pgbouncer ;;
		*-openssl) echo openssl ;;
		apt-get-faketime) echo faketime ;;
		apt-get-python) echo python3 python3-venv ;;
		apt-get-static-libc) echo libc6-dev ;;
		apt-get-prometheus) echo prometheus prometheus-node-exporter ;;
		apt-get-dpkg-dev) echo dpkg-dev ;;
		apt-get-chromium | dnf-chromium) echo chromium ;;
		apt-get-sqlite) echo sqlite3 ;;
		dnf-postgresql) echo postgresql-server ;;
		# Newer Fedora and RHEL have only Valkey. The scripts find either program.
		dnf-redis) dnf -q info redis >/dev/null 2>&1 && echo redis || echo valkey ;;
		dnf-faketime) echo libfaketime ;;
		dnf-python) echo python3 python3-pip ;;
		dnf-static-libc) echo glibc-static ;;
		dnf-prometheus) echo golang-github-prometheus golang-github-prometheus-node-exporter ;;
		dnf-dpkg-dev) echo dpkg-dev ;;
		*-systemd) echo systemd ;;
		brew-postgresql) echo postgresql@17 ;;
		brew-redis) echo redis ;;
		brew-python) echo python ;;
		brew-prometheus) echo prometheus node_exporter ;;
		brew-dpkg-dev) echo dpkg ;;
		brew-chromium) echo chromium ;;
		dnf-sqlite | brew-sqlite) echo sqlite ;;
		esac
	done | tr '\n' ' '
}

# install_packages WHAT…, each of: postgresql pgbouncer redis faketime openssl python systemd static-libc prometheus dpkg-dev chromium sqlite
install_packages() {
	local manager names
	for manager in apt-get dnf brew ''; do
		if command -v "${manager:-true}" >/dev/null; then break; fi
	done
	[ -n "$manager" ] ||
		fail "missing: $*; there is no apt-get, dnf or brew; install it by hand"
	names=$(package_names "$manager" "$@")
	names=${names% }

	if [ "$manager" = brew ]; then
		# Homebrew refuses to run as root.
		[ "$EUID" -ne 0 ] || fail "missing: $*; as a user other than root, run: brew install $names"
		# shellcheck disable=SC2086 # the names are words
		brew install $names >&2 </dev/null || fail "missing: $*; this command failed: brew install $names"
		return
	fi

	local as_root=''
	if [ "$EUID" -ne 0 ]; then
		# -n: a test run must never wait for a password.
		sudo -n true 2>/dev/null ||
			fail "missing: $*; this needs root, or sudo without a password; run: sudo $manager install $names"
		as_root='sudo -n'
	fi
	echo "${0##*/}: installing $names" >&2
	# shellcheck disable=SC2086 # words
	case $manager in
	apt-get) $as_root bash -c "$(declare -f install_with_apt); install_with_apt $names" ;;
	dnf) $as_root dnf -y install $names ;;
	esac >&2 </dev/null || fail "missing: $*; this command failed: ${as_root:+sudo }$manager install $names"
}

# Debian's packages start their services, now and at every boot. The tests need only the programs, and must not leave a
# running server on a developer's machine.
# Runs as root in a separate shell, to which only this function is passed.
install_with_apt() {
	set -eu
	export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"
	policy=/usr/sbin/policy-rc.d
	clusters=/etc/postgresql-common/createcluster.conf
	saved=$clusters.voice-sync

	# Two test runs at once must not remove each other's policy file.
	exec 9>/run/lock/voice-sync-packages
	flock 9

	restore() {
		# Only our own policy file is removed, also one of an earlier run that was killed.
		if grep -qs voice-sync "$policy"; then rm -f "$policy"; fi
		if [ -e "$saved" ]; then mv -f "$saved" "$clusters"; fi
	}
	trap restore EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	restore
	get() { apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" 9>&-; }

	[ -e "$policy" ] || {
		printf '#!/bin/sh\n# voice-sync: only while it installs packages\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	}
	# Without fresh lists, the installation may still work. If not, it prints the reason.
	get update || true
	case " $* " in
	*' postgresql '*)
		# The setting must exist before the server's package reads it.
		get install --no-install-recommends postgresql-common
		cp -p "$clusters" "$saved"
		echo 'create_main_cluster = false' >>"$clusters"
		;;
	esac
	were_there=
	for service in redis-server pgbouncer prometheus prometheus-node-exporter; do
		if dpkg -s "$service" >/dev/null 2>&1; then were_there="$were_there $service "; fi
	done
	get install --no-install-recommends "$@"
	for service in redis-server pgbouncer prometheus prometheus-node-exporter; do
		case $were_there in *" $service "*) continue ;; esac
		if dpkg -s "$service" >/dev/null 2>&1; then update-rc.d "$service" disable; fi
	done
}
