#!/bin/sh
# Leaves of a root file system what a sandboxed program may see: programs, libraries and certificates. No users, no state of packages,
# nothing that a host or a build put into /etc. Used by the Dockerfile and by build-without-hub.sh alike.
# usage: trim-root.sh FROM TO
set -eu
from=$1 to=$2

mkdir -p "$to/etc/ssl" "$to/dev" "$to/proc" "$to/sys" "$to/work"
install -d -m 1777 "$to/tmp"
for name in usr bin sbin lib lib32 lib64 libx32 etc/alternatives etc/ssl/certs etc/ld.so.cache; do
  if [ -e "$from/$name" ] || [ -L "$from/$name" ]; then cp -a "$from/$name" "$to/$name"; fi
done
# With no setuid program there is nothing to become root by, even where no_new_privs were forgotten.
find "$to/usr" -xdev -type f -perm /6000 -exec chmod a-s {} +
rm -rf "$to/usr/share/doc" "$to/usr/share/man" "$to/usr/share/info" "$to/usr/share/locale" "$to/usr/local/sbin"
echo 'nobody:x:65534:65534:nobody:/:/usr/sbin/nologin' >"$to/etc/passwd"
echo 'nogroup:x:65534:' >"$to/etc/group"
