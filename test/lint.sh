#!/bin/bash
# lint.sh [PACKAGE@VERSION...]: gofmt, vet, then those linters, each built once and kept in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${HYPER_CACHE:-$HOME/.cache/hyper}/bin

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
	program=$(tool "$linter")
	case $program in
	*/golangci-lint) "$program" run ;;
	*) "$program" ./... ;;
	esac
done
