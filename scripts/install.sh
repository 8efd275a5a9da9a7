#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs only what is missing: distribution packages, .venv, the project itself.
#
#   scripts/install.sh [--root] GROUP...
#
# GROUP is run, demo, test, image or bench, see packages.txt; test also installs the dependency group
# "dev" of pyproject.toml. GROUP may be python instead: hvprobe and the group "dev", and no
# distribution package. That is enough for lint and unit tests, on any Linux and for any user.
# Python packages are those of requirements.lock, or of requirements-dev.lock with the group "dev".
# --root: the caller's next step needs root, so the script says so before it installs anything.
#
# Nothing is installed twice: dpkg knows the packages, and a stamp in .venv records the Python side.
# The stamp is written last, so an interrupted installation is repeated.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
# The distribution's bcc is built for this interpreter only.
distribution_python=/usr/bin/python3
apt_options=(-o DPkg::Lock::Timeout=300 --yes --quiet --no-install-recommends)
log=

say() { printf 'install: %s\n' "$*"; }
# Prints one line (what failed, why, what to do) and ends the script.
die() {
	printf 'install: error: %s\n' "$*" >&2
	exit 1
}

# Prints the first line of the log that names the cause, without the tool's own prefix.
why() {
	local line
	line=$(grep -E -m 1 "$1" "$log" || true)
	printf '%s' "${line:-no reason given}" | sed -E 's/^ *(E|W|ERROR): *//'
}

# pip reports an unreachable index as a package that it cannot find; the connection's error is the cause.
why_pip() {
	local connection
	connection=$(grep -oE '\[Errno -?[0-9]+\] [^]()'"'"']+|SSLError|ProxyError|[A-Za-z]*Timeout[A-Za-z]*' "$log" | head -n 1 || true)
	if [ -n "$connection" ] && grep -q 'connection broken by' "$log"; then
		printf 'the Python package index cannot be reached (%s): check network, proxy and pip config' "$connection"
	else
		why '^ *(ERROR|error):'
	fi
}

distribution() {
	# shellcheck source=/dev/null
	(. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-this distribution}")
}

