#!/bin/sh
# Installs the agent from the folder in which this script lies, or takes it off again.
#
#   ./install.sh               installs or upgrades; identity and bundles stay
#   ./install.sh --uninstall   takes the program off; identity and bundles stay for a later installation
#   ./install.sh --purge       takes everything off: program, identity, bundles, user
#
# DESTDIR=/some/folder installs below that folder and touches neither users nor services: for images, and to look first.
# Invariant: each file is replaced as a whole, so a power cut leaves the old program or the new one.
set -eu

root=${DESTDIR:-}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
state=/var/lib/skerry
unit=skerry-agent.service

say() { printf '%s\n' "$*"; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
# On a machine of its own, not in an image.
live() { [ -z "$root" ]; }
systemd() { live && [ -d /run/systemd/system ]; }

# What is installed, by its place below the root; install and uninstall read the same list.
files() {
    cat <<'LIST'
bin/skerry-agent 0755 /usr/bin/skerry-agent
systemd/skerry-agent.service 0644 /etc/systemd/system/skerry-agent.service
completions/skerry-agent.bash 0644 /usr/share/bash-completion/completions/skerry-agent
completions/_skerry-agent 0644 /usr/share/zsh/site-functions/_skerry-agent
completions/skerry-agent.fish 0644 /usr/share/fish/vendor_completions.d/skerry-agent.fish
LIST
    [ ! -e "$here/systemd/interpreter.conf" ] ||
        say "systemd/interpreter.conf 0644 /etc/systemd/system/$unit.d/interpreter.conf"
    for page in "$here"/man/*.1; do
        page=${page##*/}
        say "man/$page 0644 /usr/share/man/man1/$page"
    done
}

put() { # put SOURCE MODE PLACE
    place=$root$3
    mkdir -p "$(dirname -- "$place")"
    cp -- "$here/$1" "$place.new"
    chmod "$2" "$place.new"
    mv -f -- "$place.new" "$place"
}

make_user() {
    getent passwd skerry-agent >/dev/null 2>&1 && return
    if command -v useradd >/dev/null; then
        useradd --system --user-group --no-create-home --home-dir "$state" --shell /usr/sbin/nologin skerry-agent
    elif command -v adduser >/dev/null; then
        # BusyBox.
        adduser -S -D -H -h "$state" -s /bin/false skerry-agent
    else
        die "there is neither useradd nor adduser: make a user and group skerry-agent, then run this again"
    fi
}

install_all() {
    files | while read -r source mode place; do put "$source" "$mode" "$place"; done
    # A configuration that somebody has changed stays.
    if [ ! -e "$root/etc/default/skerry-agent" ]; then
        put skerry-agent.default 0644 /etc/default/skerry-agent
    fi
    if live; then
        make_user
        if [ ! -d "$state" ]; then
            mkdir -p "$state"
            chmod 0750 "$state"
        fi
        chown skerry-agent: "$state"
    else
        mkdir -p "$root$state"
    fi
    if systemd; then
        systemctl daemon-reload
        systemctl enable --quiet "$unit"
        # Not enrolled yet: the unit's condition keeps it from starting, which is no failure.
        systemctl restart "$unit"
    fi
    say "installed $("$root/usr/bin/skerry-agent" --version) to $root/usr/bin"
}

uninstall() {
    if systemd; then
        systemctl disable --quiet --now "$unit" 2>/dev/null || true
    fi
    files | while read -r _ _ place; do
        rm -f -- "$root$place"
        # Folders that only this program needed; `rmdir` leaves alone whatever is not empty.
        rmdir -p -- "$(dirname -- "$root$place")" 2>/dev/null || true
    done
    if systemd; then systemctl daemon-reload; fi
}

if live && [ "$(id -u)" != 0 ]; then die "this needs root: sudo $0 $*"; fi
case ${1:-} in
'')
    install_all
    ;;
--uninstall)
    uninstall
    say "taken off; identity and bundles are still in $root$state (--purge takes them too)"
    ;;
--purge)
    uninstall
    rm -f -- "$root/etc/default/skerry-agent"
    rm -rf -- "$root$state"
    if live && getent passwd skerry-agent >/dev/null 2>&1; then
        if command -v userdel >/dev/null; then userdel skerry-agent; else deluser skerry-agent; fi
    fi
    say "taken off, with identity, bundles and user"
    ;;
*)
    sed -n '2,9p' "$0" >&2
    exit 2
    ;;
esac
