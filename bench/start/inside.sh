#!/bin/sh
# inside.sh DIR CGROUPS LOWER... -- CMD...: runs CMD in the mount, network and
# PID namespaces it finds itself in, with each LOWER laid over the system: its
# usr over /usr (the first on top) and its etc over /etc. DIR takes what is
# written to /etc. CGROUPS "v1" takes cgroup v2's part of a hybrid tree away,
# which crun 1.8 refuses; "as-is" does not.
set -e
dir=$1 cgroups=$2 usr= etc=
shift 2
while [ "$1" != -- ]; do
	usr=$usr$1/usr:
	[ ! -d "$1/etc" ] || etc=$etc$1/etc:
	shift
done
shift
mkdir "$dir/etc" "$dir/etc.work"
mount -t overlay -o "lowerdir=$usr/usr" overlay /usr
mount -t overlay -o "lowerdir=$etc/etc,upperdir=$dir/etc,workdir=$dir/etc.work" overlay /etc
mount -t tmpfs tmpfs /run
if [ "$cgroups" = v1 ] && [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi
ip link set lo up
# PID 1 must reap what its children leave behind.
exec tini -- "$@"
