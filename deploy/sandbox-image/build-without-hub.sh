#!/usr/bin/env bash
# Builds the sandbox image from the packages of this machine's own apt sources, without any registry of images, and prints its id.
# Needs root, mmdebstrap and a Docker daemon (DOCKER_HOST is obeyed).
# usage: build-without-hub.sh [NAME, default openclaw/sandbox] [PACKAGES-FILE, default the one beside this script]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
name=${1:-openclaw/sandbox}
packages=$(paste -sd, "${2:-$here/packages}")

build=$(mktemp -d)
trap 'rm -rf --one-file-system "$build"' EXIT
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/{debian,ubuntu}.sources; do
  if [ -s "$file" ]; then sources+=("$file"); fi
done

mmdebstrap --quiet --mode=root --variant=essential --format=directory ${packages:+"--include=$packages"} \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --aptopt='APT::Install-Recommends "false"' "$suite" "$build/system" "${sources[@]}"
mkdir "$build/root"
sh "$here/trim-root.sh" "$build/system" "$build/root"
tar -C "$build/root" --numeric-owner -c . | docker import - "$name"
