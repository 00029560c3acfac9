#!/bin/bash
# lint.sh [--if-available] [PACKAGE@VERSION...]: gofmt, vet, then those linters, each built once and kept in the cache.
# With --if-available a linter that can't be fetched is left out, loudly: tests must not depend on a module proxy's mood.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${HYPER_CACHE:-$HOME/.cache/hyper}/bin

lenient=
if [[ ${1-} == --if-available ]]; then
	lenient=1
	shift
fi

bad=$(git ls-files --cached --others --exclude-standard '*.go' | xargs gofmt -l)
[[ -z $bad ]] || { echo "gofmt -w these:"; echo "$bad"; exit 1; }
go vet ./...

# tool PACKAGE@VERSION: prints the path of its executable, kept under its version.
tool() {
	local dir=$bin/${1##*@} name
	name=${1%@*}
	name=${name##*/}
	if [[ ! -x $dir/$name ]]; then
		echo "lint: builds $1" >&2
		GOBIN=$dir GOFLAGS= nice go install "$1" || return
	fi
	echo "$dir/$name"
}

for linter; do
	program=$(tool "$linter") || {
		[[ -n $lenient ]] || exit 1
		echo "lint: LEFT OUT: $linter can't be had here" >&2
		continue
	}
	case $program in
	*/golangci-lint) "$program" run ;;
	*) "$program" ./... ;;
	esac
done
