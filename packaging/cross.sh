#!/usr/bin/env bash
# usage: cross.sh TARGET COMMAND...    for example: cross.sh aarch64-unknown-linux-gnu test -p skerry-agent --lib
#
# Runs `cargo COMMAND... --target TARGET` with a compiler that can: the active one after `rustup target add TARGET`; or, where
# rustup cannot download, the compiler of this Debian release with its standard library for the target (arm64 only), unpacked
# into a folder of its own and known to rustup as `skerry-debian`. Linker and emulator come from Debian in both cases, and
# .cargo/config.toml names them. `cross.sh TARGET` alone only sets up.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
shift
home=${SKERRY_CROSS_HOME:-$HOME/.cache/skerry-cross}
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
say() { echo "cross.sh: $*" >&2; }

case $target in
aarch64-unknown-linux-gnu) packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross) emulator=qemu-aarch64-static debian=arm64 ;;
armv7-unknown-linux-gnueabihf) packages=(gcc-arm-linux-gnueabihf libc6-dev-armhf-cross) emulator=qemu-arm-static debian=armhf ;;
*)
    say "unknown target $target"
    exit 2
    ;;
esac

install_tools() {
    local missing=()
    local package
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    command -v "$emulator" >/dev/null || missing+=(qemu-user-static)
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

has_target() { [ -d "$(rustc --print target-libdir --target "$target")" ]; }

# The compiler of this Debian release. Its security suite carries a new one (for the browsers), for amd64 and arm64.
debian_toolchain() {
    local folder=$home/skerry-debian
    if [ ! -e "$folder/complete" ]; then
        [ "$debian" = arm64 ] || {
            say "Debian has no usable standard library for $target: run this where rustup can download it"
            exit 1
        }
        say "rustup cannot download the target: taking Debian's compiler"
        rm -rf "$folder" "$home/unpacked"
        mkdir -p "$folder"/{bin,lib,libexec} "$home/debs"
        $as_root dpkg --add-architecture arm64
        $as_root apt-get update -qq
        local library llvm
        library=$(first_dependency libstd-rust-web-dev libstd-rust-web-)
        llvm=$(first_dependency "$library" libllvm)
        DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "$llvm" >/dev/null
        (cd "$home/debs" && apt-get download -qq rustc-web "$library:amd64" libstd-rust-web-dev:amd64 libstd-rust-web-dev:arm64)
        local deb
        for deb in "$home"/debs/*.deb; do dpkg-deb -x "$deb" "$home/unpacked"; done
        mv "$home"/unpacked/usr/lib/rustlib "$home"/unpacked/usr/lib/*/librustc_driver*.so "$folder/lib/"
        mv "$home"/unpacked/usr/bin/rustc "$home"/unpacked/usr/bin/rustdoc "$folder/libexec/"
        local program
        for program in rustc rustdoc; do
            cat >"$folder/bin/$program" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH="$folder/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "$folder/libexec/$program" "\$@"
WRAPPER
            chmod +x "$folder/bin/$program"
        done
        # Debian's cargo is older than this workspace needs; the host's drives any compiler.
        ln -sfn "$(rustup which cargo)" "$folder/bin/cargo"
        rm -rf "$home/debs" "$home/unpacked"
        touch "$folder/complete"
    fi
    rustup toolchain link skerry-debian "$folder"
}

# The first package in the dependencies of $1 whose name begins with $2.
first_dependency() {
    apt-cache show "$1" | sed -n 's/^Depends: //p' | head -n 1 | tr ',' '\n' | sed -n "s/^ *\($2[^ ]*\).*/\1/p" | head -n 1
}

install_tools
toolchain=()
if ! has_target; then
    # Without a network rustup waits long before it gives up.
    timeout 300 rustup target add "$target" >&2 || {
        debian_toolchain
        toolchain=(+skerry-debian)
    }
fi
[ $# = 0 ] && exit
command=$1
shift
exec cargo "${toolchain[@]}" "$command" --target "$target" "$@"
