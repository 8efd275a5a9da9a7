#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds the container image with buildah alone. It needs no engine and no registry of images.
#
#   scripts/build-image.sh [TAG]          default: localhost/hvprobe:latest
#
# ARCH=amd64|arm64  the image's architecture (default: this machine's). Programs of another one run
#                   under qemu-user-static, which takes several times as long
# BASE=image        the base image; by default one is made here from Debian's packages
# HVPROBE_CACHE     the directory for base and layers (default: ~/.cache/hvprobe)
#
# The script also writes the image's bill of materials in CycloneDX form, build/image/sbom.cdx.json,
# or sbom-ARCH.cdx.json for another architecture.
#
# The build gets this machine's access to registries (apt's mirror, pip's index, certificates) as
# arguments and secrets, and no file of the repository or the image contains it. Options that name
# a file or directory of this machine are left out, because the build does not see that file.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tag=${1:-localhost/hvprobe:latest}
suite=trixie
native=$(dpkg --print-architecture 2>/dev/null || true)
arch=${ARCH:-$native}
cache=${HVPROBE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hvprobe}/image
base_days=7 # after that many days the base and its layers are made again, for Debian's updates

say() { printf 'image: %s\n' "$*" >&2; }
# Prints one line (what failed, why, what to do) and ends the script.
die() {
	printf 'image: error: %s\n' "$*" >&2
	exit 1
}

# Prints the first error of apt or pip in a build's log, otherwise buildah's last one. buildah's own
# line repeats the complete RUN step, so that part is left out.
why() {
	local line
	line=$(grep -E -m 1 '^ *(E|ERROR): ' "$1" || grep -iE '^error' "$1" | tail -n 1 || true)
	printf '%s' "${line:-no reason given}" |
		sed -E 's/^ *(E|ERROR|[Ee]rror): *//; s/(building|executing) at STEP ".*": /a step of the Dockerfile: /'
}

check_machine() {
	[ "$(id -u)" = 0 ] || die "debootstrap and buildah's chroot isolation need root and you are $(id -un): run it as root"
	local tool
	for tool in buildah debootstrap; do
		command -v "$tool" >/dev/null || die "$tool is missing: make image installs it, or install the package of that name"
	done
	for tool in debsbom cyclonedx-py; do
		[ -x "$root/.venv/bin/$tool" ] || die "$tool is missing in .venv: run make image or make install-python"
	done
}

# Registers qemu-user-static with the kernel (binfmt_misc), as systemd-binfmt would. Its flag F makes it
# work in a root without that interpreter. A registration that the machine has is used; ours is removed.
misc=/proc/sys/fs/binfmt_misc
formats=/usr/lib/binfmt.d
registered=
run_foreign() {
	local machine
	case $arch in
	arm64) machine=aarch64 ;;
	amd64) machine=x86_64 ;;
	*) die "no image for '$arch': ARCH is amd64 or arm64" ;;
	esac
	[ "$arch" != "$native" ] || return 0
	[ -e "$misc/register" ] || mount -t binfmt_misc binfmt_misc "$misc" ||
		die "this kernel has no binfmt_misc to run $machine programs with: build on a machine of that kind"
	if grep -qsx enabled "$misc/qemu-$machine" && grep -qs '^flags:.*F' "$misc/qemu-$machine"; then return 0; fi
	[ -r "$formats/qemu-$machine.conf" ] || die "$formats/qemu-$machine.conf is missing: install the package qemu-user-static"
	registered=$misc/hvprobe-$machine
	[ -e "$registered" ] || sed 's/^:qemu-/:hvprobe-/' "$formats/qemu-$machine.conf" >"$misc/register"
}
clean_up() {
	rm -rf "$secrets"
	if [ -n "$registered" ]; then printf -- -1 >"$registered"; fi
}

# Uses separate storage. buildah prefers overlayfs and otherwise copies (STORAGE_DRIVER=vfs forces it).
store() { buildah --root "$cache/storage" --runroot "$cache/run" "$@"; }

mirror() {
	if [ -n "${HVPROBE_DEBIAN_MIRROR:-}" ]; then
		printf '%s' "$HVPROBE_DEBIAN_MIRROR"
	else
		# shellcheck disable=SC2016 # apt expands it
		apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 -E '^https?://.*/debian/?$'
	fi
}

