# Sourced by the scripts that build for others: the same source gives the same bytes, in any folder.
# shellcheck shell=bash

# static_target ARCH: the target of a static program that this machine can build, or nothing.
static_target() {
	case $1 in
	x86_64) echo x86_64-unknown-linux-gnu ;;
	aarch64) echo aarch64-unknown-linux-gnu ;;
	esac
}

# build_static ROOT TARGET OUTPUT: the program of the checkout ROOT, linked statically.
build_static() {
	local root=$1 target=$2 output=$3 sysroot
	sysroot=$(rustc --print sysroot)
	(
		cd -- "$root"
		SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
		export SOURCE_DATE_EPOCH
		# C code of dependencies, and Rust code, record the paths of their sources.
		local cargo=${CARGO_HOME:-$HOME/.cargo}
		export CFLAGS="-ffile-prefix-map=$cargo=/cargo -ffile-prefix-map=$root=/source"
		export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$root=/source --remap-path-prefix=$cargo=/cargo --remap-path-prefix=$sysroot=/rust"
		# With --target, the flags are not for procedural macros, which cannot be static.
		cargo build --quiet --release --locked --bin voice-sync --target "$target"
		install -D "${CARGO_TARGET_DIR:-target}/$target/release/voice-sync" "$output"
	)
}
