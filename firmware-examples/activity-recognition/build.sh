#!/usr/bin/env bash
# Builds steps/features.wasm and steps/label.wasm from their sources and writes steps/SHA256SUMS.
#
# Needs (once):  rustup target add wasm32-unknown-unknown
#                cargo install wasm-tools --locked
# From outside:  CARGO              cargo to use, for example CARGO="cargo +nightly"
#                WASM_TOOLS         wasm-tools to use
#                CARGO_TARGET_DIR   where to build; default steps/target
#                CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER   for a toolchain without rust-lld, for example wasm-ld
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/steps"

read -ra cargo <<<"${CARGO:-cargo}"
wasm_tools=${WASM_TOOLS:-wasm-tools}
target_dir=${CARGO_TARGET_DIR:-target}
command -v "$wasm_tools" >/dev/null || { echo "wasm-tools is missing; install it with: cargo install wasm-tools --locked" >&2; exit 1; }

# Paths of this machine (panic messages) stay out of the result.
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$PWD=steps --remap-path-prefix=$home=cargo${RUSTFLAGS:+ $RUSTFLAGS}"
"${cargo[@]}" build --locked --release --target wasm32-unknown-unknown

for step in features label; do
    core=$target_dir/wasm32-unknown-unknown/release/$step.wasm
    "$wasm_tools" component new "$core" | "$wasm_tools" strip --all -o "$step.wasm"
    "$wasm_tools" validate "$step.wasm"
    # The only import is the interface of types: it holds nothing to call.
    imports=$("$wasm_tools" component wit "$step.wasm" | grep '^  import ')
    if [ "$imports" != "  import skerry:pipeline/types@1.0.0;" ]; then
        echo "$step.wasm imports more than types, which the sandbox refuses: $imports" >&2
        exit 1
    fi
done
sha256sum features.wasm label.wasm | tee SHA256SUMS
