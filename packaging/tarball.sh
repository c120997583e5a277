#!/usr/bin/env bash
# usage: tarball.sh BINARY TARGET MANUAL_FOLDER OUT_FOLDER
# Makes the tarball of the agent for one target. The same input gives the same bytes: names sorted, owners and times fixed.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 target=$2 manual=$3 out=$4
version=${SKERRY_VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
name=skerry-agent-$version-$target

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/$name
mkdir -p "$top"/{bin,systemd,man,completions} "$out"
install -m 0755 "$binary" "$top/bin/skerry-agent"
install -m 0755 packaging/tarball/install.sh "$top/install.sh"
install -m 0644 packaging/systemd/skerry-agent.service "$top/systemd/"
case $target in armv7-*) install -m 0644 packaging/systemd/interpreter.conf "$top/systemd/" ;; esac
install -m 0644 packaging/debian/skerry-agent.default "$top/skerry-agent.default"
install -m 0644 "$manual"/man/*.1 "$top/man/"
install -m 0644 "$manual"/bash/skerry-agent.bash "$manual"/zsh/_skerry-agent "$manual"/fish/skerry-agent.fish "$top/completions/"

archive=$(realpath "$out")/$name.tar.gz
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --directory "$work" "$name" | gzip -9n >"$archive"
echo "$archive"
