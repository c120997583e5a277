#!/usr/bin/env bash
# usage: deb.sh BINARY TARGET MANUAL_FOLDER OUT_FOLDER
# Makes the Debian package of the agent for one target, with dpkg's own tool: nothing is guessed from the machine that builds,
# so a package for another architecture is the same as one made there. The same input gives the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 target=$2 manual=$3 out=$4
version=${SKERRY_VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}-1
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
case $target in
x86_64-*) architecture=amd64 ;;
aarch64-*) architecture=arm64 ;;
armv7-*) architecture=armhf ;;
*) echo "deb.sh: unknown target $target" >&2 && exit 2 ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
put() { install -D -m "$1" "$2" "$work/$3"; }
# mktemp's folder is for its owner only, and would become the root of the package.
chmod 0755 "$work"
put 0755 "$binary" usr/bin/skerry-agent
put 0644 packaging/systemd/skerry-agent.service usr/lib/systemd/system/skerry-agent.service
if [ "$architecture" = armhf ]; then
    put 0644 packaging/systemd/interpreter.conf usr/lib/systemd/system/skerry-agent.service.d/interpreter.conf
fi
put 0644 packaging/debian/skerry-agent.default etc/default/skerry-agent
put 0644 packaging/debian/copyright usr/share/doc/skerry-agent/copyright
for page in "$manual"/man/*.1; do
    put 0644 "$page" "usr/share/man/man1/$(basename "$page")"
done
gzip -9n "$work"/usr/share/man/man1/*.1
put 0644 "$manual/bash/skerry-agent.bash" usr/share/bash-completion/completions/skerry-agent
put 0644 "$manual/zsh/_skerry-agent" usr/share/zsh/vendor-completions/_skerry-agent
put 0644 "$manual/fish/skerry-agent.fish" usr/share/fish/vendor_completions.d/skerry-agent.fish

mkdir -m 0755 "$work/DEBIAN"
for script in postinst prerm postrm; do put 0755 "packaging/debian/$script" "DEBIAN/$script"; done
echo /etc/default/skerry-agent >"$work/DEBIAN/conffiles"
(cd "$work" && find etc usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" \
    -e "s/@SIZE@/$(du -sk --apparent-size --exclude=DEBIAN "$work" | cut -f1)/" \
    packaging/debian/control.in >"$work/DEBIAN/control"

mkdir -p "$out"
package=$(realpath "$out")/skerry-agent_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$work" "$package" >/dev/null
echo "$package"