# Prints the base image's reference, and makes the image if there is none or only an old one.
base() {
	local reference=localhost/hvprobe-base:$suite-$arch stamp=$cache/base-$suite-$arch.made work=$cache/base.unfinished
	local keyring=/usr/share/keyrings/debian-archive-keyring.gpg address container
	printf '%s' "$reference"
	if [ -n "$(find "$stamp" -mtime "-$base_days" 2>/dev/null)" ] && store inspect --type image "$reference" >/dev/null 2>&1; then
		return 0
	fi
	[ -r "$keyring" ] || keyring=${keyring%.gpg}.pgp
	address=$(mirror) || die "no Debian mirror among this machine's apt sources: set HVPROBE_DEBIAN_MIRROR"
	# The base's apt keeps this address, and runs where this machine's directories do not exist.
	[[ $address =~ ^https?:// ]] || die "the image cannot be built from $address: set HVPROBE_DEBIAN_MIRROR to an address that begins with http"
	say "making the base image: debootstrap $suite for $arch"
	rm -rf "$work"
	debootstrap --arch="$arch" --variant=minbase --keyring="$keyring" "$suite" "$work" "$address" >"$cache/debootstrap.log" 2>&1 ||
		die "debootstrap $suite: $(tail -n 1 "$cache/debootstrap.log"): whole output in $cache/debootstrap.log"
	rm -rf "$work"/var/cache/apt/archives/*.deb "${work:?}"/dev/*
	container=$(store from --arch "$arch" scratch)
	store add --quiet "$container" "$work" / >/dev/null
	store commit --quiet --rm "$container" "$reference" >/dev/null
	rm -rf "$work"
	touch "$stamp"
}

# Storage would grow by half a gigabyte per build. So this removes the image that had the tag before,
# unless it has another name, and the layers of builds on earlier bases.
forget() {
	local before=$1 after made id
	after=$(store images --quiet --no-trunc "$tag")
	if [ -n "$before" ] && [ "$before" != "$after" ]; then store rmi "$before" >/dev/null 2>&1 || true; fi
	store images --filter dangling=true --format '{{.CreatedAtRaw}}|{{.ID}}' | while IFS='|' read -r made id; do
		[ "$(date -d "${made% UTC}" +%s)" -gt "$(date -d "-$base_days days" +%s)" ] || store rmi "$id" >/dev/null 2>&1 || true
	done
}

# Runs scripts/pip_config.py with the interpreter whose pip installs hvprobe.
pip_config() {
	local interpreter=$root/.venv/bin/python
	[ -x "$interpreter" ] || interpreter=python3
	"$interpreter" "$root/scripts/pip_config.py" "$@"
}

# Prints the file of certificates to trust. The build mounts it and does not learn its path.
certificates() {
	local file
	for file in "$(pip_config --certificates)" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
		if [ -f "$file" ] && [ -r "$file" ]; then
			printf '%s' "$file"
			return
		fi
	done
	printf '/dev/null'
}

# Prints the commit, with -dirty where files differ from it or are in none: a release refuses that image.
revision() {
	local commit
	commit=$(git -C "$root" rev-parse HEAD 2>/dev/null) || commit=unknown
	[ -z "$(git -C "$root" status --porcelain 2>/dev/null)" ] || commit+=-dirty
	printf '%s' "$commit"
}

# A test sources this file to use its functions.
[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

check_machine
mkdir -p "$cache"
# Only one build runs at a time, because builds share storage.
exec 9>"$cache/lock"
flock 9
secrets=$(mktemp -d "${TMPDIR:-/tmp}/hvprobe-image.XXXXXX")
trap clean_up EXIT
run_foreign
pip_config >"$secrets/pip.conf" 2>"$secrets/pip.err" || die "$(tail -n 1 "$secrets/pip.err")"
export BUILDAH_ISOLATION=chroot
BASE=${BASE:-$(base)}
say "building $tag on ${BASE} for $arch"
before=$(store images --quiet --no-trunc "$tag" 2>/dev/null || true)
log=$cache/build.log
store build --quiet --arch "$arch" --layers --format docker --file "$root/Dockerfile" --tag "$tag" \
	--build-arg "BASE=$BASE" \
	--build-arg "VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")" \
	--build-arg "REVISION=$(revision)" \
	--secret "id=pip-config,src=$secrets/pip.conf" --secret "id=ca,src=$(certificates)" \
	"$root" >"$log" 2>&1 </dev/null || die "$(why "$log"): whole output in $log"
# Writes the bill of materials from the actual contents of the image.
mkdir -p "$root/build/image"
container=$(store from --arch "$arch" --pull-never "$tag")
image=$(store inspect --type image --format '{{.FromImageID}}' "$tag")
bill=$root/build/image/sbom.cdx.json
[ "$arch" = "$native" ] || bill=$root/build/image/sbom-$arch.cdx.json
"$root/.venv/bin/python" "$root/scripts/sbom.py" "$(store mount "$container")" --image "sha256:$image" >"$bill.new" || die "the bill of materials could not be written"
store rm "$container" >/dev/null
mv "$bill.new" "$bill"
forget "$before"
say "built $tag: ${image:0:12}"
say "to take it elsewhere: buildah --root $cache/storage --runroot $cache/run push $tag docker://REGISTRY/NAME:TAG (or oci-archive:FILE)"
