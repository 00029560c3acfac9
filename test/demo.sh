#!/bin/bash
# demo.sh: what make demo shows. A hyperd of its own on temporary directories runs the embedded hello and
# a real nginx, each in a virtual machine; a hyperd that is already running is not touched. Nothing of it is left,
# also when a step does not work. HYPER_ACCEL=kvm|tcg forces the accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
((EUID == 0)) || { echo "demo: root is needed (bridge and taps)" >&2; exit 1; }

work=$(mktemp -d /tmp/hyper-demo.XXXX)
export HYPER_HOST=unix://$work/run/hyper.sock PATH=$PWD/bin:$PATH
# Names of devices and rules of its own, beside those of a hyperd that serves users.
flags=(--root "$work/root" --run "$work/run" --net-prefix dmo)
hyperd_pid=

cleanup() {
	local status=$? pids
	trap '' INT TERM
	set +e
	if [[ -n $hyperd_pid ]]; then
		hyper ps -aq 2>/dev/null | xargs -r hyper rm -f >/dev/null
		kill "$hyperd_pid" 2>/dev/null
		wait "$hyperd_pid" 2>/dev/null
	fi
	# VMs outlive their hyperd; the output of those of this one goes to files in its directory.
	pids=$(find /proc/[0-9]*/fd/1 -lname "$work/run/pods/*" 2>/dev/null | cut -d/ -f3)
	[[ -z $pids ]] || kill -9 $pids 2>/dev/null
	[[ -z $hyperd_pid ]] || hyperd "${flags[@]}" --remove-network >/dev/null
	if ((status != 0)); then
		echo "demo: did not work; the end of hyperd's log:" >&2
		tail -n 30 "$work/log" >&2
	fi
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# show COMMAND...: prints the command as a person would type it, then runs it.
show() {
	printf '\n\033[1m# %s\033[0m\n' "$*"
	"$@"
}

[[ -e ${HYPER_CACHE:-$HOME/.cache/hyper}/kernel/hyperkernel ]] ||
	echo "demo: Debian's kernel serves; make kernel builds HyperKernel (about 5 minutes), which starts much faster"
echo "demo: makes the nginx image from Debian's packages, unless it is cached"
image=$(test/images/make nginx | tail -n 1)

mkfifo "$work/ready"
HYPER_READY_FD=3 hyperd "${flags[@]}" --accel "${HYPER_ACCEL:-auto}" 3>"$work/ready" >"$work/log" 2>&1 &
hyperd_pid=$!
read -r -N 1 <"$work/ready" || { echo "demo: hyperd did not start" >&2; exit 1; }

show hyper run --rm hello
show hyper load -i "$image"
name=$(hyper images --format '{{.Repository}}:{{.Tag}}' | grep nginx | head -n 1)
show hyper run -d --name web "$name"
address=$(hyper inspect -f '{{.NetworkSettings.Networks.bridge.IPAddress}}' web)

# The page from the host, as soon as nginx listens; then from inside the VM.
show curl --silent --fail --retry 20 --retry-connrefused --retry-delay 1 --max-time 30 -o "$work/page" "http://$address/"
grep -i '<title>' "$work/page"
show hyper exec web uname -sr
# The image has no HTTP client, but it has bash.
show hyper exec web bash -c 'exec 3<>/dev/tcp/127.0.0.1/80; printf "GET / HTTP/1.0\r\n\r\n" >&3; cat <&3' >"$work/inside"
grep -i '<title>' "$work/inside"

show hyper ps
show hyper inspect -f '{{json .Hyper}}' web
show hyper info
show hyper stop web
printf '\ndemo: all of that worked; everything is taken away again\n'
