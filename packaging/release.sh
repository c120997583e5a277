#!/usr/bin/env bash
# usage: release.sh [OUT_FOLDER] [TARGET...]     default: packaging/out, all three targets
#
# Builds what a release of the agent consists of: a tarball and a Debian package for each target, the bill of materials
# (CycloneDX), SHA256SUMS, and a signature over them. With SIGNING_KEY=FILE (an OpenSSH ed25519 key, or the public half of one
# that an agent or a token holds) the sums are signed; without it the release is unsigned, and says so.
#
# Whoever installs checks with what every machine has:
#   ssh-keygen -Y verify -f allowed_signers -I releases -n skerry-release -s SHA256SUMS.sig < SHA256SUMS && sha256sum -c SHA256SUMS
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-packaging/out}
shift || true
targets=("$@")
[ ${#targets[@]} = 0 ] && targets=(x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf)
profile=${SKERRY_PROFILE:-dist}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
# The same sources give the same program, wherever they lie.
export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=/skerry --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
built=${CARGO_TARGET_DIR:-target}
host=$(rustc -vV | sed -n 's/^host: //p')

mkdir -p "$out"
out=$(realpath "$out")
manual=$(realpath packaging)/generated
rm -rf "$manual"
RUSTFLAGS='' cargo run --quiet -p skerry-agent --example manual -- "$manual"

for target in "${targets[@]}"; do
    if [ "$target" = "$host" ]; then
        cargo build --profile "$profile" -p skerry-agent --target "$target"
    else
        packaging/cross.sh "$target" build --profile "$profile" -p skerry-agent
    fi
    packaging/tarball.sh "$built/$target/$profile/skerry-agent" "$target" "$manual" "$out"
    packaging/deb.sh "$built/$target/$profile/skerry-agent" "$target" "$manual" "$out"
    # What is linked in depends on the target.
    packaging/sbom.py "$target" >"$out/skerry-agent-$target.cdx.json"
done

cd "$out"
sha256sum -- *.tar.gz *.deb *.cdx.json >SHA256SUMS
if [ -n "${SIGNING_KEY:-}" ]; then
    rm -f SHA256SUMS.sig
    ssh-keygen -q -Y sign -f "$SIGNING_KEY" -n skerry-release SHA256SUMS
else
    echo "release.sh: not signed; give SIGNING_KEY=FILE" >&2
fi
ls -l
