#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes an installed command start its interpreter isolated (python -I). The command then imports
# only what is installed, and nothing from PYTHONPATH or the user's own packages.
#
#   scripts/isolate.sh FILE [FLAGS]      FILE is as pip wrote it; FLAGS: -I, or -IB to write no bytecode
#
# pip has no option for this. It writes one line for the kernel or, if the interpreter's path contains
# blanks or is too long, a second line for the shell.
set -eu

file=$1
flags=${2:--I}
sed -i -E -e "1s|^(#!/.*/python[0-9.]*)( -I.*)?\$|\\1 $flags|" \
	-e "2s|^('''exec' .*/python[0-9.]*\"?)( -I[A-Z]*)? |\\1 $flags |" "$file"
head -n 2 "$file" | grep -Eq -- "python[0-9.]*\"? $flags( |\$)" || {
	echo "isolate: error: $file does not begin as pip's commands do: install hvprobe by pip and try again" >&2
	exit 1
}
