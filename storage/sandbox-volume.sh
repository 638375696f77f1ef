# Makes a tenant's sandbox directory a file system of its own, of a fixed size, in an image file; run as root, alone for this tenant (flock).
# Safe to repeat, and after a kill at any line: the image counts once it has its name, and what was there before goes after that only.
# Arguments: action directory prefix uid [bytes inodes]
#   mount  with a size: an image of that size, into which the directory's files, or an earlier image's, move; without: the image that is there
#   remove the directory is no mount any more, and there is no image
set -euo pipefail
action=$1 directory=$2 prefix=$3 uid=${4:-} bytes=${5:-} inodes=${6:-}
JOURNAL_BYTES=$((4 << 20)) INODE_BYTES=256 GROUP_BYTES=$((128 << 20)) GROUP_OVERHEAD=$((64 << 10)) MARGIN=$((2 << 20)) OWN_INODES=10
shopt -s nullglob

mounted_image() {
  local device
  device=$(findmnt -rn -o SOURCE --mountpoint "$directory") || return 0
  cat "/sys/block/$(basename "$device")/loop/backing_file" 2>/dev/null || { echo "another file system is mounted at $directory" >&2; return 1; }
}
# What a kill left of a try before.
clear_tries() {
  local place
  for place in "$prefix".new.d "$prefix".old.d; do
    mountpoint -q "$place" && umount "$place"
    [ -d "$place" ] && rmdir "$place"
  done
  rm -f "$prefix".new
}
mount_image() { mount -o loop,nosuid,nodev,noatime,discard "$1" "$2"; }

trap clear_tries EXIT
clear_tries
now=$(mounted_image)
if [ "$action" = remove ]; then
  # Programs of the tenant have ended; a file that somebody still holds open does not keep the rest.
  [ -z "$now" ] || umount -l "$directory"
  rm -f "$prefix".*.img
  exit 0
fi

images=("$prefix".*.img)
if [ -z "$bytes" ]; then
  image=${images[0]:-}
  [ -n "$image" ] || exit 0
else
  image=$prefix.$bytes.$inodes.img
fi
[ "$now" != "$image" ] || exit 0

if [ ! -e "$image" ]; then
  groups=$(((bytes + GROUP_BYTES - 1) / GROUP_BYTES))
  truncate -s $((bytes + JOURNAL_BYTES + inodes * INODE_BYTES + groups * GROUP_OVERHEAD + MARGIN)) "$prefix".new
  chmod 600 "$prefix".new
  mkfs.ext4 -q -F -b 4096 -I $INODE_BYTES -m 0 -N $((inodes + OWN_INODES)) -O ^resize_inode -J size=$((JOURNAL_BYTES >> 20)) "$prefix".new
  mkdir -m 700 "$prefix".new.d
  mount_image "$prefix".new "$prefix".new.d
  rmdir "$prefix".new.d/lost+found
  from=$directory
  if [ -z "$now" ] && [ -n "${images[0]:-}" ]; then
    from=$prefix.old.d
    mkdir -m 700 "$from"
    mount_image "${images[0]}" "$from"
  fi
  cp -a --one-file-system "$from/." "$prefix".new.d/
  chown "$uid:$uid" "$prefix".new.d
  chmod 700 "$prefix".new.d
  umount "$prefix".new.d
  [ "$from" = "$directory" ] || umount "$from"
  sync "$prefix".new
  mv "$prefix".new "$image"
  sync "$(dirname "$image")"
fi
[ -z "$now" ] || umount "$directory"
# These moved into the image; a run never starts while there is one and it is not mounted.
find "$directory" -xdev -mindepth 1 -delete
mount_image "$image" "$directory"
for other in "${images[@]}"; do [ "$other" = "$image" ] || rm -f "$other"; done
