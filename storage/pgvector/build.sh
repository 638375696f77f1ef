#!/usr/bin/env bash
# Builds vector.so (pgvector 0.8.0, for PostgreSQL 17) for linux-x64 and linux-arm64 from Debian's source package.
#
# Usage: storage/pgvector/build.sh [work directory]      (as root on Debian or Ubuntu; needs gcc, xz, dpkg)
# The cross compiler is installed by apt when it is missing. The host's own apt lists are not touched: the suite that has the
# source is read through a private list directory, from the mirror that this machine's own apt sources already name.
set -euo pipefail

suite=trixie version=0.8.0 postgres_major=17
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$(mktemp -d)}
mkdir -p "$work"/{lists/partial,cache/archives/partial,sources.list.d,packages,headers} && cd "$work"

# The mirror of the distribution's main archive: the first "debian" URI of the machine's own sources.
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
  sed -nE 's/^(URIs:|deb( \[[^]]*\])?)[[:space:]]+([^[:space:]]+\/debian\/?)([[:space:]].*)?$/\3/p' | head -n 1)
[ -n "$mirror" ] || { echo "build.sh: no Debian mirror among this machine's apt sources" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
printf 'deb [signed-by=%s] %s %s main\ndeb-src [signed-by=%s] %s %s main\n' \
  "$keyring" "$mirror" "$suite" "$keyring" "$mirror" "$suite" > sources.list
apt_private=(-o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/sources.list.d"
  -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root -o APT::Architectures::=arm64)

if ! command -v aarch64-linux-gnu-gcc > /dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross
fi

apt-get "${apt_private[@]}" update -qq
# Source: the signed archive vouches for the tarball's hash; Debian's packaging on top of it is not used.
(cd packages && apt-get "${apt_private[@]}" source --download-only -qq "pgvector=$version-1" 2>/dev/null ||
  apt-get "${apt_private[@]}" source --download-only -qq pgvector)
tar xf packages/pgvector_$version.orig.tar.* && source_dir=$(find . -maxdepth 1 -type d -name "pgvector-$version*" | head -n 1)
# Headers differ by architecture (pg_config.h), so each architecture gets its own package.
for architecture in amd64 arm64; do
  (cd packages && apt-get "${apt_private[@]}" download -qq "postgresql-server-dev-$postgres_major:$architecture")
  dpkg -x packages/postgresql-server-dev-${postgres_major}_*_$architecture.deb "headers/$architecture"
done

# Baseline instruction sets (x86-64, armv8-a): pgvector's own Makefile says -march=native, which would break on older CPUs.
# Faster distance functions are chosen at run time where pgvector knows how (its VECTOR_DISPATCH).
build() { # <our platform> <Debian architecture> <compiler> <strip>
  local platform=$1 include=$work/headers/$2/usr/include/postgresql output=$work/out/$1 file
  mkdir -p "$output/objects"
  for file in "$source_dir"/src/*.c; do
    "$3" -O2 -ftree-vectorize -fassociative-math -fno-signed-zeros -fno-trapping-math -fno-strict-aliasing -fwrapv \
      -fexcess-precision=standard -fPIC -fvisibility=hidden -ffile-prefix-map="$work=." \
      -I"$include/$postgres_major/server" -I"$include/internal" -D_GNU_SOURCE -c "$file" -o "$output/objects/$(basename "$file" .c).o"
  done
  "$3" -shared -Wl,-z,relro,-z,now -Wl,--build-id=none "$output"/objects/*.o -lm -o "$output/vector.so"
  "$4" --strip-unneeded "$output/vector.so"
  mkdir -p "$here/$platform" && install -m 0644 "$output/vector.so" "$here/$platform/vector.so"
}
build linux-x64 amd64 gcc strip
build linux-arm64 arm64 aarch64-linux-gnu-gcc aarch64-linux-gnu-strip

install -m 0644 "$source_dir/vector.control" "$here/vector.control"
install -m 0644 "$source_dir/sql/vector.sql" "$here/vector--$version.sql"
install -m 0644 "$source_dir/LICENSE" "$here/LICENSE"
(cd "$here" && sha256sum linux-x64/vector.so linux-arm64/vector.so vector.control "vector--$version.sql" > SHA256SUMS)
for platform in linux-x64 linux-arm64; do
  echo "$platform needs: $(objdump -T "$here/$platform/vector.so" 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tr '\n' ' ')"
done
cat "$here/SHA256SUMS"
