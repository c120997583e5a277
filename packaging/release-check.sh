#!/usr/bin/env bash
# usage: release-check.sh OLD.deb NEW.deb [ROOT_FOLDER]
#
# Installs the agent's package, upgrades it, removes it, installs it again and purges it, and shows that state and configuration
# stay when they should and that nothing is left at the end. In ROOT_FOLDER by chroot, for example one for 64-bit ARM, whose
# programs the kernel gives to QEMU (Debian: qemu-user-static with binfmt-support):
#
#   debootstrap --arch=arm64 --variant=minbase --include=adduser,init-system-helpers bookworm ROOT_FOLDER
#
# Without it on this machine, which must not have the agent. Needs root. Services are not started: there is no init in a chroot.
set -euo pipefail
old=$1 new=$2 root=${3:-}

fail() {
    echo "release-check.sh: $*" >&2
    exit 1
}
inside() { if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi; }
state=$root/var/lib/skerry options=$root/etc/default/skerry-agent
for place in "$state" "$root/usr/bin/skerry-agent"; do
    [ ! -e "$place" ] || fail "the agent is installed there: it would be purged"
done

# Every file that a package could leave behind, and every user and group. dpkg's own records are not the package's.
snapshot() {
    inside find /etc /usr /var/lib /lib/systemd -xdev 2>/dev/null |
        grep -vE '^/var/lib/(dpkg|apt|systemd/deb-systemd-helper-[a-z]+)(/|$)|^/var/lib/systemd$|/__pycache__' | LC_ALL=C sort
    inside getent passwd
    inside getent group
}
install_package() {
    cp "$1" "$root/tmp/skerry-agent.deb"
    inside dpkg --install --force-confold /tmp/skerry-agent.deb >/dev/null
    rm "$root/tmp/skerry-agent.deb"
}

before=$(snapshot)
install_package "$old"
inside getent passwd skerry-agent >/dev/null || fail "there is no user"
[ "$(inside stat -c '%U %G %a' /var/lib/skerry)" = 'skerry-agent skerry-agent 750' ] || fail "the state folder is not the user's alone"
inside skerry-agent --version || fail "the program does not run"
[ -L "$root/etc/systemd/system/multi-user.target.wants/skerry-agent.service" ] || fail "the service is not enabled"

echo identity >"$state/identity.json"
echo 'SKERRY_AGENT_OPTIONS="--bandwidth 100000"' >"$options"
install_package "$new"
[ "$(cat "$state/identity.json")" = identity ] || fail "the upgrade lost the identity"
grep -q bandwidth "$options" || fail "the upgrade lost the configuration"

inside dpkg --remove skerry-agent >/dev/null
[ ! -e "$root/usr/bin/skerry-agent" ] || fail "the program is still there"
[ "$(cat "$state/identity.json")" = identity ] || fail "a removal took the identity"

install_package "$new"
[ -L "$root/etc/systemd/system/multi-user.target.wants/skerry-agent.service" ] || fail "the service is not enabled again"
[ ! -L "$root/etc/systemd/system/skerry-agent.service" ] || fail "the service is still masked"

inside dpkg --purge skerry-agent >/dev/null
after=$(snapshot)
left=$(diff <(echo "$before") <(echo "$after")) || fail "not as it was: $left"
echo "installed, upgraded, removed, installed again and purged; nothing is left"
