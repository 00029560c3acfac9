#!/bin/bash
# deps.sh run|kernel: installs the Debian packages that are missing: those that Hyper runs and is
# tested with, or those that build HyperKernel. "run" also fetches the stock guest kernel and, where
# there is no docker client, one for the tests (extracted beside the system: no daemon is installed).
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${HYPER_CACHE:-$HOME/.cache/hyper}

case ${1-} in
run)
	packages=(
		qemu-system-x86 e2fsprogs xz-utils       # hyperd itself
		nftables iproute2 curl cpio erofs-utils  # oracles of the tests
		busybox-static                           # what test guests run
		mmdebstrap attr libcap2-bin              # test/images
	)
	;;
kernel) packages=(linux-source-6.12 gcc libc6-dev make flex bison bc libelf-dev xz-utils) ;;
*) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

missing=()
for p in "${packages[@]}"; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
if ((${#missing[@]})); then
	echo "deps: installs ${missing[*]}"
	((EUID == 0)) || { echo "deps: root is needed for that" >&2; exit 1; }
	export DEBIAN_FRONTEND=noninteractive
	# The lists of packages may be missing or too old for what the mirror still has.
	apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null; }
fi
[[ $1 == run ]] || exit 0

# A kernel that is there is good enough: apt is asked only when there is none.
[[ -f $cache/kernel/stock/kernel ]] || boot/build-kernel stock >/dev/null || { apt-get -qq update && boot/build-kernel stock >/dev/null; }

if ! command -v docker >/dev/null && [[ ! -x $cache/docker/usr/bin/docker ]]; then
	work=$(mktemp -d "$cache/.docker.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	# docker-cli where the client is a package of its own (Debian 13), else docker.io.
	package=docker.io
	[[ -z $(apt-cache show docker-cli 2>/dev/null) ]] || package=docker-cli
	echo "deps: fetches the docker client of $package"
	(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package")
	mkdir "$work/docker"
	dpkg-deb --fsys-tarfile "$work"/*.deb | tar -x -C "$work/docker" ./usr/bin/docker
	rm -rf "$cache/docker"
	mv -T "$work/docker" "$cache/docker"
fi
