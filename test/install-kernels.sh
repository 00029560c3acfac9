#!/bin/bash
# install-kernels.sh CACHE DEST: copies the kernels that CACHE has to DEST, where package boot finds them.
set -euo pipefail
for name in hyperkernel stock; do
	[[ -f $1/$name/kernel ]] || continue
	dir=$(basename "$(readlink -f "$1/$name")")
	mkdir -p "$2"
	rm -rf "$2/.$dir.new"
	cp -a "$1/$dir" "$2/.$dir.new"
	rm -rf "${2:?}/$dir"
	mv -T "$2/.$dir.new" "$2/$dir"
	ln -sfn "$dir" "$2/$name"
done
