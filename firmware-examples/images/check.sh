#!/usr/bin/env bash
# usage: check.sh TARBALL
#
# Runs the installation steps of the recipe and of the package with the tarball of a release, each in a folder of its own, and
# compares the files with those that the tarball's install.sh installs. Reads the rest for its syntax. Neither BitBake nor
# Buildroot runs.
set -euo pipefail
tarball=$(realpath "$1")
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    echo "check.sh: $*" >&2
    exit 1
}

mkdir "$work/unpacked"
tar -xzf "$tarball" -C "$work/unpacked"
source=$(find "$work/unpacked" -mindepth 1 -maxdepth 1 -type d)
DESTDIR=$work/tarball "$source/install.sh" >/dev/null
# Where a file of the tarball's installation belongs in an image: units are the distribution's, and nothing removes itself.
listed() { (cd "$1" && find . -type f -printf '%m %P\n' | LC_ALL=C sort -k2); }
wanted=$(listed "$work/tarball" | sed 's|etc/systemd/system/|usr/lib/systemd/system/|' | grep -v usr/share/skerry-agent/)

# The recipe's do_install is a shell function once BitBake has put its variables in.
recipe=$(echo yocto/meta-skerry/recipes-*/skerry-agent/*.bb)
steps=$(sed -n '/^do_install() {/,/^}/p' "$recipe" | sed '1d;$d')
[ -n "$steps" ] || fail "the recipe installs nothing"
S=$source D=$work/yocto bindir=/usr/bin systemd_system_unitdir=/usr/lib/systemd/system sysconfdir=/etc \
    mandir=/usr/share/man datadir=/usr/share bash -euo pipefail -c "$steps"
diff <(echo "$wanted" | LC_ALL=C sort -k2) <(listed "$work/yocto") || fail "the recipe installs other files"
case $source in *"-$(basename "$recipe" .bb | cut -d_ -f2)-"*) ;; *) fail "the recipe is for another version" ;; esac

# Buildroot's package is a makefile: its own two steps, run by make, with what Buildroot would define. An image for Buildroot has
# no manual and no shells to complete for.
{
    echo "include $PWD/buildroot/package/skerry-agent/skerry-agent.mk"
    # The folder of the target is what the steps call $(@D).
    # shellcheck disable=SC2016
    printf '%s/all:\n\t$(SKERRY_AGENT_INSTALL_TARGET_CMDS)\n\t$(SKERRY_AGENT_INSTALL_INIT_SYSTEMD)\n' "$source"
} >"$work/Makefile"
make --silent --file "$work/Makefile" BR2_x86_64=y INSTALL=install TARGET_DIR="$work/buildroot" generic-package=
diff <(echo "$wanted" | grep -v usr/share/ | LC_ALL=C sort -k2) <(listed "$work/buildroot") || fail "the package installs other files"
grep -q "^SKERRY_AGENT_VERSION = $(basename "$recipe" .bb | cut -d_ -f2)$" buildroot/package/skerry-agent/skerry-agent.mk ||
    fail "the package is for another version"

python3 - cloud-init/user-data >"$work/first-start.sh" <<'PYTHON'
import sys
import yaml

text = open(sys.argv[1], encoding="utf-8").read()
assert text.startswith("#cloud-config\n"), "cloud-init would not know what this is"
config = yaml.safe_load(text)
(file,) = config["write_files"]
assert [file["path"]] in config["runcmd"], "nothing runs the script"
print(file["content"])
PYTHON
sh -n "$work/first-start.sh"
echo "the recipe, the package and the tarball install the same files; cloud-init's file is whole"
