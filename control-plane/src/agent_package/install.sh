#!/bin/sh
# Installs the Skerry agent on this device and enrols it. Made by a control plane for one enrolment token; read it before you
# run it. It fails closed: nothing is installed that has another digest than the one written here, and nothing runs at all
# if this file is not complete. It can be run again: what is installed is upgraded, and a device that is enrolled stays who it is.
#
#   sh install.sh                installs, enrols, starts
#   sh install.sh --uninstall    takes the program off; identity and bundles stay for a later installation
#   sh install.sh --purge        takes everything off: program, service, user, identity, bundles
#
#   SKERRY_DEVICE_ID=kitchen-1   the device's id; without it the control plane chooses one
#   DESTDIR=/some/folder         works below that folder, with the tarball; starts nothing, needs no root
set -eu
umask 022

#VALUES#
say() { printf '==> %s\n' "$*"; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# amd64, arm64 or armhf: what programs run here, which is not what the kernel is on many Raspberry Pis.
architecture() {
    if have dpkg; then
        dpkg --print-architecture && return
    fi
    bits=$(getconf LONG_BIT 2>/dev/null || echo unknown)
    case $(uname -m)-$bits in
    x86_64-64) echo amd64 ;;
    aarch64-64) echo arm64 ;;
    aarch64-32 | armv7l-* | armv8l-*) echo armhf ;;
    *) die "there is no agent for $(uname -m) with $bits bits" ;;
    esac
}

# The packages are linked against the GNU C library.
check_libc() {
    version=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
    # A small image has no getconf; glibc's ldd says its version at the end of its first line.
    [ -n "$version" ] || version=$(ldd --version 2>/dev/null | sed -n '1s/.*[^0-9.]\(2\.[0-9][0-9]*\)[.0-9]*$/\1/p')
    case $version in
    '') die "this system has no GNU C library (musl, uClibc?): build the agent for it" ;;
    [01].* | 2.[0-9] | 2.[0-9].* | 2.[12][0-9]* | 2.3[0-3]*)
        die "glibc $version is too old: the agent needs 2.34 or newer" ;;
    esac
}

fetch() { # fetch PATH FILE
    printf '%s\n' "$ANCHOR" >"$work/anchor.pem"
    # No other certificate counts, and no other protocol.
    curl --fail --silent --show-error --proto '=https' --cacert "$work/anchor.pem" --output "$2" "$SERVER$1" ||
        die "cannot download $SERVER$1"
}

# Leaves the package for this architecture and format in $package.
download() { # download ARCHITECTURE FORMAT
    row=$(printf '%s\n' "$PACKAGES" | grep "^$1 $2 ") ||
        die "the control plane has no $2 for $1: give it one with: skerry agent-package publish FILE"
    file=$(echo "$row" | cut -d' ' -f3)
    size=$(echo "$row" | cut -d' ' -f4)
    digest=$(echo "$row" | cut -d' ' -f5)
    package=$work/$file
    say "downloading $file ($size bytes)"
    fetch "/agent-packages/$file" "$package"
    echo "$digest  $package" | sha256sum -c - >/dev/null 2>&1 ||
        die "$file has another SHA-256 than $digest: it was changed on its way, or replaced meanwhile; get the line anew"
}

install_deb() {
    say "installing $file with dpkg"
    # What it depends on (libc6, libgcc-s1, adduser) is on every Debian; apt brings it if not.
    DEBIAN_FRONTEND=noninteractive dpkg --install --force-confold "$package" >"$work/log" 2>&1 ||
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --fix-broken >>"$work/log" 2>&1 || {
        cat "$work/log" >&2
        die "dpkg failed"
    }
}

install_tarball() {
    say "installing $file below ${DESTDIR:-/}"
    mkdir "$work/unpacked"
    tar -xzf "$package" -C "$work/unpacked"
    folder=$(find "$work/unpacked" -mindepth 1 -maxdepth 1 -type d)
    "$folder/install.sh" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        die "the installation failed"
    }
}

# The agent's files belong to its user from the beginning.
as_agent() {
    if [ -n "${DESTDIR:-}" ]; then
        "$@"
    elif have runuser; then
        runuser -u skerry-agent -- "$@"
    else
        # No argument of ours has a space.
        su -s /bin/sh skerry-agent -c "$*"
    fi
}

enroll() {
    if [ -e "$state/identity.json" ]; then
        say "this device is enrolled already and stays who it is"
        return
    fi
    say "enrolling at $SERVER"
    # Not as an argument: everybody on the machine can read those.
    export SKERRY_ENROLL_TOKEN="$TOKEN"
    # shellcheck disable=SC2086 # either nothing or two words
    as_agent "$agent" enroll --server "$SERVER" --state-dir "$state" ${SKERRY_DEVICE_ID:+--device-id $SKERRY_DEVICE_ID} ||
        die "the enrolment failed; the agent is installed, and this can be run again"
    unset SKERRY_ENROLL_TOKEN
}

start() {
    systemctl restart skerry-agent.service
    say "waiting until it is connected and has what it should have"
    "$agent" status --state-dir "$state" --wait 120s >/dev/null || {
        "$agent" doctor --state-dir "$state" || true
        die "it is installed and enrolled, and is not in sync after two minutes: see above, and journalctl -u skerry-agent"
    }
}

# What was installed takes itself off: dpkg's package, or the tarball's script, which stays beside its list of files.
remove() { # remove --uninstall|--purge
    if [ -z "${DESTDIR:-}" ] && have dpkg && dpkg -s skerry-agent >/dev/null 2>&1; then
        case $1 in --purge) dpkg --purge skerry-agent ;; *) dpkg --remove skerry-agent ;; esac
    elif [ -x "${DESTDIR:-}$installer" ]; then
        "${DESTDIR:-}$installer" "$1"
    else
        die "there is no agent to take off below ${DESTDIR:-/}"
    fi
    say "done. Its place in the fleet is free when you have run: skerry device revoke DEVICE"
}

main() {
    state=${DESTDIR:-}/var/lib/skerry
    installer=/usr/share/skerry-agent/install.sh
    agent=${DESTDIR:-}/usr/bin/skerry-agent
    case ${SKERRY_DEVICE_ID:-} in *[!A-Za-z0-9._-]*) die "SKERRY_DEVICE_ID has characters that do not belong there" ;; esac
    [ -n "${DESTDIR:-}" ] || [ "$(id -u)" = 0 ] || die "this needs root: put sudo before sh"
    case ${1:-} in
    '') ;;
    --uninstall | --purge)
        remove "$1"
        return
        ;;
    *) die "unknown option $1; the first lines of this script say what there is" ;;
    esac
    for program in curl sha256sum tar; do have "$program" || die "this needs $program; install it first"; done
    check_libc
    machine=$(architecture)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT

    if [ -z "${DESTDIR:-}" ] && have dpkg && [ -d /run/systemd/system ]; then
        download "$machine" deb
        install_deb
    else
        download "$machine" tarball
        install_tarball
    fi
    enroll
    if [ -z "${DESTDIR:-}" ] && [ -d /run/systemd/system ]; then
        start
        say "done: $("$agent" --version) runs. Look: systemctl status skerry-agent, skerry-agent status"
    else
        say "done: $("$agent" --version) is installed and enrolled. Start it: $agent run --state-dir $state"
    fi
}

main "$@"
