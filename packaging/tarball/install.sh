#!/bin/sh
# Installs the agent from the folder in which this script lies, or takes it off again.
#
#   ./install.sh               installs or upgrades; identity and bundles stay
#   ./install.sh --uninstall   takes the program off; identity and bundles stay for a later installation
#   ./install.sh --purge       takes everything off: program, identity, bundles, user
#
# DESTDIR=/some/folder works below that folder and touches neither users nor services: for images, and to look first. A copy of
# this script stays in /usr/share/skerry-agent with the list of what it has installed, and takes exactly that off.
# Invariant: each file is replaced as a whole, so a power cut leaves the old program or the new one.
set -eu

root=${DESTDIR:-}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
state=/var/lib/skerry
unit=skerry-agent.service
own=/usr/share/skerry-agent

say() { printf '%s\n' "$*"; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
# On a machine of its own, not in an image.
live() { [ -z "$root" ]; }
systemd() { live && [ -d /run/systemd/system ]; }

# What an installation consists of: its name here, mode, and place below the root.
files() {
    cat <<'LIST'
install.sh 0755 /usr/share/skerry-agent/install.sh
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

# The places of an installation that is there.
installed() { [ ! -e "$root$own/installed" ] || cat "$root$own/installed"; }

remove_file() {
    rm -f -- "$root$1"
    # Folders that only this program needed; `rmdir` leaves alone whatever is not empty.
    rmdir -p -- "$(dirname -- "$root$1")" 2>/dev/null || true
}

install_all() {
    [ -e "$here/bin/skerry-agent" ] || die "there is nothing to install here: unpack the tarball, and run its install.sh"
    files | while read -r source mode place; do put "$source" "$mode" "$place"; done
    # What an older version had and this one has not.
    installed | while read -r place; do
        files | grep -qF " $place" || remove_file "$place"
    done
    files | sed 's/.* //' >"$root$own/installed.new"
    mv -f -- "$root$own/installed.new" "$root$own/installed"
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
    # Below DESTDIR it may be for another processor.
    if live; then "$root/usr/bin/skerry-agent" --version; fi
    say "installed to $root/usr/bin"
}

uninstall() {
    if systemd; then
        systemctl disable --quiet --now "$unit" 2>/dev/null || true
    fi
    [ -e "$root$own/installed" ] || die "nothing is installed below ${root:-/} by this script"
    # Read as a whole first: the list and this script are among what goes.
    for place in $(installed) "$own/installed"; do remove_file "$place"; done
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
    sed -n '2,11p' "$0" >&2
    exit 2
    ;;
esac