check_machine() {
	[ "$(uname -s)" = Linux ] ||
		die "hvprobe reads the Linux kernel and this is $(uname -s): run it on a Linux machine"
	if [ "$need_root" = yes ] && [ "$(id -u)" != 0 ]; then
		die "loading BPF programs and reading other users' processes needs root and you are $(id -un): run it with sudo or as root"
	fi
	[ ${#groups[@]} -gt 0 ] || return 0
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		die "no apt-get on $(distribution): the packages are known for Debian 12, 13 and Ubuntu 24.04 or later only; elsewhere use the container image (lint and unit tests need no package: make lint test-unit)"
	fi
	check_python
}

# Whether bcc works depends on the distribution's python, because bcc belongs to it.
check_python() {
	[ -x "$distribution_python" ] || return 0
	"$distribution_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die "$distribution_python is $("$distribution_python" -c 'import platform; print(platform.python_version())') on $(distribution), hvprobe needs 3.11 or later and the distribution's bcc needs the distribution's python: use Debian 12, 13 or Ubuntu 24.04 or later"
}

# Prints the packages of the requested groups that are not installed, one per line.
missing_packages() {
	local architecture wanted
	architecture=$(dpkg --print-architecture 2>/dev/null)
	mapfile -t wanted < <(awk -v groups=" ${groups[*]} " -v architecture="$architecture" '
		/^#/ || NF == 0 { next }
		{ group = $1 }
		match(group, /\[.*\]$/) {
			if (substr(group, RSTART + 1, RLENGTH - 2) != architecture) next
			group = substr(group, 1, RSTART - 1)
		}
		index(groups, " " group " ") && !seen[$2]++ { print $2 }' "$root/scripts/packages.txt")
	# dpkg-query fails for unknown names, but still prints the others.
	dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null |
		awk -v wanted="${wanted[*]}" '
			$1 == "installed" { have[$2] = 1 }
			END { n = split(wanted, name, " "); for (i = 1; i <= n; i++) if (!have[name[i]]) print name[i] }'
}

# Prints those of the given packages that the package lists do not offer.
not_offered() {
	local package candidate
	for package in "$@"; do
		candidate=$(apt-cache policy "$package" 2>/dev/null | sed -n 's/^  Candidate: //p')
		if [ -z "$candidate" ] || [ "$candidate" = "(none)" ]; then printf '%s ' "$package"; fi
	done
}

# apt-get itself waits for dpkg's lock, but not for the lock of the package lists.
update_lists() {
	local deadline=$((SECONDS + 300))
	say "fetching the package lists"
	while :; do
		apt-get "${apt_options[@]}" update >"$log" 2>&1 || true
		grep -q 'Could not get lock' "$log" || return 0
		[ $SECONDS -lt $deadline ] ||
			die "apt-get update: $(why '^E:'): wait until the other apt has ended and try again"
		sleep 2
	done
}

apt_install() {
	# SYSTEMD_OFFLINE: a package that brings a service (prometheus) must not start it here.
	SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
		apt-get "${apt_options[@]}" install "$@" </dev/null >"$log" 2>&1
}

install_packages() {
	local missing absent updated=no
	mapfile -t missing < <(missing_packages)
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" = 0 ] ||
		die "packages are missing (${missing[*]}) and only root may install them, you are $(id -un): run it with sudo or as root"
	if [ -n "$(not_offered "${missing[@]}")" ]; then
		update_lists
		updated=yes
	fi
	absent=$(not_offered "${missing[@]}")
	if [ -n "$absent" ] && grep -qE '^(E|W|Err)' "$log"; then
		die "packages ${absent% } are not in the package lists and fetching these failed: $(why '^(E|W):'): check network, proxy and apt's sources"
	fi
	[ -z "$absent" ] ||
		die "packages ${absent% } are missing from the archive of $(distribution): enable the archive's main component (Ubuntu: universe too) in apt's sources"
	say "installing packages: ${missing[*]}"
	if ! apt_install "${missing[@]}"; then
		# The package lists may be older than the archive, so fetch them once and try again.
		if [ "$updated" = no ]; then update_lists; fi
		if [ "$updated" = yes ] || ! apt_install "${missing[@]}"; then
			keep_log
			die "apt-get install ${missing[*]}: $(why '^E:'): whole output in $log"
		fi
	fi
	disable_service prometheus "${missing[@]}"
}

# Tests start their own Prometheus. The package's service must not start at the next boot.
disable_service() {
	local service=$1 package
	shift
	command -v systemctl >/dev/null || return 0
	for package in "$@"; do
		if [ "$package" = "$service" ]; then SYSTEMD_OFFLINE=1 systemctl --quiet disable "$service" 2>/dev/null || true; fi
	done
}

# A stamp in .venv records what is installed there:
#   run     hvprobe, with a bcc that works
#   dev     hvprobe and the dependency group dev, with a bcc that works
#   python  hvprobe and the dependency group dev
# It contains this checksum of everything from which .venv was made.
fingerprint() {
	{
		printf '%s\n' "$1" "$venv" "$("$venv/bin/python" -V 2>/dev/null)"
		cat "$venv/pyvenv.cfg" "$root/pyproject.toml" "$root"/requirements{,-dev}.lock \
			"$root/scripts/install.sh" "$root/scripts/isolate.sh"
	} | sha256sum
}

up_to_date() {
	local stamp=$venv/.installed-$1
	[ -r "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$1")" ] && [ -x "$venv/bin/hvprobe" ]
}

write_stamp() {
	fingerprint "$1" >"$venv/.installed-$1.new"
	mv "$venv/.installed-$1.new" "$venv/.installed-$1"
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# An environment is kept if it belongs to this folder and its python and pip work.
venv_is_sound() {
	[ -r "$venv/pyvenv.cfg" ] && grep -qF "$venv" "$venv/bin/activate" 2>/dev/null &&
		is_recent "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

# Only the distribution's python finds the distribution's bcc, and only if it sees system packages.
venv_sees_bcc() {
	grep -qx 'include-system-site-packages = true' "$venv/pyvenv.cfg" 2>/dev/null &&
		[ "$venv/bin/python" -ef "$distribution_python" ]
}

# Prints the interpreter for a new .venv that needs no bcc. The distribution's is preferred, because
# a .venv made from it also serves `make run`.
any_python() {
	local candidate
	for candidate in "$distribution_python" python3 python python3.14 python3.13 python3.12 python3.11; do
		if is_recent "$candidate" && "$candidate" -c 'import ensurepip' 2>/dev/null; then
			command -v "$candidate"
			return
		fi
	done
	die "no python3 on PATH is 3.11 or later and has venv and pip: install one (package python3-venv on Debian and Ubuntu)"
}

make_venv() {
	local python=$distribution_python options=(--clear)
	if [ "$1" = python ]; then python=$(any_python) || exit 1; fi
	if [ "$python" = "$distribution_python" ]; then options+=(--system-site-packages); fi
	say "making .venv with $("$python" -V)"
	"$python" -m venv "${options[@]}" "$venv" >"$log" 2>&1 || {
		keep_log
		die "making .venv with $python: $(tail -n 1 "$log"): whole output in $log"
	}
}

pip_install() {
	"$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@" >"$log" 2>&1 </dev/null || {
		keep_log
		die "pip install hvprobe: $(why_pip): whole output in $log"
	}
}

install_project() {
	local kind=$1 label="hvprobe and its Python packages" lock=requirements.lock
	if up_to_date "$kind"; then return 0; fi
	if ! venv_is_sound || { [ "$kind" != python ] && ! venv_sees_bcc; }; then make_venv "$kind"; fi
	rm -f "$venv"/.installed-*
	if [ "$kind" != run ]; then
		lock=requirements-dev.lock
		label="hvprobe, its Python packages and those of lint and tests"
	fi
	[ -r "$root/$lock" ] || die "$lock is missing: restore it"
	say "installing $label into .venv"
	# Two calls, because pip that requires hashes refuses a project in a folder, which has none.
	pip_install --require-hashes --requirement "$root/$lock"
	pip_install --no-deps --editable "$root"
	"$root/scripts/isolate.sh" "$venv/bin/hvprobe" || exit 1
	write_stamps "$kind"
}

# The group python needs no bcc. If bcc works anyway, .venv is also up to date for `make run`.
write_stamps() {
	local kind=$1
	if [ "$kind" != python ]; then
		check_bcc
	elif ! venv_sees_bcc || ! imports_bcc; then
		write_stamp python
		return
	fi
	write_stamp run
	if [ "$kind" = run ]; then return; fi
	write_stamp python
	write_stamp dev
}

imports_bcc() { "$venv/bin/python" -c 'import bcc; bcc.BPF' >"$log" 2>&1; }

check_bcc() {
	imports_bcc ||
		die "import bcc in .venv: $(tail -n 1 "$log"): python3-bpfcc must be the distribution's, and no package named bcc may be in .venv (rm -r .venv and try again)"
}

keep_log() { trap - EXIT; }

# A test sources this file to use its functions.
[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

usage="usage: scripts/install.sh [--root] run|demo|test|image|bench ... (or: python)"
need_root=no
groups=()
kind=
for word in "$@"; do
	case $word in
	--root) need_root=yes ;;
	python) kind=${kind:-python} ;;
	run | demo | image | bench)
		groups+=("$word")
		[ "$kind" = dev ] || kind=run
		;;
	test)
		groups+=("$word")
		kind=dev
		;;
	*) die "unknown word '$word': $usage" ;;
	esac
done
[ -n "$kind" ] || die "no group given: $usage"

check_machine
# Only one installation runs at a time. The lock is on the folder, so it leaves no file behind.
exec 9<"$root"
if ! flock --nonblock 9; then
	say "waiting for another installation into this folder"
	flock 9
fi
log=$(mktemp "${TMPDIR:-/tmp}/hvprobe-install.XXXXXX")
trap 'rm -f "$log"' EXIT
trap 'say "interrupted; the next call goes on from here"; exit 130' INT
trap 'say "interrupted; the next call goes on from here"; exit 143' TERM

if [ ${#groups[@]} -gt 0 ]; then
	install_packages
	check_python
fi
install_project "$kind"
say "up to date"
